//! Whether a rule matches.
//!
//! In: a rule's meaning and a packet on its way. Out: whether it matches, and how likely where chance decides.
//! Must not know: chains, targets or hooks.

mod memory;
mod packet;

pub(super) use memory::Touched;

use super::chains::{Place, Traveller};
use super::packet::{ConnState, Origin};
use crate::rules::{Condition, Connection, Ipvs, Meaning, State, Test};

/// Whether something holds.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Holds {
    No,
    /// With this probability: 1 is certain.
    Yes(f64),
    /// By an assumption.
    Assumed(bool, String),
    /// It cannot be told from here, and why.
    Unknown(String),
}

impl Holds {
    pub(super) fn unknown(why: impl Into<String>) -> Self {
        Self::Unknown(why.into())
    }

    fn not(self) -> Self {
        match self {
            Self::No => Self::Yes(1.0),
            Self::Yes(chance) if chance >= 1.0 => Self::No,
            Self::Yes(chance) => Self::Yes(1.0 - chance),
            Self::Assumed(holds, why) => Self::Assumed(!holds, why),
            unknown @ Self::Unknown(_) => unknown,
        }
    }
}

impl From<bool> for Holds {
    fn from(holds: bool) -> Self {
        if holds { Self::Yes(1.0) } else { Self::No }
    }
}

/// Whether a rule matches, and what had to be assumed to tell.
pub(super) struct Matched {
    pub(super) holds: Holds,
    pub(super) assumed: Vec<String>,
}

/// Whether the rule matches. Notes on the traveller the lists that the rule puts its sender on.
pub(super) fn matches(meaning: &Meaning, traveller: &mut Traveller, place: &Place<'_>) -> Matched {
    let (mut probability, mut unknown) = (1.0, meaning.problem.clone());
    let (mut for_it, mut against) = (Vec::new(), Vec::new());
    for Condition { negated, test } in &meaning.conditions {
        // Conditions behind one that fails are not looked at: `recent` would remember the sender.
        let so_far = match () {
            () if !against.is_empty() => SoFar::Fails,
            () if unknown.is_some() || probability < 1.0 => SoFar::Unknown,
            () => SoFar::Holds,
        };
        let found = holds(test, traveller, place, so_far);
        match if *negated { found.not() } else { found } {
            Holds::Unknown(why) => unknown = unknown.or(Some(why)),
            Holds::Assumed(true, why) => for_it.push(why),
            Holds::Assumed(false, why) => against.push(why),
            Holds::Yes(chance) if chance > 0.0 => probability *= chance,
            Holds::No | Holds::Yes(_) => return Matched { holds: Holds::No, assumed: Vec::new() },
        }
    }
    if !against.is_empty() {
        return Matched { holds: Holds::No, assumed: against };
    }
    Matched { holds: unknown.map_or(Holds::Yes(probability), Holds::Unknown), assumed: for_it }
}

/// Whether what a rule asks before holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SoFar {
    Holds,
    Fails,
    Unknown,
}

fn holds(test: &Test, traveller: &mut Traveller, place: &Place<'_>, so_far: SoFar) -> Holds {
    let packet = &traveller.packet;
    match test {
        Test::Random(probability) => Holds::Yes(*probability),
        Test::Recent(recent) => memory::recent(recent, traveller, place, so_far),
        Test::Set { name, of_source, return_nomatch } => {
            memory::in_set(name, of_source, *return_nomatch, traveller, place)
        }
        Test::InInterface(pattern) => interface_matches(pattern, place.in_interface).into(),
        Test::OutInterface(pattern) => match place.out_interface(packet.destination.ip()) {
            Some(name) => interface_matches(pattern, name).into(),
            None => Holds::Unknown(format!("it is not known where packets to {} leave", packet.destination.ip())),
        },
        Test::State(states) => states.iter().any(|state| in_state(*state, traveller, place)).into(),
        Test::Connection(asked) => connection(asked, traveller, place),
        Test::Mark { value, mask } => match &traveller.mark_unknown {
            Some(why) => Holds::unknown(why),
            None => (traveller.mark & mask == *value).into(),
        },
        // Without a connection there is no mark, and the match fails.
        Test::ConnectionMark { .. } if !has_connection(traveller, place) => Holds::No,
        Test::ConnectionMark { value, mask } => match traveller.connection_mark {
            Some(mark) => (mark & mask == *value).into(),
            None => Holds::unknown("the mark of a known connection is not read"),
        },
        Test::Ipvs(asked) => virtual_server(asked, traveller),
        Test::Assumed { holds, why } => Holds::Assumed(*holds, (*why).to_owned()),
        _ => packet::holds(test, traveller, place),
    }
}

