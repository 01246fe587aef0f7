//! conntrack entries as values, displayed as `conntrack -L` prints them.

use std::fmt;
use std::net::SocketAddr;

/// The IP protocol number of UDP.
pub const UDP: u8 = 17;

/// The addresses and ports of one direction of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// The sender's address and port.
    pub source: SocketAddr,
    /// The receiver's address and port.
    pub destination: SocketAddr,
}

/// An entry of the conntrack table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// The IP protocol number.
    pub protocol: u8,
    /// The original direction: from the client, before NAT.
    pub original: Tuple,
    /// The reply direction. Its source is the address that packets really go to.
    pub reply: Tuple,
}

impl Flow {
    /// Whether the destination was translated (DNAT).
    #[must_use]
    pub fn redirected(&self) -> bool {
        self.original.destination != self.reply.source
    }
}

/// The tuple in conntrack's order: `src=10.0.0.1 dst=10.96.0.10 sport=40000 dport=53`.
impl fmt::Display for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, destination } = self;
        write!(f, "src={} dst={} ", source.ip(), destination.ip())?;
        write!(f, "sport={} dport={}", source.port(), destination.port())
    }
}

/// The line that `conntrack -L` prints, without timeout, status and marks.
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
    fn flows_display_as_in_conntrack_list() {
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
