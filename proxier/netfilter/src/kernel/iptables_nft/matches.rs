//! Encodes and decodes match extensions (`linux/netfilter/xt_*.h`).
//!
//! A structure is decoded into a candidate, which must encode to the same bytes: what is not understood to the last bit
//! is unknown.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::sets::SetIndex;
use super::structure::{Extension, array, text_at, u16_at, u32_at};
use crate::IpFamily;
use crate::iptables::{Chain, Comment, Match, Negatable, Suffix, random_share};
use crate::rule_text::{PROTOCOLS, intern};

const XT_ADDRTYPE_INVERT_SOURCE: u32 = 1;
/// `1 << RTN_LOCAL`
const LOCAL: u16 = 4;
const XT_CONNTRACK_STATE: u16 = 1;
/// States in the order in which iptables prints them.
const STATES: [(u16, &str); 7] = [
    (0x01, "INVALID"),
    (0x08, "NEW"),
    (0x04, "RELATED"),
    (0x02, "ESTABLISHED"),
    (0x100, "UNTRACKED"),
    (0x40, "SNAT"),
    (0x80, "DNAT"),
];
/// `XT_RECENT_CHECK | XT_RECENT_REAP`
const RECENT_CHECK: u8 = 0x21;
const RECENT_SET: u8 = 0x02;
const RECENT_LENGTH: usize = 232;
const RECENT_MASK: usize = 212;
const XT_PHYSDEV_OP_ISIN: u8 = 8;
const XT_SCTP_DEST_PORTS: u32 = 2;
/// All of `XT_IPVS_IPVS_PROPERTY`, `_PROTO`, `_VADDR` and `_VPORT`.
const IPVS_BITS: u8 = 0xf;
const COMMENT_LENGTH: usize = 256;

/// Encodes a match.
///
/// # Errors
/// The reason why it cannot be encoded.
pub(super) fn encode(family: IpFamily, of: &Match, sets: &mut SetIndex) -> Result<Extension, String> {
    Ok(match of {
        Match::Comment(text) => comment(text)?,
        Match::CtState(states) => conntrack(states).ok_or_else(|| format!("unknown state in {}", states.value))?,
        Match::Mark(mark) => {
            let value = mark.value.to_ne_bytes();
            Extension::new("mark", 1, 16).put(0, &value).put(4, &value).put(8, &[u8::from(mark.not)])
        }
        Match::SourceIsLocal => addrtype(0, 0),
        Match::SourceIsNotLocal => addrtype(0, XT_ADDRTYPE_INVERT_SOURCE),
        Match::DestinationIsLocal => addrtype(2, 0),
        Match::NotFromBridge => Extension::new("physdev", 0, 72).put(64, &[XT_PHYSDEV_OP_ISIN, XT_PHYSDEV_OP_ISIN]),
        Match::Set { name, directions } => {
            let index = sets.index(name).map_err(|error| format!("cannot look up ipset {name}: {error}"))?;
            set(index.ok_or_else(|| format!("ipset {name} does not exist"))?, directions)?
        }
        Match::Ipvs { protocol, address } => ipvs(*protocol, address),
        Match::DestinationPort(protocol, port) => transport(protocol, Some(*port))?,
        Match::Transport(protocol) => transport(protocol, None)?,
        Match::OneIn(n) => {
            let share = random_share(*n).to_ne_bytes();
            // iptables also fills the field that counts in the mode nth.
            Extension::new("statistic", 0, 24).put(4, &share).put(12, &share)
        }
        Match::RecentlySeen { list, seconds, .. } => recent(family, RECENT_CHECK, *seconds, list),
        Match::RememberSource { list, .. } => recent(family, RECENT_SET, 0, list),
        Match::Account(name) if name.len() < 32 => Extension::new("nfacct", 1, 40).put(0, name.as_bytes()),
        Match::Account(name) => return Err(format!("counter name {name} is too long")),
    })
}

/// Decodes a match; `None` if it is not understood to the last bit.
pub(super) fn decode(
    family: IpFamily,
    (name, revision, bytes): (&str, u32, &[u8]),
    sets: &mut SetIndex,
) -> Option<Match> {
    let candidate = candidate(family, name, bytes, sets)?;
    let mut bytes = std::borrow::Cow::Borrowed(bytes);
    if family == IpFamily::V4 {
        // Of addresses in unions, only the first four bytes matter.
        match name {
            "recent" if bytes.len() == RECENT_LENGTH => bytes.to_mut()[RECENT_MASK + 4..RECENT_MASK + 16].fill(0),
            "ipvs" if bytes.len() == 40 => bytes.to_mut()[20..32].fill(0xff),
            _ => {}
        }
    }
    // xt_nfacct_match_info and its successor of Linux 5.0 differ for the kernel alone.
    let revision = if name == "nfacct" { 1 } else { revision };
    encode(family, &candidate, sets).ok().filter(|again| again.is(name, revision, &bytes)).map(|_| candidate)
}

