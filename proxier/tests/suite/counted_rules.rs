//! What rules of Service ports have counted, read without the iptables programs, in every flavour.
//!
//! Needs root and both flavours of iptables.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::Stdio;

use netfilter::IpFamily;
use proxier::iptables::read_connections;

use crate::common::real::{FLAVOURS, Real};

/// Writes Services of one endpoint each, whose rules have counted as many packets as the Service's number.
fn write(real: &Real, services: u32) {
    let mut text = "*nat\n:KUBE-SERVICES - [0:0]\n".to_owned();
    for number in 0..services {
        let _ = writeln!(text, ":KUBE-SVC-{number:016} - [0:0]\n:KUBE-SEP-{number:016} - [0:0]");
    }
    for number in 0..services {
        let (high, low) = (number / 250, number % 250 + 1);
        let _ = writeln!(
            text,
            "-A KUBE-SERVICES -d 10.96.{high}.{low}/32 -p tcp -m comment --comment \"ns/s{number}:http cluster IP\" -m tcp \
             --dport 80 -j KUBE-SVC-{number:016}\n\
             -A KUBE-SVC-{number:016} -j KUBE-SEP-{number:016}\n\
             [{number}:60] -A KUBE-SEP-{number:016} -p tcp -m tcp -j DNAT --to-destination 10.244.{high}.{low}:8080"
        );
    }
    text += "COMMIT\n";
    let mut restore = real.program("-restore").arg("-c").stdin(Stdio::piped()).spawn().expect("it can be run");
    restore.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("it reads");
    assert!(restore.wait().expect("it ends").success());
}

/// A table of few chains is read in one dump, of more than 2,000 chain by chain.
#[test]
fn counts_of_few_and_of_many_chains_are_those_of_the_rules() {
    for flavour in &FLAVOURS[..2] {
        for services in [3, 1100] {
            let real = Real::new(*flavour);
            write(&real, services);
            real.enter();
            let samples = read_connections(IpFamily::V4, real.flavour).expect("readable");
            let counts: BTreeMap<String, u64> =
                samples.iter().map(|sample| (sample.port.to_string(), sample.counts.connections)).collect();
            let expected = (0..services).map(|number| (format!("ns/s{number}:http"), u64::from(number))).collect();
            assert_eq!(counts, expected, "{:?}", real.flavour);
            assert_eq!(samples.len(), services as usize);
        }
    }
}
