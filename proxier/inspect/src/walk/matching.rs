//! Evaluates whether a rule matches a packet, and with which probability.

mod memory;
mod packet;

pub(super) use memory::ListChange;

use super::chains::{HookContext, TracedPacket};
use super::packet::{ConnState, Origin};
use crate::rules::{Condition, ConntrackMatch, Counters, CtState, IpvsMatch, Meaning, Test};

/// The result of evaluating a condition.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum MatchResult {
    No,
    /// With this probability: 1 is certain.
    Yes(f64),
    /// By an assumption.
    Assumed(bool, String),
    /// Undecidable, with the reason.
    Unknown(String),
}

impl MatchResult {
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

impl From<bool> for MatchResult {
    fn from(holds: bool) -> Self {
        if holds { Self::Yes(1.0) } else { Self::No }
    }
}

/// Whether a rule matches, with the assumptions made.
pub(super) struct RuleMatch {
    pub(super) holds: MatchResult,
    pub(super) assumed: Vec<String>,
    /// Whether the next packet may get the other result, because a limit is used up or not.
    pub(super) is_limited: bool,
}

/// Fewer bytes of a quota match no packet.
const LEAST_PACKET: u64 = 20;
/// Any first packet is smaller, so with this many bytes left none was refused for its size.
const MOST_PACKET: u64 = 1500;

/// Whether the rule matches. `counters`: the rule's. Records in `traced` the `recent` lists that the rule adds the sender to.
pub(super) fn matches(
    meaning: &Meaning,
    counters: Counters,
    traced: &mut TracedPacket,
    context: &HookContext<'_>,
) -> RuleMatch {
    let mut limits = (0, 0);
    let (mut probability, mut unknown) = (1.0, meaning.problem.clone());
    let (mut for_it, mut against) = (Vec::new(), Vec::new());
    for Condition { negated, test } in &meaning.conditions {
        // The kernel stops at the first condition that fails: a later `recent` must not add the sender.
        let prior = match () {
            () if !against.is_empty() => PriorConditions::Fails,
            () if unknown.is_some() || probability < 1.0 => PriorConditions::Unknown,
            () => PriorConditions::Hold,
        };
        let found = match test {
            Test::Quota { bytes, after } => quota(*bytes, *after, counters),
            _ => holds(test, traced, context, prior),
        };
        if let (Test::Limited { .. }, MatchResult::Assumed(holds, _)) = (test, &found) {
            let (met, missed) = &mut limits;
            *(if holds != negated { met } else { missed }) += 1;
        }
        match if *negated { found.not() } else { found } {
            MatchResult::Unknown(why) => unknown = unknown.or(Some(why)),
            MatchResult::Assumed(true, why) => for_it.push(why),
            MatchResult::Assumed(false, why) => against.push(why),
            MatchResult::Yes(chance) if chance > 0.0 => probability *= chance,
            MatchResult::No | MatchResult::Yes(_) => return RuleMatch::no(),
        }
    }
    if !against.is_empty() {
        // It would match if the limits alone were against it and were not.
        let is_limited = limits.1 == against.len() && unknown.is_none() && probability >= 1.0;
        return RuleMatch { holds: MatchResult::No, assumed: against, is_limited };
    }
    let is_limited = limits.0 > 0 && unknown.is_none();
    RuleMatch {
        holds: unknown.map_or(MatchResult::Yes(probability), MatchResult::Unknown),
        assumed: for_it,
        is_limited,
    }
}

impl RuleMatch {
    fn no() -> Self {
        Self { holds: MatchResult::No, assumed: Vec::new(), is_limited: false }
    }
}

/// Whether a quota is used up, by the bytes that its rule counted: without `after` those are the ones that were used of it. A
/// packet that does not fit uses up the rest (`xt_quota`).
fn quota(bytes: u64, after: bool, counters: Counters) -> MatchResult {
    let left = bytes.saturating_sub(counters.bytes);
    match after {
        true if counters.packets > 0 => {
            MatchResult::Assumed(true, "its quota is used up, as it has counted packets".to_owned())
        }
        false if left < LEAST_PACKET => MatchResult::Assumed(false, "its quota is used up, by its counter".to_owned()),
        false if left >= MOST_PACKET => {
            MatchResult::Assumed(true, "its quota is not used up, by its counter".to_owned())
        }
        _ => MatchResult::unknown("whether its quota is used up is not known"),
    }
}

/// The result of a rule's preceding conditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PriorConditions {
    Hold,
    Fails,
    Unknown,
}

