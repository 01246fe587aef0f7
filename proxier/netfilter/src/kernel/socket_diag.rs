//! Bound sockets of the calling thread's network namespace, with what `/proc/net` does not show.
//!
//! The kernel's `sock_diag` tells the interface a socket is bound to and whether an IPv6 socket refuses IPv4. A kernel without
//! it has `/proc/net`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use super::netlink::{Netlink, NetlinkError, Received, Request};
use super::sockets::proc_sockets;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// The sizes of `struct inet_diag_sockid` and `struct inet_diag_msg`.
const SOCKID: usize = 48;
const INET_DIAG_MSG: usize = 72;
const INET_DIAG_SKV6ONLY: u16 = 11;
/// Socket states: connected, not connected (UDP), listening (TCP).
const ESTABLISHED: u8 = 1;
const CLOSE: u8 = 7;
const LISTEN: u8 = 10;

/// A socket that takes new packets or connections at a port, or a connected UDP socket.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BoundSocket {
    /// Its local address as the socket has it; unspecified: any.
    pub address: IpAddr,
    /// Its local port.
    pub port: u16,
    /// Whether it only takes packets of one peer: a connected UDP socket.
    pub is_connected: bool,
    /// Of an IPv6 socket: whether it takes no IPv4; `None`: unknown.
    pub v6_only: Option<bool>,
    /// The interface index it is bound to (`SO_BINDTODEVICE`); 0: none; `None`: unknown.
    pub device: Option<u32>,
}

impl BoundSocket {
    /// Whether the socket's address covers an address of its namespace; `None` if that is unknown.
    #[must_use]
    pub fn covers(&self, ip: IpAddr) -> Option<bool> {
        match self.address {
            IpAddr::V6(any) if any.is_unspecified() && ip.is_ipv4() => self.v6_only.map(|only| !only),
            any if any.is_unspecified() => Some(any.is_ipv4() == ip.is_ipv4()),
            exact => Some(exact.to_canonical() == ip.to_canonical()),
        }
    }
}

/// The sockets of that protocol (`tcp` or `udp`) that are bound to a port; `None` for other protocols.
///
/// # Errors
/// If the kernel lists none, neither way.
pub fn bound_sockets(protocol: &str) -> io::Result<Option<Vec<BoundSocket>>> {
    let (number, states): (u8, u32) = match protocol {
        "tcp" => (6, 1 << LISTEN),
        "udp" => (17, 1 << CLOSE | 1 << ESTABLISHED),
        _ => return Ok(None),
    };
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        match listed(u8::try_from(family).unwrap_or_default(), number, states, &mut found) {
            Ok(()) => {}
            // Without the module for that protocol, or without rights to load it.
            Err(_) => return proc_sockets(protocol).map(Some),
        }
    }
    found.sort();
    found.dedup();
    Ok(Some(found))
}

fn listed(family: u8, protocol: u8, states: u32, found: &mut Vec<BoundSocket>) -> Result<(), NetlinkError> {
    let mut header = vec![family, protocol, 0, 0];
    header.extend(states.to_ne_bytes());
    header.extend([0; SOCKID]);
    let request = Request::new(SOCK_DIAG_BY_FAMILY, 0, &header);
    Netlink::open(NETLINK_SOCK_DIAG)?.dump_once(&request, &mut |received| {
        found.extend(socket(received).filter(|socket| socket.port != 0));
        Ok(())
    })?;
    Ok(())
}

/// Decodes `struct inet_diag_msg`: family, state, timer, retransmissions, then ports, addresses and interface.
fn socket(received: &Received<'_>) -> Option<BoundSocket> {
    let bytes = received.payload;
    let (family, state) = (*bytes.first()?, *bytes.get(1)?);
    let address = bytes.get(8..24)?;
    let address = if i32::from(family) == libc::AF_INET {
        Ipv4Addr::from(<[u8; 4]>::try_from(address.get(..4)?).ok()?).into()
    } else {
        Ipv6Addr::from(<[u8; 16]>::try_from(address).ok()?).into()
    };
    let v6_only = received.attributes(INET_DIAG_MSG).find_array::<1>(INET_DIAG_SKV6ONLY).map(|[only]| only != 0);
    Some(BoundSocket {
        address,
        port: u16::from_be_bytes(bytes.get(4..6)?.try_into().ok()?),
        is_connected: state == ESTABLISHED,
        v6_only,
        device: Some(u32::from_ne_bytes(bytes.get(40..44)?.try_into().ok()?)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, UdpSocket};

    #[test]
    fn sockets_are_listed_as_they_were_bound() {
        let tcp = TcpListener::bind("[::]:0").expect("a port").local_addr().expect("an address").port();
        let listener = TcpListener::bind(("0.0.0.0", 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let udp = UdpSocket::bind("127.0.0.1:0").expect("a port");
        udp.connect("127.0.0.1:9").expect("connected");
        let at = |protocol: &str, port: u16| -> Vec<BoundSocket> {
            let sockets = bound_sockets(protocol).expect("sockets").expect("a known protocol");
            sockets.into_iter().filter(|socket| socket.port == port).collect()
        };
        assert!(at("tcp", tcp).is_empty(), "it is closed again");
        let [found] = &at("tcp", port)[..] else { panic!("one socket") };
        let covers = |ip: &str| found.covers(ip.parse().expect("an address"));
        assert_eq!((covers("10.244.1.5"), covers("fd00::1")), (Some(true), Some(false)));
        let [found] = &at("udp", udp.local_addr().expect("an address").port())[..] else { panic!("one socket") };
        assert!(found.is_connected);
        assert_eq!(bound_sockets("sctp").expect("no error"), None);
    }
}
