//! Evaluates matches on the packet itself.

use std::net::{IpAddr, SocketAddr};

use super::super::chains::{HookContext, TracedPacket};
use super::super::packet::{ConnState, Origin};
use super::MatchResult;
use crate::rules::{AddressKind, PhysdevMatch, Ports, SYN, Test, bits};
use proxier::model::Protocol;

/// The TTL or hop limit of packets from this node (`net.ipv4.ip_default_ttl`).
const HOP_LIMIT: u32 = 64;
/// Options of the first packet of a TCP connection of Linux: end, nothing, segment size, window scale, selective
/// acknowledgement, time stamps.
const OPTIONS: [u8; 5] = [1, 2, 3, 4, 8];

pub(super) fn holds(test: &Test, traced: &TracedPacket, context: &HookContext<'_>) -> MatchResult {
    let packet = &traced.packet;
    let (source, destination) = (packet.source, packet.destination);
    let end = |of_source: bool| if of_source { source.ip() } else { destination.ip() };
    match test {
        Test::Source(net) => net.contains(&source.ip()).into(),
        Test::Destination(net) => net.contains(&destination.ip()).into(),
        Test::Bits { of_source, value, mask } => (bits(end(*of_source)) & mask == *value).into(),
        Test::AddressRange { of_source, from, to } => (bits(*from)..=bits(*to)).contains(&bits(end(*of_source))).into(),
        Test::Protocol(protocol) => (*protocol == packet.protocol && traced.error.is_none()).into(),
        Test::Icmp { kind, has_code } => icmp(*kind, *has_code, traced),
        Test::SourcePorts(ports) => within(ports, source.port()).into(),
        Test::DestinationPorts(ports) => within(ports, destination.port()).into(),
        Test::EitherPorts(ports) => (within(ports, source.port()) || within(ports, destination.port())).into(),
        Test::SourceLocal => context.node.is_local(source.ip()).into(),
        Test::DestinationLocal => context.node.is_local(destination.ip()).into(),
        Test::AddressKind { of_source, kinds, limit_in } => kind_of(end(*of_source), kinds, *limit_in, context),
        Test::PacketKind(kind) => {
            let found = context.node.kind(destination.ip());
            let found = if found == AddressKind::Local { AddressKind::Unicast } else { found };
            (found == *kind).into()
        }
        // Without a socket, its options do not matter.
        Test::SenderSocket { name, any_address } if name == "socket" && no_socket(traced, *any_address, context) => {
            MatchResult::No
        }
        Test::Bridged(asked) => bridged(asked, traced, context),
        Test::ReversePath { loose } => reverse_path(source.ip(), *loose, context),
        Test::DeviceGroup { incoming, value, mask } => device_group(*incoming, (*value, *mask), traced, context),
        _ => header(test, traced),
    }
}

fn header(test: &Test, traced: &TracedPacket) -> MatchResult {
    let packet = &traced.packet;
    let later = || MatchResult::unknown("a later packet is not known so exactly");
    let is_new = packet.state == ConnState::New;
    let from_here = packet.origin == Origin::Host;
    match test {
        Test::TcpFlags { .. } | Test::TcpOption(_) | Test::SegmentSize(..) if packet.protocol != Protocol::Tcp => {
            MatchResult::No
        }
        Test::TcpFlags { .. } | Test::TcpOption(_) | Test::SegmentSize(..) | Test::Chunks { .. } if !is_new => later(),
        Test::TcpFlags { mask, set } => (SYN & mask == *set).into(),
        Test::TcpOption(option) => {
            MatchResult::Assumed(OPTIONS.contains(option), "a first packet has the options that Linux sends".to_owned())
        }
        Test::SegmentSize(from, to) => among((536, 9216), (*from, *to), "its segment size"),
        Test::Chunks { .. } if packet.protocol != Protocol::Sctp => MatchResult::No,
        Test::Chunks { all, only, init, others } => {
            let holds = match (all, only) {
                (false, _) => *init,
                (true, false) => !others,
                (true, true) => *init && !others,
            };
            MatchResult::Assumed(holds, "an SCTP association begins with an INIT chunk".to_owned())
        }
        Test::Length(from, to) => {
            let is_new = is_new && traced.error.is_none();
            let head = if packet.source.is_ipv4() { 20 } else { 40 };
            let sizes = match packet.protocol {
                // A TCP header has 20 to 60 bytes, and a SYN normally has no payload.
                Protocol::Tcp if is_new => (head + 20, head + 60),
                Protocol::Udp if traced.error.is_none() => (head + 8, u32::from(u16::MAX)),
                _ => (head, u32::from(u16::MAX)),
            };
            among(sizes, (*from, *to), "its length")
        }
        Test::HopLimit(from, to) if traced.hops.is_changed() => among(traced.hops.range(), (*from, *to), "its TTL"),
        Test::HopLimit(from, to) if from_here => {
            let holds = (*from..=*to).contains(&HOP_LIMIT);
            MatchResult::Assumed(holds, "this node's own packets have TTL 64".to_owned())
        }
        Test::HopLimit(from, to) => among((1, 255), (*from, *to), "its TTL"),
        Test::TypeOfService { value, mask } => {
            let holds = traced.type_of_service & mask == *value;
            MatchResult::Assumed(holds, "the sender sets no type of service".to_owned())
        }
        Test::Owner { .. } if !from_here => MatchResult::No,
        Test::Owner { root } => {
            MatchResult::Assumed(*root, "this node's own packets come from a process of root".to_owned())
        }
        Test::SenderSocket { name, .. } if name == "cgroup" && !from_here => MatchResult::No,
        // The parser records a doubt for the rule.
        Test::SenderSocket { .. } => MatchResult::Yes(1.0),
        Test::OtherProtocol => MatchResult::No,
        _ => MatchResult::unknown("it is not known here"),
    }
}

