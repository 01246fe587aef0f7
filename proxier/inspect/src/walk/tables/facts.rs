//! Loads packet fields for nf_tables expressions.
//!
//! A load yields bytes in the kernel's representation, ends the rule, or fails because the field is unknown.

use std::net::IpAddr;

use netfilter::nft::{Load, PayloadBase};

use super::super::chains::TracedPacket;
use super::super::packet::ConnState;
use super::TableScope;
use crate::rules::AddressKind;
use proxier::model::Protocol;

const INVALID: u32 = 1;
const ESTABLISHED: u32 = 2;
const RELATED: u32 = 4;
const NEW: u32 = 8;
const UNTRACKED: u32 = 64;
/// `IPS_*`
const SEEN_AND_CONFIRMED: u32 = 2 | 8;
const SNAT: u32 = 16;
const DNAT: u32 = 32;
/// `RTN_*`
const UNICAST: u32 = 1;
const LOCAL: u32 = 2;
const BROADCAST: u32 = 3;
const MULTICAST: u32 = 5;
/// `NFTA_FIB_F_*` and `NFT_FIB_RESULT_*`
const BY_SOURCE: u32 = 1;
const BY_INTERFACE: u32 = 8 | 16;
const PRESENT: u32 = 32;
const RESULT_INDEX: u32 = 1;
const RESULT_NAME: u32 = 2;
const SYN: u8 = 2;
/// `IP_DF` in the byte of the flags.
const DONT_FRAGMENT: u8 = 0x40;
const ICMP: u8 = 1;
const ICMP6: u8 = 58;
const NAME_SIZE: usize = 16;

/// Why a field was not loaded.
#[derive(Debug)]
pub(super) enum LoadFailure {
    /// The packet has no such field: the rule does not match.
    None,
    /// The value is unknown.
    Unknown(String),
}

type Loaded = Result<Vec<u8>, LoadFailure>;

fn unknown(what: impl Into<String>) -> Loaded {
    Err(LoadFailure::Unknown(what.into()))
}

/// The bytes of a field, except random numbers.
pub(super) fn load(from: Load, width: u32, traced: &TracedPacket, scope: &TableScope<'_>) -> Loaded {
    let packet = &traced.packet;
    let number = |number: u32| Ok(number.to_ne_bytes().to_vec());
    match from {
        Load::Payload(origin, offset) => payload(origin, offset, width, traced),
        Load::Mark => match &traced.mark_unknown {
            Some(why) => unknown(why.clone()),
            None => number(traced.mark),
        },
        Load::InputName => Ok(name(scope.context.in_interface)),
        Load::OutputName => Ok(name(out(traced, scope)?)),
        Load::InputIndex => index(scope.context.in_interface, scope),
        Load::OutputIndex => index(out(traced, scope)?, scope),
        Load::Family => Ok(vec![scope.context.family.nfproto()]),
        Load::Protocol => Ok(vec![protocol(traced)]),
        // `ETH_P_IP`, `ETH_P_IPV6`, `PACKET_HOST`.
        Load::Meta(1) => Ok(if packet.source.is_ipv4() { vec![8, 0] } else { vec![0x86, 0xdd] }),
        Load::Meta(19) => Ok(vec![0]),
        Load::Meta(key) => unknown(format!("meta {key} is not known here")),
        Load::CtState => number(state(traced, scope)),
        Load::CtDirection | Load::CtStatus | Load::CtMark | Load::Ct(..)
            if !scope.tracked || traced.untracked || packet.state == ConnState::Invalid =>
        {
            Err(LoadFailure::None)
        }
        Load::CtDirection if packet.state == ConnState::New => Ok(vec![0]),
        Load::CtDirection => unknown("which direction a later packet has is not known"),
        Load::CtStatus => {
            let translated = traced.translated || packet.state == ConnState::EstablishedDnat;
            let bits = [(translated, DNAT), (traced.masqueraded, SNAT)];
            let later = if packet.state == ConnState::New { 0 } else { SEEN_AND_CONFIRMED };
            number(bits.iter().filter(|(set, _)| *set).map(|(_, bit)| bit).sum::<u32>() | later)
        }
        Load::CtMark => match traced.connection_mark {
            Some(mark) => number(mark),
            None => unknown("the mark of a known connection is not read"),
        },
        Load::Ct(key, direction) => connection(key, direction, traced),
        Load::SourceType => number(kind(packet.source.ip(), scope)),
        Load::DestinationType => number(kind(packet.destination.ip(), scope)),
        Load::Fib { result, flags } => route(result, flags, traced, scope),
        Load::Random { .. } | Load::Incremental { .. } => unknown("a choice by chance"),
    }
}

fn name(interface: &str) -> Vec<u8> {
    let mut bytes = interface.as_bytes().to_vec();
    bytes.resize(NAME_SIZE, 0);
    bytes
}

fn out<'t>(traced: &'t TracedPacket, scope: &TableScope<'_>) -> Result<&'t str, LoadFailure> {
    let to = traced.packet.destination.ip();
    scope
        .context
        .out_interface(traced)
        .ok_or_else(|| LoadFailure::Unknown(format!("it is not known where packets to {to} leave")))
}

fn index(interface: &str, scope: &TableScope<'_>) -> Loaded {
    let known = match interface {
        "" => Some(0),
        // `lo` is the first device of every network namespace.
        "lo" => Some(1),
        name => scope.context.node.interfaces.get(name).copied(),
    };
    known
        .map(|number| number.to_ne_bytes().to_vec())
        .ok_or_else(|| LoadFailure::Unknown(format!("the number of interface {interface} is not known")))
}

