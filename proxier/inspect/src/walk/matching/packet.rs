//! What the packet itself is like.

use std::net::IpAddr;

use super::super::chains::{Place, Traveller};
use super::super::packet::{ConnState, Origin};
use super::Holds;
use crate::rules::{AddressKind, Bridged, Ports, SYN, Test, bits};
use proxier::model::Protocol;

/// What this node's processes send with.
const HOP_LIMIT: u32 = 64;
/// Options of the first packet of a TCP connection of Linux: end, nothing, segment size, window scale, selective
/// acknowledgement, time stamps.
const OPTIONS: [u8; 5] = [1, 2, 3, 4, 8];

pub(super) fn holds(test: &Test, traveller: &Traveller, place: &Place<'_>) -> Holds {
    let packet = &traveller.packet;
    let (source, destination) = (packet.source, packet.destination);
    let end = |of_source: bool| if of_source { source.ip() } else { destination.ip() };
    match test {
        Test::Source(net) => net.contains(&source.ip()).into(),
        Test::Destination(net) => net.contains(&destination.ip()).into(),
        Test::Bits { of_source, value, mask } => (bits(end(*of_source)) & mask == *value).into(),
        Test::AddressRange { of_source, from, to } => (bits(*from)..=bits(*to)).contains(&bits(end(*of_source))).into(),
        Test::Protocol(protocol) => (*protocol == packet.protocol).into(),
        Test::SourcePorts(ports) => within(ports, source.port()).into(),
        Test::DestinationPorts(ports) => within(ports, destination.port()).into(),
        Test::EitherPorts(ports) => (within(ports, source.port()) || within(ports, destination.port())).into(),
        Test::SourceLocal => place.node.is_local(source.ip()).into(),
        Test::DestinationLocal => place.node.is_local(destination.ip()).into(),
        Test::AddressKind { of_source, kinds, limit_in } => kind_of(end(*of_source), kinds, *limit_in, place),
        Test::PacketKind(kind) => {
            let found = place.node.kind(destination.ip());
            let found = if found == AddressKind::Local { AddressKind::Unicast } else { found };
            (found == *kind).into()
        }
        Test::Bridged(asked) => bridged(asked, traveller, place),
        Test::ReversePath { loose } => reverse_path(source.ip(), *loose, place),
        Test::DeviceGroup { incoming, value, mask } => device_group(*incoming, (*value, *mask), traveller, place),
        _ => header(test, traveller),
    }
}

fn header(test: &Test, traveller: &Traveller) -> Holds {
    let packet = &traveller.packet;
    let later = || Holds::unknown("a later packet is not known so exactly");
    let is_new = packet.state == ConnState::New;
    let from_here = packet.origin == Origin::Host;
    match test {
        Test::TcpFlags { .. } | Test::TcpOption(_) | Test::SegmentSize(..) if packet.protocol != Protocol::Tcp => {
            Holds::No
        }
        Test::TcpFlags { .. } | Test::TcpOption(_) | Test::SegmentSize(..) | Test::Chunks { .. } if !is_new => later(),
        Test::TcpFlags { mask, set } => (SYN & mask == *set).into(),
        Test::TcpOption(option) => {
            Holds::Assumed(OPTIONS.contains(option), "a first packet has the options that Linux sends".to_owned())
        }
        Test::SegmentSize(from, to) => among((536, 9216), (*from, *to), "its segment size"),
        Test::Chunks { .. } if packet.protocol != Protocol::Sctp => Holds::No,
        Test::Chunks { all, only, init, others } => {
            let holds = match (all, only) {
                (false, _) => *init,
                (true, false) => !others,
                (true, true) => *init && !others,
            };
            Holds::Assumed(holds, "an SCTP association begins with an INIT chunk".to_owned())
        }
        Test::Length(from, to) => {
            let head = if packet.source.is_ipv4() { 20 } else { 40 };
            let sizes = match packet.protocol {
                // A TCP head has 20 to 60 bytes, and a first packet mostly nothing more.
                Protocol::Tcp if is_new => (head + 20, head + 60),
                Protocol::Udp => (head + 8, u32::from(u16::MAX)),
                _ => (head, u32::from(u16::MAX)),
            };
            among(sizes, (*from, *to), "its length")
        }
        Test::HopLimit(..) if traveller.hops_changed => Holds::unknown("a rule before changes its TTL"),
        Test::HopLimit(from, to) if from_here => {
            let holds = (*from..=*to).contains(&HOP_LIMIT);
            Holds::Assumed(holds, "this node's own packets have TTL 64".to_owned())
        }
        Test::HopLimit(from, to) => among((1, 255), (*from, *to), "its TTL"),
        Test::TypeOfService { value, mask } => {
            let holds = traveller.type_of_service & mask == *value;
            Holds::Assumed(holds, "the sender sets no type of service".to_owned())
        }
        Test::Owner { .. } if !from_here => Holds::No,
        Test::Owner { root } => Holds::Assumed(*root, "this node's own packets come from a process of root".to_owned()),
        Test::SenderSocket(name) if name == "cgroup" && !from_here => Holds::No,
        // Decided by the rule's own doubt.
        Test::SenderSocket(_) => Holds::Yes(1.0),
        Test::OtherProtocol => Holds::No,
        _ => Holds::unknown("it is not known here"),
    }
}

