//! iptables-nft and the native writer take turns on the same rules.
//!
//! Needs root, iptables-nft and nft.

use std::net::UdpSocket;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use netfilter::iptables::Table;
use netfilter::kernel::{Host, IptablesTool};
use netfilter::testing::FakeHost;
use proptest::prelude::*;
use proxier::testing::objects;
use proxier::track::Kind;

use crate::common::cases::configuration;
use crate::common::cluster::{Operation, operations};
use crate::common::real::{FLAVOURS, Real};
use crate::common::run::{Kernel, Run};

/// A namespace whose rules each new process writes in another way; clones are the same one.
#[derive(Clone)]
struct Alternating {
    real: Real,
    turn: Arc<AtomicUsize>,
}

impl Alternating {
    fn beginning(turn: usize) -> Self {
        Self { real: Real::new(FLAVOURS[2]), turn: Arc::new(AtomicUsize::new(turn)) }
    }

    fn turn(&self) -> usize {
        self.turn.load(Ordering::Relaxed)
    }

    /// All rules with their handles and counters.
    fn ruleset(&self) -> String {
        self.real.enter();
        let output = Command::new("nft").args(["-a", "list", "ruleset"]).output().expect("nft can be run");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }
}

impl Kernel for Alternating {
    fn tool(&self) -> Box<dyn IptablesTool> {
        match self.turn.fetch_add(1, Ordering::Relaxed) % 3 {
            0 => self.real.by_programs().tools(),
            1 => self.real.tools(),
            _ => self.real.native(|tool| tool.with_largest_batch(8192)),
        }
    }

    fn host(&self) -> Box<dyn Host> {
        Box::new(FakeHost::default())
    }

    fn fresh(&self) -> Self {
        Self::beginning(self.turn())
    }

    fn damage(&self, _nth: usize) -> bool {
        false
    }

    fn refuse(&self, _text: Option<&str>, _naming_the_line: bool) {}

    fn text(&self) -> String {
        self.real.saved()
    }
}

/// A start by the next writer writes nothing: all rules keep their handles and counters.
fn restarts_without_writing(run: &mut Run<Alternating>) {
    let before = run.kernel.ruleset();
    let written = run.apply(Operation::Restart).expect("a sync");
    assert_eq!(written.transactions, [] as [String; 0], "at turn {}", run.kernel.turn());
    assert_eq!(run.kernel.ruleset(), before);
}

proptest! {
    #![proptest_config(configuration(6))]

    #[test]
    fn any_history_by_any_writer_ends_as_a_fresh_start(first in 0..3_usize, history in operations(25, false)) {
        let mut run = Run::new(Alternating::beginning(first));
        let mut syncs = 0;
        for operation in std::iter::once(Operation::Sync).chain(history).chain([Operation::Sync]) {
            if run.apply(operation).is_none() {
                continue;
            }
            syncs += 1;
            restarts_without_writing(&mut run);
            // Most costs are those of the programs.
            if syncs % 3 == 1 {
                let mut fresh = run.afresh();
                fresh.sync();
                prop_assert_eq!(run.kernel.text(), fresh.kernel.text(), "left: incremental, right: fresh");
            }
        }
    }
}

#[test]
fn counters_survive_restarts_with_the_other_writer() {
    let mut run = Run::new(Alternating::beginning(0));
    let (service, address) = (objects::address(1), objects::address(2));
    run.apply(Operation::Apply(Kind::Service, objects::service("ns", "web", service)));
    run.apply(Operation::Apply(Kind::EndpointSlice, objects::slice("ns", "web", "web-1", &[address])));
    run.sync();
    run.kernel.real.enter();
    for line in ["link set lo up", "route add default dev lo"] {
        assert!(Command::new("ip").args(line.split(' ')).status().expect("ip").success(), "{line}");
    }
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    socket.send_to(b"?", (service, 80)).expect("it is sent");
    let saved = run.kernel.real.program("-save").args(["-c", "-t", Table::Nat.name()]).output().expect("it can be run");
    let saved = String::from_utf8(saved.stdout).expect("text");
    let counted = |line: &str| line.starts_with("[1:") && line.contains("-A OUTPUT") && line.ends_with("KUBE-SERVICES");
    assert!(saved.lines().any(counted), "{saved}");
    (0..4).for_each(|_| restarts_without_writing(&mut run));
}
