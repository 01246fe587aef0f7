//! SCTP INIT chunks (RFC 9260) on raw sockets, for kernels without SCTP sockets.
//!
//! netfilter translates SCTP all the same. Checksums are computed on sending, because connection tracking treats other
//! packets as invalid, and verified on arrival.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::address::Family;
use super::client::Client;
use crate::netns::Netns;

/// IPPROTO_SCTP.
const SCTP: i32 = 132;
/// Source and destination port, verification tag, checksum.
const HEADER: usize = 12;

/// Receives the SCTP packets to one address.
#[derive(Debug)]
pub struct SctpSink {
    socket: UdpSocket,
    v4: bool,
}

impl SctpSink {
    pub(super) fn new(netns: &Netns, address: IpAddr) -> Self {
        let socket = netns.enter(|| {
            let socket = raw(address)?;
            socket.set_read_timeout(Some(Duration::from_millis(100)))?;
            socket.bind(&SocketAddr::new(address, 0).into())?;
            // A raw socket wrapped in UdpSocket, whose recv_from is safe.
            std::io::Result::Ok(UdpSocket::from(socket))
        });
        Self { socket: socket.expect("a raw socket"), v4: address.is_ipv4() }
    }

    /// The sender and destination port of the next INIT before the timeout.
    #[must_use]
    pub fn receive(&self, timeout: Duration) -> Option<(IpAddr, u16)> {
        let start = Instant::now();
        let mut packet = [0; 256];
        while start.elapsed() < timeout {
            let Ok((length, sender)) = self.socket.recv_from(&mut packet) else { continue };
            // IPv4 raw sockets return the IP header too.
            let skip = if self.v4 { usize::from(packet[0] & 0x0f) * 4 } else { 0 };
            if let Some(port) = packet.get(skip..length).and_then(init_port) {
                return Some((sender.ip(), port));
            }
        }
        None
    }
}

impl Client<'_> {
    /// Sends one INIT from this port.
    ///
    /// # Panics
    /// If it cannot be sent.
    #[track_caller]
    pub fn send_sctp_init(&self, from_port: u16, to: SocketAddr) {
        let sent = self.netns.enter(|| {
            let socket = raw(to.ip())?;
            if let Some(source) = self.source {
                let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
                socket.bind(&source.at(family, 0).into())?;
            }
            // For a raw IPv6 socket the port is a protocol number and must be 0.
            socket.send_to(&init(from_port, to.port()), &SocketAddr::new(to.ip(), 0).into())
        });
        sent.unwrap_or_else(|e| panic!("SCTP {} -> {to}: {e}", self.name));
    }
}

fn raw(address: IpAddr) -> std::io::Result<Socket> {
    let domain = if address.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    Socket::new(domain, Type::RAW, Some(Protocol::from(SCTP)))
}

/// A packet with one INIT chunk: tag, window, outbound and inbound streams, initial sequence number.
pub(crate) fn init(from: u16, to: u16) -> Vec<u8> {
    let mut packet = [from.to_be_bytes(), to.to_be_bytes()].concat();
    packet.extend([0; 8]);
    packet.extend([1, 0, 0, 20]);
    packet.extend([1, 2, 3, 4, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
    let checksum = checksum(&packet).to_le_bytes();
    packet[8..HEADER].copy_from_slice(&checksum);
    packet
}

/// The destination port of a valid INIT.
fn init_port(packet: &[u8]) -> Option<u16> {
    let sum = u32::from_le_bytes(packet.get(8..HEADER)?.try_into().ok()?);
    let intact = packet.get(HEADER) == Some(&1) && checksum(packet) == sum;
    intact.then(|| u16::from_be_bytes([packet[2], packet[3]]))
}

/// The CRC32c of the packet with a zero checksum field.
fn checksum(packet: &[u8]) -> u32 {
    let blank = |(at, byte): (usize, &u8)| if (8..HEADER).contains(&at) { 0 } else { *byte };
    !packet.iter().enumerate().map(blank).fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| if sum & 1 == 1 { sum >> 1 ^ 0x82f6_3b78 } else { sum >> 1 })
    })
}

#[cfg(test)]
mod tests {
    use super::{init, init_port};

    #[test]
    fn damaged_packet_has_an_invalid_checksum() {
        let mut packet = init(1000, 80);
        assert_eq!(init_port(&packet), Some(80));
        packet[3] ^= 1;
        assert_eq!(init_port(&packet), None);
    }
}