/// Whether the packet is an ICMP error of that type. Of its code nothing is known.
fn icmp(kind: Option<u8>, has_code: bool, traced: &TracedPacket) -> MatchResult {
    match traced.error {
        None => MatchResult::No,
        Some(error) if kind.is_some_and(|kind| kind != error) => MatchResult::No,
        Some(_) if has_code => MatchResult::unknown("the code of the ICMP error is not known"),
        Some(_) => MatchResult::Yes(1.0),
    }
}

/// Whether no socket of the node receives the first packet of a connection; `xt_socket` looks up its destination.
fn no_socket(traced: &TracedPacket, any_address: bool, context: &HookContext<'_>) -> bool {
    let packet = &traced.packet;
    let Some(sockets) = context.node.sockets.as_ref().filter(|_| packet.state == ConnState::New) else { return false };
    let number = packet.protocol.number();
    let takes = |(protocol, at): &(u8, SocketAddr)| {
        let here = at.ip() == packet.destination.ip() || (any_address && at.ip().is_unspecified());
        *protocol == number && at.port() == packet.destination.port() && here
    };
    matches!(packet.protocol, Protocol::Tcp | Protocol::Udp) && !sockets.iter().any(takes)
}

fn within(ports: &[Ports], port: u16) -> bool {
    ports.iter().any(|(from, to)| (*from..=*to).contains(&port))
}

/// Whether a value between `least` and `most` is between `from` and `to`; unknown if the ranges only overlap.
fn among((least, most): (u32, u32), (from, to): (u32, u32), what: &str) -> MatchResult {
    match () {
        () if from <= least && most <= to => MatchResult::Yes(1.0),
        () if to < least || most < from => MatchResult::No,
        () => MatchResult::Unknown(format!("{what} is not known")),
    }
}

fn kind_of(address: IpAddr, kinds: &[AddressKind], limit_in: Option<bool>, context: &HookContext<'_>) -> MatchResult {
    let kind = context.node.kind(address);
    if kind == AddressKind::Local && limit_in.is_some() {
        return MatchResult::Unknown(format!("on which interface {address} is is not known"));
    }
    kinds.contains(&kind).into()
}

/// Bridged packets pass iptables only if a sysctl enables it.
fn bridged(asked: &PhysdevMatch, traced: &TracedPacket, context: &HookContext<'_>) -> MatchResult {
    let node = context.node;
    let came_in = node.bridged.contains(context.in_interface);
    let leaves = match context.out_interface(traced) {
        Some(name) => node.bridged.contains(name),
        None => !node.bridged.is_empty(),
    };
    let port = || MatchResult::unknown("by which port of a bridge it comes or goes is not known");
    match asked {
        PhysdevMatch::IsIn => came_in.into(),
        PhysdevMatch::In(_) if !came_in => MatchResult::No,
        PhysdevMatch::IsBridged | PhysdevMatch::IsOut | PhysdevMatch::Out(_) if !came_in || !leaves => MatchResult::No,
        _ => port(),
    }
}

fn reverse_path(source: IpAddr, loose: bool, context: &HookContext<'_>) -> MatchResult {
    let incoming = context.in_interface;
    if incoming == "lo" || incoming.is_empty() {
        return MatchResult::Yes(1.0);
    }
    if context.node.is_local(source) {
        return MatchResult::No;
    }
    if context.node.policy.any {
        return MatchResult::unknown("policy routing rules decide where answers leave");
    }
    match context.node.out_interface(source) {
        Some(name) => (loose || name == incoming).into(),
        None => MatchResult::Unknown(format!("where {source} is routed to is not known")),
    }
}

fn device_group(
    incoming: bool,
    (value, mask): (u32, u32),
    traced: &TracedPacket,
    context: &HookContext<'_>,
) -> MatchResult {
    let name = match incoming {
        true => Some(context.in_interface),
        false => context.out_interface(traced),
    };
    let group = name.and_then(|name| context.node.groups.get(name));
    let unknown = || MatchResult::unknown("the group of the interface is not known");
    group.map_or_else(unknown, |group| ((group ^ value) & mask == 0).into())
}
