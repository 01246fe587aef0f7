//! Whether a rule matches.
//!
//! In: a rule's meaning and a packet on its way. Out: whether it matches, and how likely where chance decides.
//! Must not know: chains, targets or hooks.

use std::net::IpAddr;

use super::chains::{Place, Traveller};
use super::packet::ConnState;
use crate::rules::{Condition, Meaning, SYN, State, Test};
use proxier::model::Protocol;

/// Whether something holds.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Holds {
    No,
    /// With this probability: 1 is certain.
    Yes(f64),
    /// It cannot be told from here, and why.
    Unknown(String),
}

/// Whether the rule matches. Notes on the traveller the lists that the rule puts its sender on.
pub(super) fn matches(meaning: &Meaning, traveller: &mut Traveller, place: &Place<'_>) -> Holds {
    let (mut probability, mut unknown) = (1.0, meaning.problem.clone());
    for Condition { negated, test } in &meaning.conditions {
        match holds(test, traveller, place) {
            Holds::Unknown(why) => unknown = unknown.or(Some(why)),
            Holds::No if *negated => {}
            Holds::Yes(chance) if *negated && chance < 1.0 => probability *= 1.0 - chance,
            Holds::Yes(chance) if !*negated && chance > 0.0 => probability *= chance,
            Holds::No | Holds::Yes(_) => return Holds::No,
        }
    }
    unknown.map_or(Holds::Yes(probability), Holds::Unknown)
}

fn holds(test: &Test, traveller: &mut Traveller, place: &Place<'_>) -> Holds {
    let packet = &traveller.packet;
    let within = |ports: &[(u16, u16)], port: u16| ports.iter().any(|(from, to)| (*from..=*to).contains(&port));
    let holds = match test {
        Test::Random(probability) => return Holds::Yes(*probability),
        Test::RecentSet { list } => {
            traveller.remembered.insert(list.clone());
            true
        }
        Test::RecentCheck { list, seconds } => {
            traveller.asked.insert(list.clone());
            let age = place.memory.get(list);
            age.is_some_and(|age| seconds.is_none_or(|seconds| *age <= seconds))
        }
        Test::Source(net) => net.contains(&packet.source.ip()),
        Test::Destination(net) => net.contains(&packet.destination.ip()),
        Test::InInterface(pattern) => interface_matches(pattern, place.in_interface),
        Test::OutInterface(pattern) => match place.out_interface(packet.destination.ip()) {
            Some(name) => interface_matches(pattern, name),
            None => {
                return Holds::Unknown(format!("it is not known where packets to {} leave", packet.destination.ip()));
            }
        },
        Test::Protocol(protocol) => *protocol == packet.protocol,
        Test::OtherProtocol => false,
        Test::SourcePorts(ports) => within(ports, packet.source.port()),
        Test::DestinationPorts(ports) => within(ports, packet.destination.port()),
        Test::State(states) => states.iter().any(|state| in_state(*state, traveller)),
        Test::Mark { value, mask } => traveller.mark & mask == *value,
        Test::SourceLocal => is_local(packet.source.ip(), place),
        Test::DestinationLocal => is_local(packet.destination.ip(), place),
        Test::Set { name, of_source } => match place.node.held.sets.get(name) {
            Some(set) => set.has([packet.source, packet.destination], packet.protocol.number(), of_source),
            None => return Holds::Unknown(format!("set {name} was not read")),
        },
        // It is not known which interfaces are ports. Where kube-proxy asks, little depends on it.
        Test::FromBridge => false,
        Test::Ipvs(key) => traveller.server == Some(*key),
        Test::TcpFlags { mask, set } => match (packet.protocol, packet.state) {
            (Protocol::Tcp, ConnState::New) => SYN & mask == *set,
            (Protocol::Tcp, _) => return Holds::Unknown("a later packet's flags are not known".to_owned()),
            _ => false,
        },
    };
    if holds { Holds::Yes(1.0) } else { Holds::No }
}

fn is_local(address: IpAddr, place: &Place<'_>) -> bool {
    place.node.is_local(address)
}

/// Where there is no such interface the kernel compares with the empty name.
fn interface_matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('+') {
        Some(prefix) => name.starts_with(prefix),
        None => name == pattern,
    }
}

fn in_state(state: State, traveller: &Traveller) -> bool {
    let is = |state| traveller.packet.state == state && !traveller.untracked;
    match state {
        State::New => is(ConnState::New),
        State::Established => is(ConnState::Established),
        State::Related => is(ConnState::Related),
        State::Invalid => is(ConnState::Invalid),
        State::Untracked => traveller.untracked,
        State::Dnat => traveller.translated,
    }
}