fn holds(test: &Test, traced: &mut TracedPacket, context: &HookContext<'_>, prior: PriorConditions) -> MatchResult {
    let packet = &traced.packet;
    match test {
        Test::Random(probability) => MatchResult::Yes(*probability),
        Test::Recent(recent) => memory::recent(recent, traced, context, prior),
        Test::Set { name, of_source, return_nomatch } => {
            memory::in_set(name, of_source, *return_nomatch, traced, context)
        }
        Test::InInterface(pattern) => interface_matches(pattern, context.in_interface).into(),
        Test::OutInterface(pattern) => match context.out_interface(traced) {
            Some(name) => interface_matches(pattern, name).into(),
            None => MatchResult::Unknown(format!("it is not known where packets to {} leave", packet.destination.ip())),
        },
        Test::State(states) => states.iter().any(|state| in_state(*state, traced, context)).into(),
        Test::Connection(asked) => connection(asked, traced, context),
        Test::Mark { value, mask } => match &traced.mark_unknown {
            Some(why) => MatchResult::unknown(why),
            None => (traced.mark & mask == *value).into(),
        },
        // Without a connection there is no mark, and the match fails.
        Test::ConnectionMark { .. } if !has_connection(traced, context) => MatchResult::No,
        Test::ConnectionMark { value, mask } => match traced.connection_mark {
            Some(mark) => (mark & mask == *value).into(),
            None => MatchResult::unknown("the mark of a known connection is not read"),
        },
        Test::Ipvs(asked) => virtual_server(asked, traced),
        Test::Assumed { holds, why } | Test::Limited { holds, why } => MatchResult::Assumed(*holds, (*why).to_owned()),
        _ => packet::holds(test, traced, context),
    }
}

/// Whether the packet has a conntrack entry.
fn has_connection(traced: &TracedPacket, context: &HookContext<'_>) -> bool {
    context.tracked && !traced.untracked && traced.packet.state != ConnState::Invalid
}

fn in_state(state: CtState, traced: &TracedPacket, context: &HookContext<'_>) -> bool {
    let known = has_connection(traced, context);
    let is = |state| traced.packet.state == state && known;
    match state {
        CtState::New => is(ConnState::New),
        CtState::Established => is(ConnState::Established) || is(ConnState::EstablishedDnat),
        CtState::Related => is(ConnState::Related),
        CtState::Invalid => !known && !traced.untracked,
        CtState::Untracked => traced.untracked,
        CtState::Dnat => known && (traced.translated || is(ConnState::EstablishedDnat)),
        CtState::Snat => known && traced.masqueraded,
    }
}

fn connection(asked: &ConntrackMatch, traced: &TracedPacket, context: &HookContext<'_>) -> MatchResult {
    if !has_connection(traced, context) {
        return MatchResult::No;
    }
    let is_new = traced.packet.state == ConnState::New;
    let later = || MatchResult::unknown("what a later packet's connection was like is not known");
    let end = |reply: bool, of_source: bool| {
        let (source, destination) = if reply { (traced.packet.destination, traced.packet.source) } else { traced.sent };
        if of_source { source } else { destination }
    };
    match asked {
        ConntrackMatch::Protocol(protocol) => (*protocol == Some(traced.packet.protocol)).into(),
        _ if !is_new => later(),
        ConntrackMatch::Address { reply, of_source, net } => net.contains(&end(*reply, *of_source).ip()).into(),
        ConntrackMatch::Port { reply, of_source, ports: (from, to) } => {
            (*from..=*to).contains(&end(*reply, *of_source).port()).into()
        }
        // A first packet's connection is confirmed only when it leaves, or comes back in through lo.
        ConntrackMatch::Status { seen: true }
            if context.in_interface == "lo" && traced.packet.origin == Origin::Host =>
        {
            later()
        }
        ConntrackMatch::Status { .. } => MatchResult::No,
        ConntrackMatch::Expires => MatchResult::unknown("how long a connection lasts is not known"),
        ConntrackMatch::Reply(reply) => (!reply).into(),
    }
}

fn virtual_server(asked: &IpvsMatch, traced: &TracedPacket) -> MatchResult {
    let Some(server) = traced.server else { return asked.none.into() };
    if asked.control {
        return MatchResult::unknown("connections that control others are not followed");
    }
    let fits = |found: Option<(bool, bool)>| found.is_none_or(|(not, same)| same != not);
    let protocol = asked.protocol.map(|(not, number)| (not, number == server.protocol));
    let address = asked.address.map(|(not, net)| (not, net.contains(&server.address.ip())));
    let port = asked.port.map(|(not, port)| (not, port == server.address.port()));
    // A packet to a virtual server is in original direction.
    let reply = asked.reply.map(|(not, reply)| (not, !reply));
    let masquerade = asked.masquerade.map(|(not, masquerade)| (not, masquerade == traced.forwarded.is_none()));
    (!asked.none && [protocol, address, port, reply, masquerade].into_iter().all(fits)).into()
}

/// Whether an interface name matches a pattern. The kernel compares with an empty name where there is no interface.
fn interface_matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('+') {
        Some(prefix) => name.starts_with(prefix),
        None => name == pattern,
    }
}