/// Whether connection tracking has the packet.
fn has_connection(traveller: &Traveller, place: &Place<'_>) -> bool {
    place.tracked && !traveller.untracked && traveller.packet.state != ConnState::Invalid
}

fn in_state(state: State, traveller: &Traveller, place: &Place<'_>) -> bool {
    let known = has_connection(traveller, place);
    let is = |state| traveller.packet.state == state && known;
    match state {
        State::New => is(ConnState::New),
        State::Established => is(ConnState::Established),
        State::Related => is(ConnState::Related),
        State::Invalid => !known && !traveller.untracked,
        State::Untracked => traveller.untracked,
        State::Dnat => known && traveller.translated,
        State::Snat => known && traveller.masqueraded,
    }
}

fn connection(asked: &Connection, traveller: &Traveller, place: &Place<'_>) -> Holds {
    if !has_connection(traveller, place) {
        return Holds::No;
    }
    let is_new = traveller.packet.state == ConnState::New;
    let later = || Holds::unknown("what a later packet's connection was like is not known");
    let end = |reply: bool, of_source: bool| {
        let (source, destination) =
            if reply { (traveller.packet.destination, traveller.packet.source) } else { traveller.sent };
        if of_source { source } else { destination }
    };
    match asked {
        Connection::Protocol(protocol) => (*protocol == Some(traveller.packet.protocol)).into(),
        _ if !is_new => later(),
        Connection::Address { reply, of_source, net } => net.contains(&end(*reply, *of_source).ip()).into(),
        Connection::Port { reply, of_source, ports: (from, to) } => {
            (*from..=*to).contains(&end(*reply, *of_source).port()).into()
        }
        // A first packet's connection is confirmed only when it leaves, or comes back in through lo.
        Connection::Status { seen: true } if place.in_interface == "lo" && traveller.packet.origin == Origin::Host => {
            later()
        }
        Connection::Status { .. } => Holds::No,
        Connection::Expires => Holds::unknown("how long a connection lasts is not known"),
        Connection::Reply(reply) => (!reply).into(),
    }
}

fn virtual_server(asked: &Ipvs, traveller: &Traveller) -> Holds {
    let Some(server) = traveller.server else { return asked.none.into() };
    if asked.control {
        return Holds::unknown("connections that control others are not followed");
    }
    let fits = |found: Option<(bool, bool)>| found.is_none_or(|(not, same)| same != not);
    let protocol = asked.protocol.map(|(not, number)| (not, number == server.protocol));
    let address = asked.address.map(|(not, net)| (not, net.contains(&server.address.ip())));
    let port = asked.port.map(|(not, port)| (not, port == server.address.port()));
    // A packet that a server got is of the original direction.
    let reply = asked.reply.map(|(not, reply)| (not, !reply));
    let masquerade = asked.masquerade.map(|(not, masquerade)| (not, masquerade == traveller.forwarded.is_none()));
    (!asked.none && [protocol, address, port, reply, masquerade].into_iter().all(fits)).into()
}

/// Where there is no such interface the kernel compares with the empty name.
fn interface_matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('+') {
        Some(prefix) => name.starts_with(prefix),
        None => name == pattern,
    }
}