fn candidate(family: IpFamily, name: &str, bytes: &[u8], sets: &mut SetIndex) -> Option<Match> {
    Some(match name {
        "comment" => {
            let subject = Arc::from(text_at(bytes, 0, COMMENT_LENGTH)?);
            Match::Comment(Comment { prefix: "", subject, suffix: Suffix::Text("") })
        }
        "conntrack" => Match::CtState(Negatable { not: u16_at(bytes, 148) != 0, value: states(u16_at(bytes, 150))? }),
        "mark" => Match::Mark(Negatable { not: bytes.get(8) == Some(&1), value: u32_at(bytes, 0) }),
        "addrtype" => match (u16_at(bytes, 0), u32_at(bytes, 4)) {
            (0, _) => Match::DestinationIsLocal,
            (_, 0) => Match::SourceIsLocal,
            _ => Match::SourceIsNotLocal,
        },
        "physdev" => Match::NotFromBridge,
        "set" => {
            let name = sets.name(u16_at(bytes, 0)).ok()??;
            Match::Set { name: intern(&name)?, directions: directions(*bytes.get(2)?, *bytes.get(3)?)? }
        }
        "ipvs" => {
            let ip = address(family, array(bytes, 0));
            let port = u16::from_be_bytes(array(bytes, 32));
            Match::Ipvs { protocol: *bytes.get(34)?, address: SocketAddr::new(ip, port) }
        }
        "statistic" => Match::OneIn(one_in(u32_at(bytes, 4))?),
        "recent" => {
            let list = Chain::parse(text_at(bytes, 10, 200)?)?;
            match bytes.get(8) {
                Some(&RECENT_SET) => Match::RememberSource { list, family },
                _ => Match::RecentlySeen { list, seconds: u32_at(bytes, 0), family },
            }
        }
        "nfacct" => Match::Account(intern(text_at(bytes, 0, 32)?)?),
        name => {
            let (protocol, _) = PROTOCOLS.iter().find(|(known, _)| *known == name)?;
            // xt_tcp and xt_udp have the destination ports second, xt_sctp_info has them first.
            let (at, any) = if name == "sctp" { (0, (0, 0)) } else { (4, (0, u16::MAX)) };
            match (u16_at(bytes, at), u16_at(bytes, at + 2)) {
                // For SCTP a flag distinguishes port 0 from no port; the comparison checks it.
                range if range == any => Match::Transport(protocol),
                (port, _) => Match::DestinationPort(protocol, port),
            }
        }
    })
}

fn comment(comment: &Comment) -> Result<Extension, String> {
    let mut text = String::with_capacity(COMMENT_LENGTH);
    text.push_str(comment.prefix);
    text.push_str(&comment.subject);
    match &comment.suffix {
        Suffix::Text(suffix) => text.push_str(suffix),
        // Writing to a String cannot fail.
        Suffix::Endpoint(address) => _ = write!(text, " -> {address}"),
        Suffix::Chain(before, chain) => _ = write!(text, "{before}{chain}"),
    }
    if text.len() >= COMMENT_LENGTH {
        return Err(format!("the comment has {} bytes, more than {}", text.len(), COMMENT_LENGTH - 1));
    }
    Ok(Extension::new("comment", 0, COMMENT_LENGTH).put(0, text.as_bytes()))
}

/// `xt_conntrack_mtinfo3` with states alone.
fn conntrack(states: &Negatable<&str>) -> Option<Extension> {
    let mut mask = 0_u16;
    for state in states.value.split(',') {
        mask |= STATES.iter().find(|(_, name)| *name == state)?.0;
    }
    let invert = if states.not { XT_CONNTRACK_STATE } else { 0 };
    let fields = [XT_CONNTRACK_STATE, invert, mask];
    let put = |info: Extension, (field, at): (u16, usize)| info.put(at, &field.to_ne_bytes());
    Some(fields.into_iter().zip([146, 148, 150]).fold(Extension::new("conntrack", 3, 168), put))
}

