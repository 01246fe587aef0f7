//! Probe packets: encodes the first packet of a connection, and decodes observed packets.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use etherparse::{IpNumber, LaxIpSlice, TcpHeaderSlice, UdpHeaderSlice};

use crate::wire::ip_header;

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
        let (from, to, tag) = (self.from.port(), self.to.port(), self.tag.to_be_bytes());
        let ip = ip_header(self.from.ip(), self.to.ip());
        let mut packet = Vec::new();
        let written = match self.transport {
            Transport::Tcp => {
                let header = ip.tcp(from, to, self.tag, u16::MAX);
                let header = match self.stage {
                    Stage::First => header.syn(),
                    Stage::Later => header.ack(0),
                    // SYN with FIN is invalid at every stage.
                    Stage::Nowhere => header.syn().fin(),
                };
                header.write(&mut packet, &[])
            }
            Transport::Udp => ip.udp(from, to).write(&mut packet, &tag),
            Transport::Sctp => ip.write(&mut packet, IpNumber::SCTP, &sctp_init(from, to, tag)),
        };
        written.expect("a small packet");
        packet
    }
}

/// An INIT whose initiate tag is the probe's. Without a checksum: the node is configured not to verify it.
fn sctp_init(from: u16, to: u16, tag: [u8; 4]) -> Vec<u8> {
    let mut body = [from.to_be_bytes(), to.to_be_bytes()].concat();
    body.extend([0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 20]);
    body.extend(tag);
    body.extend([0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
    body
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
    let passed = |from_port, to_port, tag| {
        Some(Observation::Passed { tag, from: SocketAddr::new(from, from_port), to: SocketAddr::new(to, to_port) })
    };
    match IpNumber(protocol) {
        IpNumber::TCP => {
            let tcp = TcpHeaderSlice::from_slice(body).ok()?;
            if tcp.rst() {
                return Some(Observation::Refused { port: tcp.destination_port(), by: Refusal::Reset });
            }
            let answer = tcp.syn() && tcp.ack();
            if answer { None } else { passed(tcp.source_port(), tcp.destination_port(), tcp.sequence_number()) }
        }
        IpNumber::UDP => {
            let udp = UdpHeaderSlice::from_slice(body).ok()?;
            passed(udp.source_port(), udp.destination_port(), number(body, 8)?)
        }
        // The initiate tag of an INIT chunk.
        IpNumber::SCTP if *body.get(12)? == 1 => passed(port(body, 0)?, port(body, 2)?, number(body, 16)?),
        IpNumber::ICMP | IpNumber::IPV6_ICMP => {
            let (kind, code) = (*body.first()?, *body.get(1)?);
            let unreachable = if protocol == IpNumber::ICMP.0 { kind == 3 } else { kind == 1 };
            let (_, _, _, inner) = split(body.get(8..)?).filter(|_| unreachable)?;
            Some(Observation::Refused { port: port(inner, 0)?, by: Refusal::Icmp(kind, code) })
        }
        _ => None,
    }
}

fn port(body: &[u8], at: usize) -> Option<u16> {
    body.get(at..)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}

fn number(body: &[u8], at: usize) -> Option<u32> {
    body.get(at..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

/// Protocol, source, destination and what follows the header. The packet may be cut off, as in ICMP errors.
fn split(packet: &[u8]) -> Option<(u8, IpAddr, IpAddr, &[u8])> {
    let (ip, _) = LaxIpSlice::from_slice(packet).ok()?;
    Some((ip.payload_ip_number().0, ip.source_addr(), ip.destination_addr(), ip.payload().payload))
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
                assert_eq!(read(&bytes[..bytes.len() - 20]), None);
            }
        }
    }
}
