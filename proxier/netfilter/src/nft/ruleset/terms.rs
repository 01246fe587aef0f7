//! The nft syntax of loaded values.

use super::values::{IPV4, IPV6, KIND, MARK, NAME, PORT, PROTOCOL, STATE, STATUS};
use crate::IpFamily;
use crate::nft::{Load, PayloadBase};

const INTEGER: u32 = 4;

/// Offset, width, name, type.
type Header = &'static [(u32, u32, &'static str, u32)];

const NETWORK_V4: Header = &[
    (0, 1, "ip version", 0),
    (2, 2, "ip length", 0),
    (8, 1, "ip ttl", 0),
    (9, 1, "ip protocol", PROTOCOL),
    (12, 4, "ip saddr", IPV4),
    (16, 4, "ip daddr", IPV4),
];
const NETWORK_V6: Header = &[
    (4, 2, "ip6 length", 0),
    (6, 1, "ip6 nexthdr", PROTOCOL),
    (7, 1, "ip6 hoplimit", 0),
    (8, 16, "ip6 saddr", IPV6),
    (24, 16, "ip6 daddr", IPV6),
];
const PORTS: Header = &[(0, 2, "sport", PORT), (2, 2, "dport", PORT)];

/// The names of `meta` keys without a [`Load`] variant.
const META: [(u32, &str); 14] = [
    (0, "length"),
    (1, "protocol"),
    (2, "priority"),
    (8, "iiftype"),
    (9, "oiftype"),
    (10, "skuid"),
    (11, "skgid"),
    (12, "nftrace"),
    (13, "rtclassid"),
    (17, "ibrname"),
    (18, "obrname"),
    (19, "pkttype"),
    (20, "cpu"),
    (23, "cgroup"),
];
/// The names and types of `ct` keys without a [`Load`] variant.
const CONNECTION: [(u32, &str, u32); 15] = [
    (5, "expiration", 0),
    (6, "helper", 0),
    (7, "l3proto", 0),
    (8, "saddr", 0),
    (9, "daddr", 0),
    (10, "protocol", PROTOCOL),
    (11, "proto-src", PORT),
    (12, "proto-dst", PORT),
    (13, "label", 0),
    (14, "packets", 0),
    (15, "bytes", 0),
    (17, "zone", 0),
    (19, "ip saddr", IPV4),
    (20, "ip daddr", IPV4),
    (21, "ip6 saddr", IPV6),
];

/// The value of a register in nft syntax.
#[derive(Clone, Debug, Default)]
pub(super) struct Term {
    /// The left-hand side of a match.
    pub text: String,
    /// nft's type number; 0 if unknown.
    pub kind: u32,
    /// The loaded length in bytes.
    pub width: usize,
    /// The mask and XOR operand applied to it.
    pub bits: Option<(Vec<u8>, Vec<u8>)>,
    /// The bytes of a constant.
    pub value: Option<Vec<u8>>,
}

impl Term {
    pub(super) fn new(text: impl Into<String>, kind: u32, width: usize) -> Self {
        Self { text: text.into(), kind, width, ..Self::default() }
    }
}

