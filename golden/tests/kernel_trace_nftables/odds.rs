//! Compares the probabilities of the walk with the kernel's distribution of connections.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use golden::case::{Mode, cases};
use golden::flows::{FlowTable, entry};
use golden::probe::Outcome;
use netfilter::IpFamily;
use proxier_inspect::walk::{Origin, Verdict};

use crate::machine::{Machine, probe};
use crate::ours;

const COUNT: u16 = 1200;

/// Connections from outside to a Service with three endpoints: each gets its share, as far as chance goes.
#[test]
fn connections_are_split_by_the_traced_probabilities() {
    let case = cases().into_iter().find(|case| case.name == "102-nodeport-protocols").unwrap();
    assert!(case.has(Mode::Nftables));
    let flows = FlowTable::load(&case.name).unwrap().flows;
    let choice = flows
        .into_iter()
        .find(|flow| flow.expect.len() == 3 && flow.packet.source.is_ipv4() && flow.packet.origin != Origin::Host);
    let packet = choice.unwrap().packet;
    for (layout, rules) in [("real", case.recorded_tables(0)), ("ours", ours(&case))] {
        let machine = Machine::new();
        machine.load(&rules);
        let outcomes = machine.walk(&packet, &machine.as_met(IpFamily::V4)).outcomes();
        let entry = entry(&packet.origin).unwrap();
        let probes: Vec<_> = (0..COUNT)
            .map(|nth| {
                let mut sent = packet.clone();
                sent.source.set_port(10000 + nth);
                (entry, probe(&sent))
            })
            .collect();
        let mut seen: BTreeMap<SocketAddr, u32> = BTreeMap::new();
        for outcome in machine.node.send(&probes) {
            let Outcome::Arrived { at, .. } = outcome else { panic!("{layout}: {outcome}") };
            *seen.entry(at).or_default() += 1;
        }
        assert_eq!(seen.len(), outcomes.len(), "{layout}: {seen:?}");
        for outcome in outcomes {
            let Verdict::Delivered(to) = outcome.verdict else { panic!("{layout}: {outcome}") };
            let expected = outcome.probability * f64::from(COUNT);
            // Six standard deviations: one false alarm in a billion.
            let room = 6.0 * (expected * (1.0 - outcome.probability)).sqrt();
            assert!(
                (f64::from(seen[&to]) - expected).abs() < room,
                "{layout}: {to}: {} of {COUNT}, {outcome}",
                seen[&to]
            );
        }
    }
}
