//! Makes TCP clients send a segment at once, with a segment that they must answer.
//!
//! The probe is a SYN,ACK from the address that the client connected to. A client with an established connection answers
//! every SYN with a challenge ACK that has its exact sequence numbers (RFC 5961, section 4), whether it has data to send
//! or not. conntrack creates no entry for a SYN,ACK that belongs to none, so the answer is the first segment of a new
//! flow: NAT rules apply to it, and the endpoint that they choose resets the connection, which it does not know.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, sendto, socket,
};

use crate::{Flow, IpFamily};

const IPPROTO_TCP: u8 = 6;
const TCP_LENGTH: u16 = 20;
const HOP_LIMIT: u8 = 64;
const SYN_ACK: u8 = 0x12;

/// Sends probes to TCP clients.
pub trait ClientProbe: Send + std::fmt::Debug {
    /// Probes the clients of TCP flows, in the name of the destinations that the clients know.
    ///
    /// # Errors
    /// The first failure; all clients that can be probed are probed.
    fn probe(&mut self, family: IpFamily, flows: &[Flow]) -> io::Result<()>;
}

/// Probes clients through the network of the running kernel; needs `CAP_NET_RAW`.
#[derive(Debug, Default)]
pub struct SystemClientProbe;

impl ClientProbe for SystemClientProbe {
    fn probe(&mut self, family: IpFamily, flows: &[Flow]) -> io::Result<()> {
        if flows.is_empty() {
            return Ok(());
        }
        let domain = match family {
            IpFamily::V4 => AddressFamily::Inet,
            IpFamily::V6 => AddressFamily::Inet6,
        };
        // IPPROTO_RAW: packets are sent with the header that they contain, in both families.
        let socket = socket(domain, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)?;
        let mut failure = None;
        for flow in flows {
            let sent = match (flow.original.destination.ip(), flow.original.source.ip()) {
                (IpAddr::V4(from), IpAddr::V4(to)) => {
                    let to_any = SockaddrIn::from(SocketAddrV4::new(to, 0));
                    sendto(socket.as_raw_fd(), &packet_v4(flow, from, to), &to_any, MsgFlags::MSG_DONTWAIT)
                }
                (IpAddr::V6(from), IpAddr::V6(to)) => {
                    let to_any = SockaddrIn6::from(SocketAddrV6::new(to, 0, 0, 0));
                    sendto(socket.as_raw_fd(), &packet_v6(flow, from, to), &to_any, MsgFlags::MSG_DONTWAIT)
                }
                _ => continue,
            };
            if let Err(errno) = sent {
                failure.get_or_insert(errno);
            }
        }
        failure.map_or(Ok(()), |errno| Err(errno.into()))
    }
}

/// An IPv4 packet; the kernel fills in its length, identification and checksum.
fn packet_v4(flow: &Flow, from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let addresses = [from.octets(), to.octets()].concat();
    let segment = segment(flow, &addresses);
    let header = [0x45, 0, 0, 0, 0, 0, 0, 0, HOP_LIMIT, IPPROTO_TCP, 0, 0];
    [&header[..], &addresses, &segment].concat()
}

fn packet_v6(flow: &Flow, from: Ipv6Addr, to: Ipv6Addr) -> Vec<u8> {
    let addresses = [from.octets(), to.octets()].concat();
    let segment = segment(flow, &addresses);
    let [high, low] = TCP_LENGTH.to_be_bytes();
    let header = [0x60, 0, 0, 0, high, low, IPPROTO_TCP, HOP_LIMIT];
    [&header[..], &addresses, &segment].concat()
}

/// A SYN,ACK with sequence numbers zero: the client has to answer it wherever its window is.
fn segment(flow: &Flow, addresses: &[u8]) -> Vec<u8> {
    let mut segment = vec![0; usize::from(TCP_LENGTH)];
    segment[0..2].copy_from_slice(&flow.original.destination.port().to_be_bytes());
    segment[2..4].copy_from_slice(&flow.original.source.port().to_be_bytes());
    segment[12] = 5 << 4;
    segment[13] = SYN_ACK;
    let pseudo = [addresses, &[0, IPPROTO_TCP], &TCP_LENGTH.to_be_bytes()].concat();
    let checksum = checksum(&[pseudo, segment.clone()].concat());
    segment[16..18].copy_from_slice(&checksum.to_be_bytes());
    segment
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tuple;

    fn flow(client: &str, to: &str, endpoint: &str) -> Flow {
        let [client, to, endpoint] = [client, to, endpoint].map(|text| text.parse().expect("an address"));
        let (original, reply) =
            (Tuple { source: client, destination: to }, Tuple { source: endpoint, destination: client });
        Flow { protocol: IPPROTO_TCP, original, reply }
    }

    #[test]
    fn checksum_of_the_example_in_rfc_1071() {
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
    }

    #[test]
    fn a_probe_goes_from_the_service_to_the_client_with_a_valid_checksum() {
        let v4 = flow("10.0.0.1:40000", "10.96.0.10:80", "10.0.0.5:8080");
        let packet = packet_v4(&v4, Ipv4Addr::new(10, 96, 0, 10), Ipv4Addr::new(10, 0, 0, 1));
        assert_eq!(packet[12..20], [10, 96, 0, 10, 10, 0, 0, 1]);
        assert_eq!(packet[20..24], [0, 80, 0x9c, 0x40], "ports 80 and 40000");
        assert_eq!(packet[33], SYN_ACK);
        let pseudo = [&packet[12..20], &[0, 6, 0, 20]].concat();
        assert_eq!(checksum(&[&pseudo, &packet[20..]].concat()), 0);

        let v6 = flow("[fd00::1]:40000", "[fd00::a]:80", "[fd00::5]:8080");
        let ends = ["fd00::a", "fd00::1"].map(|text| text.parse::<Ipv6Addr>().expect("an address"));
        let packet = packet_v6(&v6, ends[0], ends[1]);
        assert_eq!((packet.len(), packet[4..8].to_vec()), (60, vec![0, 20, 6, 64]));
        let pseudo = [&packet[8..40], &[0, 6, 0, 20]].concat();
        assert_eq!(checksum(&[&pseudo, &packet[40..]].concat()), 0);
    }
}