/// The term of a load. `protocol` is the transport protocol that the rule matched before.
pub(super) fn term(from: Load, width: u32, family: Option<IpFamily>, protocol: Option<&str>) -> Term {
    let size = usize::try_from(width).unwrap_or(usize::MAX);
    let (text, kind) = match from {
        Load::Payload(origin, offset) => payload(origin, offset, width, family, protocol),
        Load::Mark => ("meta mark".to_owned(), MARK),
        Load::InputName => ("iifname".to_owned(), NAME),
        Load::OutputName => ("oifname".to_owned(), NAME),
        Load::InputIndex => ("iif".to_owned(), INTEGER),
        Load::OutputIndex => ("oif".to_owned(), INTEGER),
        Load::Family => ("meta nfproto".to_owned(), super::values::FAMILY),
        Load::Protocol => ("meta l4proto".to_owned(), PROTOCOL),
        Load::Meta(key) => (meta(key), INTEGER),
        Load::CtState => ("ct state".to_owned(), STATE),
        Load::CtDirection => ("ct direction".to_owned(), super::values::DIRECTION),
        Load::CtStatus => ("ct status".to_owned(), STATUS),
        Load::CtMark => ("ct mark".to_owned(), MARK),
        Load::Ct(key, direction) => connection(key, direction),
        Load::SourceType => ("fib saddr type".to_owned(), KIND),
        Load::DestinationType => ("fib daddr type".to_owned(), KIND),
        Load::Fib { result, flags } => route(result, flags),
        Load::Random { modulus, offset } => (numbers("random", modulus, offset), INTEGER),
        Load::Incremental { modulus, offset } => (numbers("inc", modulus, offset), INTEGER),
    };
    Term::new(text, kind, size)
}

fn numbers(kind: &str, modulus: u32, offset: u32) -> String {
    format!("numgen {kind} mod {modulus}{}", self::offset(offset))
}

pub(super) fn offset(offset: u32) -> String {
    if offset == 0 { String::new() } else { format!(" offset {offset}") }
}

pub(super) fn meta(key: u32) -> String {
    META.iter()
        .find(|(known, _)| *known == key)
        .map_or_else(|| format!("meta {key}"), |(_, name)| format!("meta {name}"))
}

fn payload(
    origin: PayloadBase,
    offset: u32,
    width: u32,
    family: Option<IpFamily>,
    protocol: Option<&str>,
) -> (String, u32) {
    let header = match (origin, family) {
        (PayloadBase::Network, Some(IpFamily::V4)) => NETWORK_V4,
        (PayloadBase::Network, Some(IpFamily::V6)) => NETWORK_V6,
        (PayloadBase::Transport, _) => PORTS,
        _ => &[],
    };
    let addresses = |kind| kind == IPV4 || kind == IPV6;
    let fits = |field: &&(u32, u32, &str, u32)| {
        field.0 == offset && (field.1 == width || (field.1 > width && addresses(field.3)))
    };
    match header.iter().find(fits) {
        Some((_, _, name, kind)) if origin == PayloadBase::Transport => {
            (format!("{} {name}", protocol.unwrap_or("th")), *kind)
        }
        Some((_, _, name, kind)) => ((*name).to_owned(), *kind),
        None if origin == PayloadBase::Transport && protocol == Some("tcp") && (offset, width) == (13, 1) => {
            ("tcp flags".to_owned(), super::values::FLAGS)
        }
        None => {
            let base = match origin {
                PayloadBase::Link => "ll",
                PayloadBase::Network => "nh",
                PayloadBase::Transport => "th",
            };
            (format!("@{base},{},{}", offset.saturating_mul(8), width.saturating_mul(8)), 0)
        }
    }
}

pub(super) fn connection(key: u32, direction: Option<u8>) -> (String, u32) {
    let found = CONNECTION.iter().find(|(known, ..)| *known == key);
    let (name, kind) = found.map_or((None, 0), |(_, name, kind)| (Some(*name), *kind));
    let direction = match direction {
        None => "",
        Some(0) => "original ",
        Some(_) => "reply ",
    };
    (format!("ct {direction}{}", name.map_or_else(|| key.to_string(), str::to_owned)), kind)
}

/// `NFTA_FIB_F_*`, in nft's order.
const ROUTE: [(u32, &str); 5] = [(1, "saddr"), (2, "daddr"), (4, "mark"), (8, "iif"), (16, "oif")];

fn route(result: u32, flags: u32) -> (String, u32) {
    let inputs: Vec<&str> = ROUTE.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, name)| *name).collect();
    let (result, kind) = match result {
        1 => ("oif", INTEGER),
        2 => ("oifname", NAME),
        _ => ("type", KIND),
    };
    (format!("fib {} {result}", inputs.join(" . ")), kind)
}