fn within(ports: &[Ports], port: u16) -> bool {
    ports.iter().any(|(from, to)| (*from..=*to).contains(&port))
}

/// Whether what lies in one range lies in another.
fn among((least, most): (u32, u32), (from, to): (u32, u32), what: &str) -> Holds {
    match () {
        () if from <= least && most <= to => Holds::Yes(1.0),
        () if to < least || most < from => Holds::No,
        () => Holds::Unknown(format!("{what} is not known")),
    }
}

fn kind_of(address: IpAddr, kinds: &[AddressKind], limit_in: Option<bool>, place: &Place<'_>) -> Holds {
    let kind = place.node.kind(address);
    if kind == AddressKind::Local && limit_in.is_some() {
        return Holds::Unknown(format!("on which interface {address} is is not known"));
    }
    kinds.contains(&kind).into()
}

/// Bridges show their packets to the rules only where a sysctl says so.
fn bridged(asked: &Bridged, traveller: &Traveller, place: &Place<'_>) -> Holds {
    let node = place.node;
    let came_in = node.bridged.contains(place.in_interface);
    let leaves = match place.out_interface(traveller.packet.destination.ip()) {
        Some(name) => node.bridged.contains(name),
        None => !node.bridged.is_empty(),
    };
    let port = || Holds::unknown("by which port of a bridge it comes or goes is not known");
    match asked {
        Bridged::IsIn => came_in.into(),
        Bridged::In(_) if !came_in => Holds::No,
        Bridged::IsBridged | Bridged::IsOut | Bridged::Out(_) if !came_in || !leaves => Holds::No,
        _ => port(),
    }
}

fn reverse_path(source: IpAddr, loose: bool, place: &Place<'_>) -> Holds {
    let incoming = place.in_interface;
    if incoming == "lo" || incoming.is_empty() {
        return Holds::Yes(1.0);
    }
    if place.node.is_local(source) {
        return Holds::No;
    }
    match place.node.out_interface(source) {
        Some(name) => (loose || name == incoming).into(),
        None => Holds::Unknown(format!("where {source} is routed to is not known")),
    }
}

fn device_group(incoming: bool, (value, mask): (u32, u32), traveller: &Traveller, place: &Place<'_>) -> Holds {
    let name = match incoming {
        true => Some(place.in_interface),
        false => place.out_interface(traveller.packet.destination.ip()),
    };
    let group = name.and_then(|name| place.node.groups.get(name));
    let unknown = || Holds::unknown("the group of the interface is not known");
    group.map_or_else(unknown, |group| ((group ^ value) & mask == 0).into())
}
