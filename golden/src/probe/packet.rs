//! Packets that tell which probe they are, whatever rules do to their addresses and ports.
//!
//! In: addresses, a protocol, a number. Out: the bytes of a packet that opens a connection; of any packet, the number of
//! the probe that it is or is about. Must not know: rules.

use std::net::{IpAddr, SocketAddr};

/// IP's numbers for the protocols.
pub const TCP: u8 = 6;
/// See [`TCP`].
pub const UDP: u8 = 17;
/// See [`TCP`].
pub const SCTP: u8 = 132;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// What all probes are sent with; each router takes one off.
pub const TTL: u8 = 64;

const RST: u8 = 0x04;
const SYN: u8 = 0x02;

/// What became of a probe, as far as one packet tells.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sight {
    /// The probe's number.
    pub probe: u32,
    /// What the packet is.
    pub kind: Kind,
}

/// What a packet that has to do with a probe is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The probe itself, with the addresses and the TTL that it has now.
    Probe(SocketAddr, SocketAddr, u8),
    /// An ICMP error about it.
    Rejected,
    /// A TCP reset.
    Reset,
}

/// The packet of a probe.
#[must_use]
pub fn build(protocol: u8, source: SocketAddr, destination: SocketAddr, probe: u32) -> Vec<u8> {
    let mut segment = [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat();
    match protocol {
        TCP => {
            segment.extend(probe.to_be_bytes());
            segment.extend([0, 0, 0, 0, 5 << 4, SYN, 0xff, 0xff, 0, 0, 0, 0]);
        }
        UDP => {
            segment.extend([0, 12, 0, 0]);
            segment.extend(probe.to_be_bytes());
        }
        _ => {
            // An INIT chunk; its checksum is not looked at.
            segment.extend([0; 8]);
            segment.extend([1, 0, 0, 20]);
            segment.extend(probe.to_be_bytes());
            segment.extend([0, 0, 0xff, 0xff, 0, 10, 0, 10, 0, 0, 0, 1]);
        }
    }
    let at = match protocol {
        TCP => Some(16),
        UDP => Some(6),
        _ => None,
    };
    if let Some(at) = at {
        let sum = checksum(protocol, source.ip(), destination.ip(), &segment);
        segment[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
    let length = u16::try_from(segment.len()).expect("small");
    let mut packet = match (source.ip(), destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let total = (length + 20).to_be_bytes();
            // The kernel fills the checksum in.
            let head = [0x45, 0, total[0], total[1], 0, 0, 0, 0, TTL, protocol, 0, 0];
            [&head[..], &source.octets(), &destination.octets()].concat()
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let length = length.to_be_bytes();
            let head = [0x60, 0, 0, 0, length[0], length[1], protocol, TTL];
            [&head[..], &source.octets(), &destination.octets()].concat()
        }
        _ => panic!("{source} and {destination} are of two families"),
    };
    packet.extend(segment);
    packet
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn checksum(protocol: u8, source: IpAddr, destination: IpAddr, segment: &[u8]) -> u16 {
    let length = u16::try_from(segment.len()).expect("small").to_be_bytes();
    let pseudo = [octets(source), octets(destination), vec![0, protocol], length.to_vec(), segment.to_vec()].concat();
    let words = pseudo.chunks(2).map(|word| u32::from(word[0]) << 8 | word.get(1).map_or(0, |low| u32::from(*low)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded")
}

/// What a packet tells of a probe; `None` if nothing.
#[must_use]
pub fn read(packet: &[u8]) -> Option<Sight> {
    let at = |range: std::ops::Range<usize>| packet.get(range);
    let (protocol, ttl, source, destination, start) = match packet.first()? >> 4 {
        4 => {
            let start = usize::from(packet[0] & 0xf) * 4;
            let address = |range| Some(IpAddr::from(<[u8; 4]>::try_from(at(range)?).ok()?));
            (*packet.get(9)?, *packet.get(8)?, address(12..16)?, address(16..20)?, start)
        }
        6 => {
            let address = |range| Some(IpAddr::from(<[u8; 16]>::try_from(at(range)?).ok()?));
            (*packet.get(6)?, *packet.get(7)?, address(8..24)?, address(24..40)?, 40)
        }
        _ => return None,
    };
    let segment = packet.get(start..)?;
    if matches!((protocol, segment.first()?), (ICMP, 3) | (ICMPV6, 1)) {
        return read(segment.get(8..)?).map(|inner| Sight { kind: Kind::Rejected, ..inner });
    }
    let number = |at: usize| Some(u32::from_be_bytes(segment.get(at..at + 4)?.try_into().ok()?));
    let port = |at: usize| Some(u16::from_be_bytes(segment.get(at..at + 2)?.try_into().ok()?));
    let kind = Kind::Probe((source, port(0)?).into(), (destination, port(2)?).into(), ttl);
    match protocol {
        TCP if segment.get(13)? & RST != 0 => Some(Sight { probe: number(8)?.wrapping_sub(1), kind: Kind::Reset }),
        TCP => Some(Sight { probe: number(4)?, kind }),
        UDP => Some(Sight { probe: number(8)?, kind }),
        SCTP => Some(Sight { probe: number(16)?, kind }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_are_known_again() {
        for protocol in [TCP, UDP, SCTP] {
            for (source, destination) in [("10.0.0.1:5000", "10.96.0.1:80"), ("[fd00::1]:5000", "[fd00::2]:80")] {
                let (source, destination) = (source.parse().expect("an address"), destination.parse().expect("one"));
                let packet = build(protocol, source, destination, 0x0102_0304);
                let kind = Kind::Probe(source, destination, TTL);
                assert_eq!(read(&packet), Some(Sight { probe: 0x0102_0304, kind }));
                (0..packet.len()).for_each(|end| _ = read(&packet[..end]));
            }
        }
    }
}
