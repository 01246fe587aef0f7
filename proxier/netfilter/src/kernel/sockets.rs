//! Listening sockets of the calling thread's network namespace, from `/proc/net`.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::socket_diag::BoundSocket;

/// The state of a TCP socket that listens, and of a UDP socket that is not connected, as `/proc/net` prints them.
const TCP_LISTEN: &str = "0A";
const UDP_UNCONNECTED: &str = "07";
const CONNECTED: &str = "01";

/// Whether a process listens for that protocol (`tcp` or `udp`) at an address and port; `None` for other protocols.
///
/// # Errors
/// If the kernel's lists cannot be read.
pub fn listens(ip: IpAddr, port: u16, protocol: &str) -> io::Result<Option<bool>> {
    Ok(listening_inodes(ip, port, protocol)?.map(|inodes| !inodes.is_empty()))
}

/// The inodes of the sockets that listen for that protocol (`tcp` or `udp`) at an address and port; `None` for other
/// protocols.
///
/// # Errors
/// If the kernel's lists cannot be read.
pub fn listening_inodes(ip: IpAddr, port: u16, protocol: &str) -> io::Result<Option<Vec<u64>>> {
    let state = match protocol {
        "tcp" => TCP_LISTEN,
        "udp" => UDP_UNCONNECTED,
        _ => return Ok(None),
    };
    let serves = |(at, open, _): &(IpAddr, u16, u64)| *open == port && (*at == ip || at.is_unspecified());
    let mut found = Vec::new();
    // A socket of IPv6 may take packets of IPv4 too.
    for suffix in ["", "6"] {
        let text = match std::fs::read_to_string(format!("/proc/thread-self/net/{protocol}{suffix}")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && suffix == "6" => continue,
            read => read?,
        };
        let sockets = text.lines().skip(1).filter_map(|line| socket(line, state));
        found.extend(sockets.filter(serves).map(|(.., inode)| inode));
    }
    Ok(Some(found))
}

/// The ID and name of a process that holds a socket; `None` if no visible process holds it.
///
/// # Errors
/// If none is found and the open files of a process cannot be read, which takes root.
pub fn process_of_socket(inode: u64) -> io::Result<Option<(u32, String)>> {
    let (target, mut unread) = (format!("socket:[{inode}]"), None);
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let files = match std::fs::read_dir(entry.path().join("fd")) {
            Ok(files) => files,
            Err(error) => {
                // A process may end meanwhile.
                unread = unread.or(Some(error).filter(|error| error.kind() == io::ErrorKind::PermissionDenied));
                continue;
            }
        };
        let is_it = |path: std::path::PathBuf| std::fs::read_link(path).is_ok_and(|link| link.as_os_str() == &*target);
        if files.flatten().any(|file| is_it(file.path())) {
            return Ok(Some((pid, process_name(pid))));
        }
    }
    unread.map_or(Ok(None), Err)
}

/// The name of a process, empty if it has ended.
#[must_use]
pub fn process_name(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned()
}

/// The addresses at which sockets take new packets: TCP sockets that listen and all UDP sockets, with the protocol's number.
/// An unspecified address: any.
///
/// # Errors
/// If the kernel's lists cannot be read.
pub fn open_sockets() -> io::Result<BTreeSet<(u8, SocketAddr)>> {
    let mut found = BTreeSet::new();
    for (protocol, number, states) in [("tcp", 6, &[TCP_LISTEN][..]), ("udp", 17, &[UDP_UNCONNECTED, CONNECTED])] {
        for suffix in ["", "6"] {
            let text = match std::fs::read_to_string(format!("/proc/thread-self/net/{protocol}{suffix}")) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && suffix == "6" => continue,
                read => read?,
            };
            let sockets = text.lines().skip(1).filter_map(|line| states.iter().find_map(|state| socket(line, state)));
            found.extend(sockets.map(|(ip, port, _)| (number, SocketAddr::new(ip.to_canonical(), port))));
        }
    }
    Ok(found)
}

/// The sockets of a protocol (`tcp` or `udp`) that are bound to a port, as far as `/proc/net` shows them.
///
/// # Errors
/// If the kernel's lists cannot be read.
pub(super) fn proc_sockets(protocol: &str) -> io::Result<Vec<BoundSocket>> {
    let states = if protocol == "tcp" { &[TCP_LISTEN][..] } else { &[UDP_UNCONNECTED, CONNECTED] };
    let mut found = Vec::new();
    for suffix in ["", "6"] {
        let text = match std::fs::read_to_string(format!("/proc/thread-self/net/{protocol}{suffix}")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && suffix == "6" => continue,
            read => read?,
        };
        for state in states {
            let bound = text.lines().skip(1).filter_map(|line| socket(line, state));
            found.extend(bound.map(|(address, port, _)| BoundSocket {
                address,
                port,
                is_connected: *state == CONNECTED,
                v6_only: None,
                device: None,
            }));
        }
    }
    Ok(found)
}

/// The local address and the inode of a line `0: 0100007F:0277 00000000:0000 0A …` whose socket is in that state.
fn socket(line: &str, state: &str) -> Option<(IpAddr, u16, u64)> {
    let mut words = line.split_whitespace().skip(1);
    let (address, port) = words.next()?.split_once(':')?;
    if words.nth(1)? != state {
        return None;
    }
    // Words of 32 bits, each in the machine's order.
    let word = |at: usize| u32::from_str_radix(address.get(at * 8..at * 8 + 8)?, 16).ok().map(u32::to_ne_bytes);
    let ip = match address.len() {
        8 => Ipv4Addr::from(word(0)?).into(),
        _ => Ipv6Addr::from(<[u8; 16]>::try_from([word(0)?, word(1)?, word(2)?, word(3)?].concat()).ok()?).into(),
    };
    // Queues, timer, retransmissions, user and timeout are before it.
    let inode = words.nth(5)?.parse().ok()?;
    Some((ip, u16::from_str_radix(port, 16).ok()?, inode))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, UdpSocket};

    #[test]
    fn a_listening_port_is_found_and_a_closed_one_is_not() {
        let tcp = TcpListener::bind("127.0.0.1:0").expect("a port");
        let at = tcp.local_addr().expect("an address");
        let is_open = |protocol: &str| listens(at.ip(), at.port(), protocol).expect("/proc/net");
        assert_eq!((is_open("tcp"), is_open("sctp")), (Some(true), None));
        assert_eq!(listens("127.0.0.2".parse().expect("an address"), at.port(), "tcp").ok(), Some(Some(false)));
        let sockets = open_sockets().expect("/proc/net");
        assert!(sockets.contains(&(6, at)) && !sockets.contains(&(17, at)), "{sockets:?}");
        let inodes = listening_inodes(at.ip(), at.port(), "tcp").expect("/proc/net").expect("TCP");
        let holder = process_of_socket(inodes[0]).expect("/proc");
        assert_eq!(holder.map(|(pid, _)| pid), Some(std::process::id()));
        drop(tcp);
        assert_eq!(is_open("tcp"), Some(false));
        let udp = UdpSocket::bind("[::1]:0").expect("a port").local_addr().expect("an address");
        assert_eq!(listens(udp.ip(), udp.port(), "udp").ok(), Some(Some(false)), "it is closed again");
    }
}
