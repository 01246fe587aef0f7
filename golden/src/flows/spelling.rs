//! Parses the fields of flow tables into packets and expected outcomes.

use std::fmt;
use std::net::SocketAddr;

use super::machine;
use proxier::model::Protocol;
use proxier_inspect::walk::{ConnState, Packet, Verdict};

/// The source port of every packet.
const SOURCE_PORT: u16 = 40123;

/// An expected outcome; several are equally likely.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Expected {
    /// The verdict.
    pub verdict: Verdict,
    /// Whether the source becomes the node's address.
    pub masqueraded: bool,
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.verdict, if self.masqueraded { ", masqueraded" } else { "" })
    }
}

/// Parses `reject`, `drop`, `untouched` or `IP:PORT`, the last two optionally with `, masqueraded`.
pub(super) fn expected(text: &str) -> Result<Expected, String> {
    let (end, masqueraded) = text.strip_suffix(", masqueraded").map_or((text, false), |end| (end, true));
    let verdict = match end {
        "reject" if !masqueraded => Verdict::Rejected,
        "drop" if !masqueraded => Verdict::Dropped,
        "untouched" => Verdict::Untouched,
        endpoint => Verdict::Delivered(address(endpoint)?),
    };
    Ok(Expected { verdict, masqueraded })
}

/// Parses `IP:PORT`.
pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("{text:?} is not IP:PORT, reject, drop or untouched"))
}

/// The packet from `from` to `IP:PORT/PROTOCOL`.
pub(super) fn packet(from: &str, to: &str, state: Option<&str>) -> Result<Packet, String> {
    let (destination, protocol) = to.split_once('/').ok_or_else(|| format!("{to:?} is not IP:PORT/PROTOCOL"))?;
    let destination = address(destination)?;
    let (source, origin) = machine::sender(from, destination.ip())?;
    if source.is_ipv4() != destination.is_ipv4() {
        return Err(format!("{from} and {to} are of different families"));
    }
    let state = match state {
        None | Some("new") => ConnState::New,
        Some("established") => ConnState::Established,
        Some("related") => ConnState::Related,
        Some("invalid") => ConnState::Invalid,
        Some(other) => return Err(format!("unknown state {other:?}")),
    };
    let protocol = Protocol::of_name(protocol)
        .ok_or_else(|| format!("unknown protocol {protocol:?}: tcp, udp and sctp are known"))?;
    Ok(Packet { source: SocketAddr::new(source, SOURCE_PORT), destination, protocol, origin, state })
}