/// The names of states, in the order in which iptables prints them.
fn states(mask: u16) -> Option<&'static str> {
    let names: Vec<&str> = STATES.iter().filter(|(bit, _)| mask & bit != 0).map(|(_, name)| *name).collect();
    intern(&names.join(","))
}

/// `xt_addrtype_info_v1`
fn addrtype(at: usize, flags: u32) -> Extension {
    Extension::new("addrtype", 1, 8).put(at, &LOCAL.to_ne_bytes()).put(4, &flags.to_ne_bytes())
}

/// `xt_set_info_match_v4`
fn set(index: u16, directions: &str) -> Result<Extension, String> {
    let (mut dimensions, mut flags) = (0_u8, 0_u8);
    for direction in directions.split(',') {
        dimensions += 1;
        match direction {
            "src" if dimensions < 7 => flags |= 1 << dimensions,
            "dst" if dimensions < 7 => {}
            _ => return Err(format!("directions {directions} of a set match")),
        }
    }
    Ok(Extension::new("set", 4, 48).put(0, &index.to_ne_bytes()).put(2, &[dimensions, flags]))
}

fn directions(dimensions: u8, flags: u8) -> Option<&'static str> {
    let names: Vec<&str> = (1..=dimensions.min(7))
        .map(|at| if flags & 1_u8.checked_shl(at.into()).unwrap_or(0) != 0 { "src" } else { "dst" })
        .collect();
    intern(&names.join(","))
}

/// `xt_ipvs_mtinfo` with protocol, address and port.
fn ipvs(protocol: u8, server: &SocketAddr) -> Extension {
    Extension::new("ipvs", 0, 40)
        .put(0, &octets(server.ip()))
        .put(16, &[0xff; 16])
        .put(32, &server.port().to_be_bytes())
        .put(34, &[protocol])
        .put(39, &[IPVS_BITS])
}

/// `xt_tcp`, `xt_udp` or `xt_sctp_info` with a destination port or none.
fn transport(protocol: &str, port: Option<u16>) -> Result<Extension, String> {
    let all = u16::MAX.to_ne_bytes();
    let ports = |info: Extension, at: usize| match port {
        Some(port) => info.put(at, &port.to_ne_bytes()).put(at + 2, &port.to_ne_bytes()),
        None => info.put(at + 2, &all),
    };
    Ok(match protocol {
        "tcp" => ports(Extension::new("tcp", 0, 16).put(2, &all), 4),
        "udp" => ports(Extension::new("udp", 0, 16).put(2, &all), 4),
        "sctp" => {
            // No chunk type: -1 in each xt_sctp_flag_info.
            let info = (0..4).fold(Extension::new("sctp", 0, 296), |info, at| info.put(268 + 3 * at, &[0xff]));
            match port {
                Some(_) => ports(info, 0).put(284, &XT_SCTP_DEST_PORTS.to_ne_bytes()),
                None => info,
            }
        }
        _ => return Err(format!("unknown protocol {protocol}")),
    })
}

/// `xt_recent_mtinfo_v1` for source addresses, with the family's full mask.
fn recent(family: IpFamily, check: u8, seconds: u32, list: &Chain) -> Extension {
    let mask = match family {
        IpFamily::V4 => &[0xff; 4][..],
        IpFamily::V6 => &[0xff; 16],
    };
    Extension::new("recent", 1, RECENT_LENGTH)
        .put(0, &seconds.to_ne_bytes())
        .put(8, &[check])
        .put(10, list.as_str().as_bytes())
        .put(RECENT_MASK, mask)
}

/// The `n` of a probability 1/`n` as the kernel stores it.
fn one_in(share: u32) -> Option<u32> {
    let n = (f64::from(1_u32 << 31) / f64::from(share)).round();
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // saturating, and compared
    (share > 0).then_some(n as u32).filter(|n| random_share(*n) == share)
}

/// An address in a `nf_inet_addr`, whose other bytes are zero.
pub(super) fn octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&ip.octets());
            bytes
        }
        IpAddr::V6(ip) => ip.octets(),
    }
}

/// The address in a `nf_inet_addr`.
pub(super) fn address(family: IpFamily, bytes: [u8; 16]) -> IpAddr {
    match family {
        IpFamily::V4 => IpAddr::from([bytes[0], bytes[1], bytes[2], bytes[3]]),
        IpFamily::V6 => IpAddr::from(bytes),
    }
}
