//! Compares the walk through nf_tables with the kernel's own trace of real packets.
//!
//! Runs on upstream's recorded tables and on ours for the same cases. For each packet of the flow tables, the rules in
//! the kernel's trace and the outcome must be those of one branch of the walk; for many packets, the probabilities
//! must fit. Requires root.

#![allow(clippy::unwrap_used)]

mod beside;
mod machine;
mod odds;
mod others;
mod texts;

use std::collections::BTreeMap;

use golden::case::{Case, Mode, cases};
use golden::flows::{FlowTable, entry};
use golden::replay::Replay;
use netfilter::IpFamily;
use proxier_inspect::rules::Ruleset;
use proxier_inspect::walk::{self, ConnState, Origin, RecentLists, Verdict};

use machine::{Machine, agrees};

#[derive(Debug, Default)]
struct Tally {
    packets: BTreeMap<(&'static str, &'static str), usize>,
    verdicts: BTreeMap<&'static str, usize>,
    failures: Vec<String>,
}

impl Tally {
    /// Sends packets of a case's flow table and compares: every `step`th.
    fn check(&mut self, machine: &mut Machine, (layout, case, rules): (&'static str, &Case, &str), step: usize) {
        machine.load(rules);
        let table = FlowTable::load(&case.name).unwrap();
        let nodes = IpFamily::ALL.map(|family| (machine.as_met(family), machine.whole(family)));
        let asked = table.flows.iter().filter(|flow| {
            let first = matches!(flow.packet.state, ConnState::New | ConnState::Invalid);
            // What is sent to a loopback address stays where it is sent from.
            let stays = flow.packet.destination.ip().is_loopback() && flow.packet.origin != Origin::Host;
            first && !stays && flow.remembers.is_none() && entry(&flow.packet.origin).is_ok()
        });
        for flow in asked.step_by(step) {
            let family = IpFamily::of(&flow.packet.source.ip());
            let (node, whole) = &nodes[usize::from(family == IpFamily::V6)];
            let packet = machine.next(&flow.packet);
            let trace = machine.walk(&packet, node);
            let total: f64 = trace.branches.iter().map(|branch| branch.outcome.probability).sum();
            let sent = machine.send(&packet);
            *self.packets.entry((layout, family.name())).or_default() += 1;
            let mut problem = String::new();
            if (total - 1.0).abs() > 1e-9 {
                problem = format!("odds sum to {total}");
            }
            // Nothing was remembered when all was read.
            let iptables = Ruleset::new(family);
            let all = walk::NodeRules { iptables: &iptables, other: None, nftables: Some(whole) }.trace(
                &packet,
                node,
                &RecentLists::new(),
            );
            let of_all = all.unwrap().outcomes();
            if trace.outcomes() != of_all && !rules.contains("affinity") {
                problem = format!("read whole it ends with {of_all:?}");
            }
            match trace.branches.iter().find(|branch| agrees(branch, &packet, &sent)) {
                Some(branch) if problem.is_empty() => {
                    let verdict = match branch.outcome.verdict {
                        Verdict::Delivered(_) => "delivered",
                        Verdict::Rejected => "rejected",
                        Verdict::Dropped => "dropped",
                        Verdict::Untouched => "untouched",
                        Verdict::Forwarded(..) => panic!("IPVS: {branch:?}"),
                    };
                    *self.verdicts.entry(verdict).or_default() += 1;
                }
                _ => self.failures.push(format!(
                    "{layout}, {}: {packet}: {problem}\nthe kernel: {sent:#?}\nthe walk:\n{trace}",
                    case.name
                )),
            }
        }
    }
}

fn ours(case: &Case) -> String {
    let mut replay = Replay::new(case, Mode::Nftables);
    replay.step(&case.stored[0]);
    replay.tables()
}

/// Cases with a rule of each kind among them.
const TELLING: [&str; 10] = [
    "009-protocols-on-one-port",
    "101-nodeport-no-endpoints",
    "103-nodeport-etp-local",
    "210-lb-source-ranges",
    "402-both-local",
    "502-affinity-local-policies",
    "601-ipv6-only-services",
    "700-masquerade-all",
    "712-detect-local-bridge",
    "720-nodeport-addresses-cidrs",
];

#[test]
fn packets_take_the_path_of_the_walk() {
    // TRACE_ALL=1 takes every packet of every case.
    let all = std::env::var_os("TRACE_ALL").is_some();
    let names = golden::flows::cases().unwrap();
    let wanted = |case: &Case| if all { names.contains(&case.name) } else { TELLING.contains(&&*case.name) };
    let cases: Vec<Case> = cases().into_iter().filter(|case| case.has(Mode::Nftables) && wanted(case)).collect();
    assert!(all || cases.len() == TELLING.len());
    let step = if all { 1 } else { 2 };
    let layouts = ["real", "ours"].map(|layout| {
        let cases = &cases;
        move || {
            let (mut machine, mut tally) = (Machine::new(), Tally::default());
            for case in cases {
                let rules = if layout == "ours" { ours(case) } else { case.recorded_tables(0) };
                tally.check(&mut machine, (layout, case, &rules), step);
            }
            tally
        }
    });
    let tallies: Vec<Tally> = std::thread::scope(|scope| {
        let threads = layouts.map(|layout| scope.spawn(layout));
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    for tally in tallies {
        println!("{:?}, {:?}", tally.packets, tally.verdicts);
        assert!(tally.failures.is_empty(), "{} failures, the first: {}", tally.failures.len(), tally.failures[0]);
        assert!(tally.packets.values().sum::<usize>() >= 200 && tally.packets.len() == 2, "{:?}", tally.packets);
        for verdict in ["delivered", "rejected", "dropped", "untouched"] {
            assert!(tally.verdicts.get(verdict).is_some_and(|count| *count > 5), "{verdict}: {:?}", tally.verdicts);
        }
    }
}
