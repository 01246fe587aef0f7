//! In: a rule's conditions and a packet on its way. Out: whether they hold, and how likely where chance decides.
//! Must not know chains, targets or hooks.

use std::net::IpAddr;

use super::rules::{Condition, Rule, State, Test};
use super::walk::{Place, Traveller};
use crate::tracer::ConnState;

/// The probability that the rule matches: 0, 1, or something between where it rolls dice. Notes on the traveller the
/// lists that the rule puts its sender on.
pub(super) fn probability(rule: &Rule, traveller: &mut Traveller, place: &Place<'_>) -> f64 {
    let mut probability = 1.0;
    for Condition { negated, test } in &rule.conditions {
        let mut holds = chance(test, traveller, place);
        if *negated {
            holds = 1.0 - holds;
        }
        probability *= holds;
        if probability == 0.0 {
            break;
        }
    }
    probability
}

/// Whether chance has a say in the rule.
pub(super) fn rolls_dice(rule: &Rule) -> bool {
    rule.conditions.iter().any(|condition| matches!(condition.test, Test::Random(_)))
}

fn chance(test: &Test, traveller: &mut Traveller, place: &Place<'_>) -> f64 {
    let packet = &traveller.packet;
    let holds = match test {
        Test::Random(probability) => return *probability,
        Test::RecentSet { list } => {
            traveller.remembered.insert(list.clone());
            true
        }
        Test::RecentCheck { list, seconds } => {
            let age = place.memory.get(list);
            age.is_some_and(|age| seconds.is_none_or(|seconds| *age <= seconds))
        }
        Test::Source(net) => net.contains(&packet.source.ip()),
        Test::Destination(net) => net.contains(&packet.destination.ip()),
        Test::InInterface(pattern) => interface_matches(pattern, place.in_interface),
        Test::Protocol(protocol) => *protocol == packet.protocol,
        Test::SourcePort(port) => *port == packet.source.port(),
        Test::DestinationPort(port) => *port == packet.destination.port(),
        Test::State(states) => states.iter().any(|state| in_state(*state, traveller)),
        Test::Mark { value, mask } => traveller.mark & mask == *value,
        Test::SourceLocal => is_local(packet.source.ip(), place),
        Test::DestinationLocal => is_local(packet.destination.ip(), place),
    };
    f64::from(u8::from(holds))
}

fn is_local(address: IpAddr, place: &Place<'_>) -> bool {
    place.node.is_local(address)
}

/// Where there is no incoming interface the kernel compares with the empty name.
fn interface_matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('+') {
        Some(prefix) => name.starts_with(prefix),
        None => name == pattern,
    }
}

fn in_state(state: State, traveller: &Traveller) -> bool {
    match state {
        State::New => traveller.packet.state == ConnState::New,
        State::Established => traveller.packet.state == ConnState::Established,
        State::Related => traveller.packet.state == ConnState::Related,
        State::Invalid => traveller.packet.state == ConnState::Invalid,
        State::Dnat => traveller.translated,
    }
}
