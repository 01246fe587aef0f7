//! Sends the first packet of a connection with any source address, by a raw socket.
//!
//! Checksums are computed, because connection tracking treats other packets as invalid.

use std::net::{IpAddr, SocketAddr};

use etherparse::{IpHeaders, IpNumber, PacketBuilder, PacketBuilderStep};
use proxier::model::Protocol;
use socket2::{Domain, Socket, Type};

use crate::cluster::sctp;
use crate::netns::Netns;

/// The time to live, or hop limit.
const HOPS: u8 = 64;
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
    let (from, to) = (source.port(), destination.port());
    let ip = ip_header(source.ip(), destination.ip());
    let mut packet = Vec::new();
    let written = match protocol {
        Protocol::Tcp => ip.tcp(from, to, 1, 1024).syn().write(&mut packet, &[]),
        Protocol::Udp => ip.udp(from, to).write(&mut packet, b"ping"),
        Protocol::Sctp => ip.write(&mut packet, IpNumber::SCTP, &sctp::init(from, to)),
    };
    written.expect("a small packet");
    packet
}

/// Begins a packet with the header of its family.
///
/// # Panics
/// If the addresses are of different families.
pub(crate) fn ip_header(source: IpAddr, destination: IpAddr) -> PacketBuilderStep<IpHeaders> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            PacketBuilder::ipv4(source.octets(), destination.octets(), HOPS)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            PacketBuilder::ipv6(source.octets(), destination.octets(), HOPS)
        }
        _ => panic!("{source} and {destination} are of different families"),
    }
}
