//! Prints keys and values in nft syntax.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::elements::Element;
use super::set::{KeyField, Set};
use crate::nft::set::prefix_length;
use crate::nft::{Quoted, rule::Duration};

const INTEGER: u32 = 4;
pub(super) const IPV4: u32 = 7;
pub(super) const IPV6: u32 = 8;
pub(super) const FAMILY: u32 = 2;
pub(super) const FLAGS: u32 = 15;
pub(super) const DIRECTION: u32 = 27;
const ETHERNET: u32 = 9;
pub(super) const PROTOCOL: u32 = 12;
pub(super) const PORT: u32 = 13;
pub(super) const MARK: u32 = 19;
pub(super) const STATE: u32 = 26;
pub(super) const STATUS: u32 = 28;
pub(super) const KIND: u32 = 38;
pub(super) const NAME: u32 = 41;

/// `ct state`
pub(super) const STATES: [(u32, &str); 5] =
    [(1, "invalid"), (2, "established"), (4, "related"), (8, "new"), (64, "untracked")];
/// `ct status`
pub(super) const STATUSES: [(u32, &str); 9] = [
    (1, "expected"),
    (2, "seen-reply"),
    (4, "assured"),
    (8, "confirmed"),
    (16, "snat"),
    (32, "dnat"),
    (128, "snat-done"),
    (256, "dnat-done"),
    (512, "dying"),
];
/// `tcp flags`
pub(super) const TCP_FLAGS: [(u32, &str); 8] =
    [(1, "fin"), (2, "syn"), (4, "rst"), (8, "psh"), (16, "ack"), (32, "urg"), (64, "ecn"), (128, "cwr")];
/// `fib … type`
const KINDS: [(u32, &str); 8] = [
    (1, "unicast"),
    (2, "local"),
    (3, "broadcast"),
    (4, "anycast"),
    (5, "multicast"),
    (6, "blackhole"),
    (7, "unreachable"),
    (8, "prohibit"),
];

/// The length of a type's values in bytes; `None` if it varies.
pub(super) fn width(kind: u32) -> Option<usize> {
    Some(match kind {
        IPV4 | MARK | 20 | 22..=26 | STATUS | 35 | KIND => 4,
        IPV6 | NAME => 16,
        ETHERNET => 6,
        10 | PORT | 21 => 2,
        2 | PROTOCOL | 14 | 15 | 27 | 29 | 31..=34 | 36 | 37 | 39 => 1,
        _ => return None,
    })
}

/// The name of a transport protocol in nft.
pub(super) fn protocol(number: u8) -> Option<&'static str> {
    [(1, "icmp"), (6, "tcp"), (17, "udp"), (58, "ipv6-icmp"), (132, "sctp")]
        .into_iter()
        .find(|(known, _)| *known == number)
        .map(|(_, name)| name)
}

/// The names of the set bits, separated by commas; `None` if a bit has no name.
pub(super) fn bits(names: &[(u32, &str)], value: u32) -> Option<String> {
    let known: Vec<&(u32, &str)> = names.iter().filter(|(bit, _)| value & bit != 0).collect();
    let all: u32 = known.iter().map(|(bit, _)| bit).sum();
    (all == value && value != 0).then(|| known.iter().map(|(_, name)| *name).collect::<Vec<_>>().join(","))
}

/// A number in host byte order.
pub(super) fn number(bytes: &[u8]) -> Option<u32> {
    match *bytes {
        [a] => Some(u32::from(a)),
        [a, b] => Some(u32::from(u16::from_ne_bytes([a, b]))),
        [a, b, c, d] => Some(u32::from_ne_bytes([a, b, c, d])),
        _ => None,
    }
}

/// A value of a type.
pub(super) fn value(kind: u32, bytes: &[u8]) -> String {
    let known = match (kind, bytes) {
        (IPV4, &[a, b, c, d]) => Some(Ipv4Addr::new(a, b, c, d).to_string()),
        (IPV6, bytes) => <[u8; 16]>::try_from(bytes).ok().map(|octets| Ipv6Addr::from(octets).to_string()),
        (PROTOCOL, &[number]) => Some(protocol(number).map_or_else(|| number.to_string(), str::to_owned)),
        (PORT, &[high, low]) => Some(u16::from_be_bytes([high, low]).to_string()),
        (ETHERNET, bytes) => Some(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")),
        (FAMILY, [2]) => Some("ipv4".to_owned()),
        (FAMILY, [10]) => Some("ipv6".to_owned()),
        (DIRECTION, [0]) => Some("original".to_owned()),
        (DIRECTION, [1]) => Some("reply".to_owned()),
        (FLAGS, bytes) => number(bytes).and_then(|number| bits(&TCP_FLAGS, number)),
        (MARK, bytes) => number(bytes).map(|number| format!("{number:#010x}")),
        (STATE, bytes) => number(bytes).and_then(|number| bits(&STATES, number)),
        (STATUS, bytes) => number(bytes).and_then(|number| bits(&STATUSES, number)),
        (KIND, bytes) => {
            let name = |number| KINDS.iter().find(|(known, _)| *known == number).map(|(_, name)| (*name).to_owned());
            number(bytes).and_then(name)
        }
        (NAME, bytes) => Some(name(bytes)),
        (INTEGER, bytes) => number(bytes).map(|number| number.to_string()),
        _ => None,
    };
    known.unwrap_or_else(|| format!("0x{}", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()))
}

/// An interface name, or a prefix with `*`.
pub(super) fn name(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0);
    let text = String::from_utf8_lossy(&bytes[..end.unwrap_or(bytes.len())]);
    format!("\"{text}{}\"", if end.is_none() && bytes.len() < 16 { "*" } else { "" })
}

/// A concatenated value.
pub(super) fn concatenated(parts: &[KeyField], bytes: &[u8]) -> String {
    let fields = Set::fields(parts, bytes).map(|(part, field)| value(part.kind, field));
    fields.collect::<Vec<_>>().join(" . ")
}

/// The key of an element: values, networks or ranges.
pub(super) fn key(parts: &[KeyField], element: &Element) -> String {
    if element.key.is_empty() {
        return "*".to_owned();
    }
    let Some(end) = &element.end else { return concatenated(parts, &element.key) };
    let fields = Set::fields(parts, &element.key).zip(Set::fields(parts, end)).map(|((part, first), (_, last))| {
        let least = value(part.kind, first);
        if first == last {
            return least;
        }
        match prefix_length(first, last).filter(|_| matches!(part.kind, IPV4 | IPV6)) {
            Some(length) => format!("{least}/{length}"),
            None => format!("{least}-{}", value(part.kind, last)),
        }
    });
    fields.collect::<Vec<_>>().join(" . ")
}

/// Displays an element of a set.
pub(super) struct Printed<'a> {
    pub set: &'a Set,
    pub element: &'a Element,
}

impl fmt::Display for Printed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { set, element } = self;
        write!(f, "{}", set.key_text(element))?;
        if let Some(counters) = &element.counters {
            write!(f, " counter packets {} bytes {}", counters.packets, counters.bytes)?;
        }
        let seconds = |milliseconds: u64| Duration(u32::try_from(milliseconds / 1000).unwrap_or(u32::MAX));
        if element.timeout > 0 && element.timeout != set.timeout {
            write!(f, " timeout {}", seconds(element.timeout))?;
        }
        if element.expires > 0 {
            write!(f, " expires {}", seconds(element.expires))?;
        }
        if let Some(comment) = &element.comment {
            write!(f, " comment {}", Quoted(comment))?;
        }
        set.value_text(element).map_or(Ok(()), |value| write!(f, " : {value}"))
    }
}