fn state(traced: &TracedPacket, scope: &TableScope<'_>) -> u32 {
    match traced.packet.state {
        _ if traced.untracked => UNTRACKED,
        _ if !scope.tracked => INVALID,
        ConnState::New => NEW,
        ConnState::Established | ConnState::EstablishedDnat => ESTABLISHED,
        ConnState::Related => RELATED,
        ConnState::Invalid => INVALID,
    }
}

fn kind(address: IpAddr, scope: &TableScope<'_>) -> u32 {
    match scope.context.node.kind(address) {
        AddressKind::Local => LOCAL,
        AddressKind::Broadcast => BROADCAST,
        AddressKind::Multicast => MULTICAST,
        AddressKind::Unicast | AddressKind::Other => UNICAST,
    }
}

fn route(result: u32, flags: u32, traced: &TracedPacket, scope: &TableScope<'_>) -> Loaded {
    let packet = &traced.packet;
    let address = if flags & BY_SOURCE != 0 { packet.source.ip() } else { packet.destination.ip() };
    if !matches!(result, RESULT_INDEX | RESULT_NAME) {
        let kind = kind(address, scope);
        if kind == LOCAL && flags & BY_INTERFACE != 0 {
            return unknown(format!("on which interface {address} is is not known"));
        }
        return Ok(kind.to_ne_bytes().to_vec());
    }
    let node = scope.context.node;
    if node.policy.any && !node.is_local(address) {
        return unknown(format!("policy routing rules decide where {address} is routed to"));
    }
    let incoming = scope.context.in_interface;
    let found = match node.out_interface(address) {
        // Packets from the node itself pass reverse path checks.
        _ if incoming == "lo" => "lo",
        _ if node.is_local(address) => "lo",
        Some(name) if flags & BY_INTERFACE == 0 || name == incoming => name,
        Some(_) => "",
        None => return unknown(format!("where {address} is routed to is not known")),
    };
    match result {
        RESULT_INDEX if flags & PRESENT != 0 => Ok(u32::from(!found.is_empty()).to_ne_bytes().to_vec()),
        RESULT_INDEX => index(found, scope),
        _ => Ok(name(found)),
    }
}

/// `NFT_CT_*` of the tuples of a connection, from its first packet.
fn connection(key: u32, direction: Option<u8>, traced: &TracedPacket) -> Loaded {
    let (source, destination) = traced.sent;
    let whole = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    if traced.packet.state != ConnState::New || direction == Some(1) {
        return unknown(format!("ct {key} of that direction is not known"));
    }
    match key {
        7 => Ok(vec![if source.is_ipv4() { 2 } else { 10 }]),
        8 | 19 | 21 => Ok(whole(source.ip())),
        9 | 20 | 22 => Ok(whole(destination.ip())),
        10 => Ok(vec![traced.packet.protocol.number()]),
        11 => Ok(source.port().to_be_bytes().to_vec()),
        12 => Ok(destination.port().to_be_bytes().to_vec()),
        17 => Ok(vec![0, 0]),
        _ => unknown(format!("ct {key} is not known here")),
    }
}

/// The known bytes of a header.
fn payload(origin: PayloadBase, offset: u32, width: u32, traced: &TracedPacket) -> Loaded {
    let header = match origin {
        PayloadBase::Link => Vec::new(),
        PayloadBase::Network => network(traced),
        PayloadBase::Transport => transport(traced),
    };
    let size = |number| usize::try_from(number).unwrap_or(usize::MAX);
    let range = size(offset)..size(offset).saturating_add(size(width));
    let bytes: Option<Vec<u8>> = header.get(range).and_then(|bytes| bytes.iter().copied().collect());
    bytes.ok_or_else(|| {
        let which = match origin {
            PayloadBase::Link => "link layer",
            PayloadBase::Network => "network",
            PayloadBase::Transport => "transport",
        };
        LoadFailure::Unknown(format!("byte {offset} of the {which} header is not known"))
    })
}

/// The number of the packet's protocol.
fn protocol(traced: &TracedPacket) -> u8 {
    match (traced.error, traced.packet.source.is_ipv4()) {
        (None, _) => traced.packet.protocol.number(),
        (Some(_), true) => ICMP,
        (Some(_), false) => ICMP6,
    }
}

fn network(traced: &TracedPacket) -> Vec<Option<u8>> {
    let packet = &traced.packet;
    let protocol = protocol(traced);
    match (packet.source.ip(), packet.destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = vec![None; 12];
            (header[0], header[9]) = (Some(0x45), Some(protocol));
            // A first packet is no fragment, and Linux lets no router make fragments of it.
            (header[6], header[7]) = (Some(DONT_FRAGMENT), Some(0));
            header.extend(source.octets().iter().chain(&destination.octets()).map(|byte| Some(*byte)));
            header
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut header = vec![None; 8];
            header[6] = Some(protocol);
            header.extend(source.octets().iter().chain(&destination.octets()).map(|byte| Some(*byte)));
            header
        }
        _ => Vec::new(),
    }
}

fn transport(traced: &TracedPacket) -> Vec<Option<u8>> {
    if let Some(kind) = traced.error {
        return vec![Some(kind), None];
    }
    let packet = &traced.packet;
    let ports = [packet.source.port(), packet.destination.port()].map(u16::to_be_bytes).concat();
    let mut header: Vec<Option<u8>> = ports.into_iter().map(Some).collect();
    if packet.protocol == Protocol::Tcp {
        header.resize(20, None);
        header[13] = (packet.state == ConnState::New).then_some(SYN);
    }
    header
}
