//! Sends the first packet of a connection with any source address, by a raw socket.
//!
//! Checksums are computed, because connection tracking treats other packets as invalid.

use std::net::{IpAddr, SocketAddr};

use proxier::model::Protocol;
use socket2::{Domain, Socket, Type};

use crate::cluster::sctp;
use crate::netns::Netns;

/// IPPROTO_RAW: the packet includes the IP header.
const RAW: i32 = 255;

/// Sends the packet from a namespace, which routes it by its destination and may reject it.
///
/// # Panics
/// If it cannot be sent.
pub fn send(netns: &Netns, protocol: Protocol, source: SocketAddr, destination: SocketAddr) {
    let packet = packet(protocol, source, destination);
    let sent = netns.enter(|| {
        let domain = if destination.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        let socket = Socket::new(domain, Type::RAW, Some(socket2::Protocol::from(RAW)))?;
        socket.send_to(&packet, &SocketAddr::new(destination.ip(), 0).into())
    });
    match sent {
        // A rejecting rule returns this error to the sender.
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {}
        sent => _ = sent.unwrap_or_else(|e| panic!("{} {source} -> {destination}: {e}", protocol.name())),
    }
}

/// The first packet of a connection, with its IP header.
fn packet(protocol: Protocol, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let ports = [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat();
    let mut payload = match protocol {
        // Sequence and acknowledgement number, data offset and flags (SYN), window, checksum, urgent pointer.
        Protocol::Tcp => [&ports[..], &[0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 4, 0, 0, 0, 0, 0]].concat(),
        Protocol::Udp => [&ports[..], &[0, 12, 0, 0], b"ping"].concat(),
        Protocol::Sctp => sctp::init(source.port(), destination.port()),
    };
    let at = match protocol {
        Protocol::Tcp => Some(16),
        Protocol::Udp => Some(6),
        Protocol::Sctp => None,
    };
    if let Some(at) = at {
        let sum = checksum(protocol, source.ip(), destination.ip(), &payload).to_be_bytes();
        payload[at..at + 2].copy_from_slice(&sum);
    }
    let length = u16::try_from(payload.len()).expect("a small packet").to_be_bytes();
    let mut packet = match (source.ip(), destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            // The kernel sets length, identification and checksum.
            let head = [0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol.number(), 0, 0];
            [&head[..], &source.octets(), &destination.octets()].concat()
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let head = [0x60, 0, 0, 0, length[0], length[1], protocol.number(), 64];
            [&head[..], &source.octets(), &destination.octets()].concat()
        }
        _ => panic!("{source} and {destination} are of different families"),
    };
    packet.extend(payload);
    packet
}

/// The internet checksum over pseudo header and payload, whose checksum is zero.
fn checksum(protocol: Protocol, source: IpAddr, destination: IpAddr, payload: &[u8]) -> u16 {
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let length = u16::try_from(payload.len()).expect("a small packet").to_be_bytes();
    let pseudo = [octets(source), octets(destination), vec![0, protocol.number()], length.to_vec()].concat();
    let words = |bytes: &[u8]| -> u32 {
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u32::from)).sum()
    };
    let mut sum = words(&pseudo) + words(payload);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or_default()
}
