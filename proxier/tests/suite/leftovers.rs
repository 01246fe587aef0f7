//! State of inactive modes in the real kernel: it goes, but for what foreign rules refer to.

use std::fmt::Write as _;
use std::io::Write;
use std::process::{Command, Stdio};

use netfilter::iptables::{Chain, Rule, Table};
use netfilter::kernel::{Flavour, IptablesTool, NativeIptables, WriterPriority};
use netfilter::{IpFamily, Restore};
use proxier::leftovers::{self, ActiveMode};

use crate::common::namespace::{in_namespace, run};

fn restore(flavour: &str, text: &str) {
    let mut command = Command::new(format!("iptables-{flavour}-restore"));
    let mut child = command.arg("--noflush").stdin(Stdio::piped()).spawn().expect("it can be run");
    child.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("it reads");
    assert!(child.wait().expect("it ends").success(), "{text}");
}

/// Chains of so many Services with two endpoints each, as the real one's.
fn services(count: usize) -> String {
    let (mut chains, mut rules) = (String::new(), String::new());
    for service in 0..count {
        let _ = writeln!(chains, ":KUBE-SVC-{service:016} - [0:0]");
        let _ = writeln!(rules, "-A KUBE-SERVICES -d 10.96.0.{}/32 -j KUBE-SVC-{service:016}", service % 256);
        for endpoint in [2 * service, 2 * service + 1] {
            let _ = writeln!(chains, ":KUBE-SEP-{endpoint:016} - [0:0]");
            let _ = writeln!(rules, "-A KUBE-SVC-{service:016} -j KUBE-SEP-{endpoint:016}");
            let _ = writeln!(rules, "-A KUBE-SEP-{endpoint:016} -s 10.0.0.1/32 -j KUBE-MARK-MASQ");
        }
    }
    let jump = "-m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES";
    format!(
        "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n{chains}-A PREROUTING {jump}\n-A PREROUTING {jump}\n-A OUTPUT {jump}\n{rules}COMMIT\n"
    )
}

fn saved(flavour: &str) -> Vec<String> {
    let text = run(&format!("iptables-{flavour}-save -t nat"));
    text.lines().filter(|line| line.contains("KUBE-") || line.contains("MINE")).map(str::to_owned).collect()
}

#[test]
fn chains_that_foreign_rules_refer_to_stay_empty_and_are_named_and_all_others_go() {
    for flavour in ["nft", "legacy"] {
        in_namespace(move || {
            restore(flavour, &services(50));
            restore(
                flavour,
                "*nat\n:MINE - [0:0]\n-A MINE -j KUBE-SEP-0000000000000007\n-A OUTPUT -d 192.0.2.1/32 -g KUBE-SVC-0000000000000009\nCOMMIT\n",
            );
            for _ in 0..2 {
                let errors =
                    leftovers::remove(IpFamily::V4, None, false, &WriterPriority::default()).expect_err("two stay");
                let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
                // The nf_tables flavour is read without the programs, which have other words for this one.
                let goto = match flavour {
                    "nft" => {
                        "ip nat OUTPUT: ip daddr 192.0.2.1 counter packets 0 bytes 0 goto KUBE-SVC-0000000000000009"
                    }
                    _ => "-A OUTPUT -d 192.0.2.1/32 -g KUBE-SVC-0000000000000009",
                };
                let named = ["-A MINE -j KUBE-SEP-0000000000000007", goto];
                assert_eq!(errors.len(), 2, "{errors:#?}");
                assert!(named.iter().zip(&errors).all(|(rule, error)| error.contains(rule)), "{errors:#?}");
                let left = saved(flavour);
                assert_eq!(left.len(), 5, "two chains without rules, and what is not ours: {left:#?}");
            }
            restore(flavour, "*nat\n:MINE - [0:0]\n-D OUTPUT -d 192.0.2.1/32 -g KUBE-SVC-0000000000000009\nCOMMIT\n");
            leftovers::remove(IpFamily::V4, None, false, &WriterPriority::default())
                .expect("nothing refers to them any more");
            assert_eq!(saved(flavour).len(), 1, "{:?}", saved(flavour));
        });
    }
}

/// The iptables programs refuse such a chain, and see no jump in it.
#[test]
fn jumps_in_a_built_in_chain_of_another_priority_go_and_what_nft_made_stays() {
    in_namespace(|| {
        run("nft add table ip nat");
        run("nft add chain ip nat PREROUTING { type nat hook prerouting priority -90; }");
        run("nft add chain ip nat KUBE-SVC-0000000000000001");
        run("nft add set ip nat KUBE-SET { type ipv4_addr; }");
        run("nft add rule ip nat PREROUTING ip daddr 192.0.2.7 counter accept");
        let (table, rule) = (
            Table::Nat,
            Rule::parse(IpFamily::V4, "-m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES"),
        );
        let mut jump = Restore::default();
        jump.declare(table, Chain::parse("KUBE-SERVICES").expect("a name"), None);
        jump.insert(table, "PREROUTING", &rule.expect("a rule"));
        NativeIptables::new(IpFamily::V4).restore(&jump).expect("it is written");
        leftovers::remove(IpFamily::V4, None, false, &WriterPriority::default()).expect("all can go");
        let left = run("nft list table ip nat");
        assert!(!left.contains("KUBE-SERVICES") && !left.contains("KUBE-SVC"), "{left}");
        assert!(left.contains("192.0.2.7") && left.contains("KUBE-SET"), "{left}");
    });
}

#[test]
fn legacy_leftovers_do_not_wait_for_syncs_of_the_nf_tables_flavour_nor_these_for_them() {
    in_namespace(|| {
        restore("legacy", &services(3));
        let priority = WriterPriority::default();
        let sync = priority.write();
        let running = ActiveMode::Iptables(Some(Flavour::Nft));
        leftovers::remove(IpFamily::V4, Some(running), false, &priority).expect("all goes during a sync");
        drop(sync);
        assert_eq!(saved("legacy"), [""; 0]);
    });
}

#[test]
fn state_of_the_running_mode_is_kept() {
    in_namespace(|| {
        restore("nft", &services(3));
        let before = saved("nft");
        leftovers::remove(IpFamily::V4, Some(ActiveMode::Iptables(None)), false, &WriterPriority::default())
            .expect("nothing to do");
        assert_eq!(saved("nft"), before);
        leftovers::remove(IpFamily::V4, Some(ActiveMode::Nftables), false, &WriterPriority::default())
            .expect("all goes");
        assert_eq!(saved("nft"), [""; 0]);
    });
}
