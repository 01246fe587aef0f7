//! Probe packets: encodes the first packet of a connection, and decodes observed packets.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A transport protocol that Services have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    /// TCP, with a SYN.
    Tcp,
    /// UDP, with a datagram.
    Udp,
    /// SCTP, with an INIT.
    Sctp,
}

impl Transport {
    /// All protocols.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// The IP protocol number.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// The protocol of a Service port.
    #[must_use]
    pub fn named(name: &str) -> Self {
        match name {
            "UDP" => Self::Udp,
            "SCTP" => Self::Sctp,
            _ => Self::Tcp,
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// A packet to send.
#[derive(Debug, Clone, Copy)]
pub struct Probe {
    /// The source.
    pub from: SocketAddr,
    /// The destination, of the same family.
    pub to: SocketAddr,
    /// The protocol.
    pub transport: Transport,
    /// The identifier in the payload, which translation does not change.
    pub tag: u32,
    /// The stage of the connection.
    pub stage: Stage,
}

/// The stage of a connection that a probe belongs to. Only TCP has more than the first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Stage {
    /// The first packet.
    #[default]
    First,
    /// A packet of an established connection.
    Later,
    /// A packet that connection tracking considers invalid.
    Nowhere,
}

/// An observed packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Observation {
    /// A probe.
    Passed {
        /// Its tag.
        tag: u32,
        /// Its source when observed.
        from: SocketAddr,
        /// Its destination when observed.
        to: SocketAddr,
    },
    /// A refusal of the probe from this port.
    Refused {
        /// The probe's source port.
        port: u16,
        /// The kind of refusal.
        by: Refusal,
    },
}

/// A kind of refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// A TCP reset.
    Reset,
    /// ICMP or ICMPv6 with this type and code.
    Icmp(u8, u8),
}

impl Probe {
    /// The IP packet.
    ///
    /// # Panics
    /// If the addresses are of different families.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let mut body = [self.from.port().to_be_bytes(), self.to.port().to_be_bytes()].concat();
        let tag = self.tag.to_be_bytes();
        match self.transport {
            Transport::Tcp => {
                body.extend(tag);
                let flags = match self.stage {
                    Stage::First => 0x02,
                    Stage::Later => 0x10,
                    // SYN with FIN is invalid at every stage.
                    Stage::Nowhere => 0x03,
                };
                body.extend([0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
            }
            Transport::Udp => {
                body.extend([0, 12, 0, 0]);
                body.extend(tag);
            }
            // No checksum: the node is configured not to verify it.
            Transport::Sctp => {
                body.extend([0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 20]);
                body.extend(tag);
                body.extend([0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
            }
        }
        let checksum_at = match self.transport {
            Transport::Tcp => Some(16),
            Transport::Udp => Some(6),
            Transport::Sctp => None,
        };
        if let Some(at) = checksum_at {
            let mut sum = u32::from(self.transport.number()) + length(&body);
            for address in [self.from.ip(), self.to.ip()] {
                sum += words(&octets(address));
            }
            let checksum = fold(sum + words(&body));
            body[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        }
        let mut packet = header(self.from.ip(), self.to.ip(), self.transport.number(), &body);
        packet.extend(body);
        packet
    }
}

fn header(from: IpAddr, to: IpAddr, protocol: u8, body: &[u8]) -> Vec<u8> {
    let mut header = if from.is_ipv4() {
        let total = u16::try_from(20 + body.len()).expect("short").to_be_bytes();
        vec![0x45, 0, total[0], total[1], 0, 0, 0x40, 0, 64, protocol, 0, 0]
    } else {
        let length = u16::try_from(body.len()).expect("short").to_be_bytes();
        vec![0x60, 0, 0, 0, length[0], length[1], protocol, 64]
    };
    header.extend(octets(from));
    header.extend(octets(to));
    if from.is_ipv4() {
        let checksum = fold(words(&header));
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
    }
    header
}

/// Decodes an IP packet; `None` if it is unrelated to probes.
#[must_use]
pub fn read(packet: &[u8]) -> Option<Observation> {
    let (protocol, from, to, body) = split(packet)?;
    read_body(protocol, from, to, body)
}

/// Decodes the packet after the IP header.
#[must_use]
pub fn read_body(protocol: u8, from: IpAddr, to: IpAddr, body: &[u8]) -> Option<Observation> {
    let port = |at: usize| Some(u16::from_be_bytes(body.get(at..at + 2)?.try_into().ok()?));
    let passed = |at: usize| {
        let tag = u32::from_be_bytes(body.get(at..at + 4)?.try_into().ok()?);
        Some(Observation::Passed { tag, from: SocketAddr::new(from, port(0)?), to: SocketAddr::new(to, port(2)?) })
    };
    match protocol {
        6 if body.get(13)? & 4 != 0 => Some(Observation::Refused { port: port(2)?, by: Refusal::Reset }),
        // Ignores answers to a SYN.
        6 if body.get(13)? & 0x12 != 0x12 => passed(4),
        17 => passed(8),
        132 if *body.get(12)? == 1 => passed(16),
        1 | 58 => {
            let (kind, code) = (*body.first()?, *body.get(1)?);
            let unreachable = if protocol == 1 { kind == 3 } else { kind == 1 };
            let (_, _, _, inner) = split(body.get(8..)?).filter(|_| unreachable)?;
            let port = u16::from_be_bytes(inner.get(0..2)?.try_into().ok()?);
            Some(Observation::Refused { port, by: Refusal::Icmp(kind, code) })
        }
        _ => None,
    }
}

fn split(packet: &[u8]) -> Option<(u8, IpAddr, IpAddr, &[u8])> {
    if packet.first()? >> 4 == 4 {
        let at = |i: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(i..i + 4)?).ok()?));
        let body = packet.get(usize::from(packet[0] & 15) * 4..)?;
        Some((*packet.get(9)?, at(12)?.into(), at(16)?.into(), body))
    } else {
        let at = |i: usize| Some(Ipv6Addr::from(<[u8; 16]>::try_from(packet.get(i..i + 16)?).ok()?));
        Some((*packet.get(6)?, at(8)?.into(), at(24)?.into(), packet.get(40..)?))
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn length(body: &[u8]) -> u32 {
    u32::try_from(body.len()).expect("short")
}

fn words(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_is_read_back() {
        for (from, to) in [("10.0.0.1:1000", "10.0.0.2:80"), ("[fd00::1]:1000", "[fd00::2]:80")] {
            for transport in Transport::ALL {
                let (from, to): (SocketAddr, SocketAddr) = (from.parse().expect("one"), to.parse().expect("one"));
                let probe = Probe { from, to, transport, tag: 7_000_000, stage: Stage::First };
                for stage in [Stage::Later, Stage::Nowhere, Stage::First] {
                    let bytes = Probe { stage, ..probe }.bytes();
                    assert_eq!(
                        read(&bytes),
                        Some(Observation::Passed { tag: 7_000_000, from, to }),
                        "{transport} {to}"
                    );
                }
                let bytes = probe.bytes();
                assert!(from.is_ipv6() || fold(words(&bytes[..20])) == 0, "the header's checksum");
                assert_eq!(read(&bytes[..bytes.len() - 20]), None);
            }
        }
    }
}
