//! Flows that the kernel tracks, as `conntrack -L` prints them.
//!
//! In: addresses, ports, numbers. Out: a [`Flow`] and its text. Must not know: how flows are listed or deleted.

use std::fmt;
use std::net::SocketAddr;

/// The protocol number of UDP.
pub const UDP: u8 = 17;

/// One direction of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Where its packets come from.
    pub source: SocketAddr,
    /// Where they go.
    pub destination: SocketAddr,
}

/// An entry of the conntrack table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// The protocol's number.
    pub protocol: u8,
    /// As the one who began it sees it.
    pub original: Tuple,
    /// As the one who answers sees it: its source is where packets really go.
    pub reply: Tuple,
}

impl Flow {
    /// Whether packets go elsewhere than they were sent to (DNAT).
    #[must_use]
    pub fn redirected(&self) -> bool {
        self.original.destination != self.reply.source
    }
}

/// The fields in conntrack's order: `src=10.0.0.1 dst=10.96.0.10 sport=40000 dport=53`.
impl fmt::Display for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, destination } = self;
        write!(f, "src={} dst={} ", source.ip(), destination.ip())?;
        write!(f, "sport={} dport={}", source.port(), destination.port())
    }
}

/// `conntrack -L`'s line without what changes by itself: time left, status, marks.
impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.protocol {
            6 => "tcp",
            UDP => "udp",
            132 => "sctp",
            _ => "unknown",
        };
        write!(f, "{name:<8} {} {} {}", self.protocol, self.original, self.reply)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(protocol: u8, addresses: [&str; 4]) -> Flow {
        let [a, b, c, d] = addresses.map(|text| text.parse().expect("an address"));
        let (original, reply) = (Tuple { source: a, destination: b }, Tuple { source: c, destination: d });
        Flow { protocol, original, reply }
    }

    #[test]
    fn flows_print_as_conntrack_prints_them() {
        let dns = flow(UDP, ["10.0.0.1:40000", "10.96.0.10:53", "10.0.0.5:8053", "10.0.0.1:40000"]);
        assert_eq!(
            dns.to_string(),
            "udp      17 src=10.0.0.1 dst=10.96.0.10 sport=40000 dport=53 \
             src=10.0.0.5 dst=10.0.0.1 sport=8053 dport=40000"
        );
        assert!(dns.redirected());
        let plain = flow(6, ["[fd00::1]:4", "[fd00::2]:80", "[fd00::2]:80", "[fd00::1]:4"]);
        assert_eq!(
            plain.to_string(),
            "tcp      6 src=fd00::1 dst=fd00::2 sport=4 dport=80 src=fd00::2 dst=fd00::1 sport=80 dport=4"
        );
        assert!(!plain.redirected());
    }
}
