//! Reads links, routes, neighbours, sysctls and processes of the node.
//!
//! Values are those of the calling thread's network namespace. Nothing is changed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_sys::protocols::NETLINK_ROUTE;

use super::netlink::{Attributes, Netlink, Received, Request};
use crate::IpFamily;

const RTM_GETLINK: u16 = 18;
/// `struct ifinfomsg`: family, type, index, flags, change.
const IFINFOMSG: [u8; 16] = [0; 16];
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_GROUP: u16 = 27;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_BRPORT_MODE: u16 = 4;
const IFF_UP: u32 = 1;
const IFF_PROMISC: u32 = 0x100;
const IFF_LOWER_UP: u32 = 0x10000;

const RTM_GETNEIGH: u16 = 30;
/// `struct ndmsg`: family, padding, index, state, flags, type.
const NDMSG: usize = 12;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NDA_MASTER: u16 = 9;
/// The family that lists bridge forwarding entries instead of neighbours.
const AF_BRIDGE: u8 = 7;

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its MTU.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether it has a carrier: of a veth pair, whether the other end is up.
    pub carrier: bool,
    /// The kind, if the kernel has one: `bridge`, `veth`, `vxlan`.
    pub kind: Option<String>,
    /// The interface that it is a port of, such as a bridge.
    pub master: Option<String>,
    /// Of a bridge port: whether hairpin mode is enabled.
    pub hairpin: Option<bool>,
    /// Whether it is in promiscuous mode.
    pub promiscuous: bool,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// All interfaces, sorted by name.
///
/// # Errors
/// If they cannot be listed.
pub fn links() -> io::Result<Vec<Link>> {
    let found = indexed()?;
    let names: Vec<(u32, String)> = found.iter().map(|(index, _, link)| (*index, link.name.clone())).collect();
    let named = |index: u32| names.iter().find(|(other, _)| *other == index).map(|(_, name)| name.clone());
    let mut links: Vec<Link> =
        found.into_iter().map(|(_, master, link)| Link { master: master.and_then(named), ..link }).collect();
    for interface in nix::ifaddrs::getifaddrs()? {
        let Some(address) = interface.address else { continue };
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        let ip = v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())));
        if let Some(link) = links.iter_mut().find(|link| link.name == interface.interface_name) {
            link.addresses.extend(ip);
        }
    }
    links.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(links)
}

/// The interface indexes by name.
///
/// # Errors
/// If they cannot be listed.
pub fn interfaces() -> io::Result<BTreeMap<String, u32>> {
    let all = nix::net::if_::if_nameindex()?;
    Ok(all.iter().map(|one| (one.name().to_string_lossy().into_owned(), one.index())).collect())
}

/// All interfaces with their own index and their master's.
fn indexed() -> io::Result<Vec<(u32, Option<u32>, Link)>> {
    let mut found = Vec::new();
    Netlink::open(NETLINK_ROUTE)?.dump_once(&Request::new(RTM_GETLINK, 0, &IFINFOMSG), &mut |received| {
        found.extend(link(received));
        Ok(())
    })?;
    Ok(found)
}

/// The bridge port behind which an address is, according to the neighbour and forwarding tables.
///
/// # Errors
/// If the tables cannot be listed.
pub fn bridge_port(ip: IpAddr) -> io::Result<Option<String>> {
    let mut socket = Netlink::open(NETLINK_ROUTE)?;
    let mut list = |family: u8, each: &mut dyn FnMut(u32, Attributes<'_>)| {
        let mut header = [0; NDMSG];
        header[0] = family;
        socket.dump_once(&Request::new(RTM_GETNEIGH, 0, &header), &mut |received| {
            if let Some((index, attributes)) = neighbour(received) {
                each(index, attributes);
            }
            Ok(())
        })
    };
    let octets = match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let mut lives: Vec<(u32, Vec<u8>)> = Vec::new();
    list(IpFamily::of(&ip).nfproto(), &mut |on, attributes| {
        if attributes.find(NDA_DST) == Some(&octets) {
            lives.extend(attributes.find(NDA_LLADDR).map(|mac| (on, mac.to_vec())));
        }
    })?;
    let mut ports = Vec::new();
    list(AF_BRIDGE, &mut |port, attributes| {
        let bridge = attributes.ne32(NDA_MASTER);
        let mac = attributes.find(NDA_LLADDR);
        if lives.iter().any(|(on, of)| bridge == Some(*on) && mac == Some(of)) {
            ports.push(port);
        }
    })?;
    let links = if ports.is_empty() { Vec::new() } else { indexed()? };
    Ok(links.into_iter().find(|(index, _, _)| ports.contains(index)).map(|(_, _, link)| link.name))
}

/// Decodes a neighbour: the index of its device, and its attributes.
pub(super) fn neighbour<'a>(received: &Received<'a>) -> Option<(u32, Attributes<'a>)> {
    let index = received.payload.get(4..8)?.try_into().ok()?;
    Some((u32::from_ne_bytes(index), received.attributes(NDMSG)))
}

/// Decodes a link: its index, its master's index, and the link.
pub(super) fn link(received: &Received<'_>) -> Option<(u32, Option<u32>, Link)> {
    let number = |at: usize| received.payload.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let attributes = received.attributes(IFINFOMSG.len());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned();
    let info = attributes.nest(IFLA_LINKINFO);
    let of_bridge = info.and_then(|info| info.find(IFLA_INFO_SLAVE_KIND)).is_some_and(|kind| text(kind) == "bridge");
    let port = info.and_then(|info| info.nest(IFLA_INFO_SLAVE_DATA)).filter(|_| of_bridge);
    let link = Link {
        name: text(attributes.find(IFLA_IFNAME)?),
        mtu: attributes.ne32(IFLA_MTU).unwrap_or_default(),
        up: number(8)? & IFF_UP != 0,
        carrier: number(8)? & IFF_LOWER_UP != 0,
        kind: info.and_then(|info| info.find(IFLA_INFO_KIND)).map(text),
        master: None,
        hairpin: port.and_then(|port| port.find_array::<1>(IFLA_BRPORT_MODE)).map(|[mode]| mode != 0),
        promiscuous: number(8)? & IFF_PROMISC != 0,
        addresses: Vec::new(),
    };
    Some((number(4)?, attributes.ne32(IFLA_MASTER), link))
}

/// A numeric sysctl by its path below `/proc/sys`; `None` if it does not exist.
#[must_use]
pub fn sysctl(name: &str) -> Option<i64> {
    std::fs::read_to_string(format!("/proc/sys/{name}")).ok()?.trim().parse().ok()
}

/// Whether the kernel forwards packets that came in on an interface. If it cannot be read, it does.
///
/// In IPv4 the setting of the interface decides (`ip_route_input_slow`), which a write of `ip_forward` sets on all. In IPv6
/// that of all interfaces does, whatever the interface's own says, or `force_forwarding` of the interface, as of Linux 6.17
/// (`ip6_forward`).
#[must_use]
pub fn forwards(family: IpFamily, interface: &str) -> bool {
    let is = |name: &str, value: i64| sysctl(name) == Some(value);
    match family {
        IpFamily::V4 => !is(&format!("net/ipv4/conf/{interface}/forwarding"), 0),
        IpFamily::V6 => {
            !is("net/ipv6/conf/all/forwarding", 0) || is(&format!("net/ipv6/conf/{interface}/force_forwarding"), 1)
        }
    }
}

/// Whether the kernel handles packets of a family on an interface: `disable_ipv6` drops those that come in (`ip6_rcv_core`)
/// and those that would leave (`ip6_output`). If it cannot be read, it does.
#[must_use]
pub fn handles(family: IpFamily, interface: &str) -> bool {
    family == IpFamily::V4 || sysctl(&format!("net/ipv6/conf/{interface}/disable_ipv6")) != Some(1)
}

/// A number of the group `TcpExt` in `/proc/net/netstat`; `None` if there is none.
#[must_use]
pub fn tcp_counter(name: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/net/netstat").ok()?;
    let mut rows = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, values) = (rows.next()?, rows.next()?);
    let at = names.split(' ').position(|word| word == name)?;
    values.split(' ').nth(at)?.parse().ok()
}

/// The bridges whose packets the rules of iptables see on their way through.
#[must_use]
pub fn filtered_bridges(family: IpFamily) -> BTreeSet<String> {
    let name = if family == IpFamily::V4 { "bridge-nf-call-iptables" } else { "bridge-nf-call-ip6tables" };
    if sysctl(&format!("net/bridge/{name}")).unwrap_or(0) == 0 {
        return BTreeSet::new();
    }
    let bridges = links().unwrap_or_default().into_iter().filter(|link| link.kind.as_deref() == Some("bridge"));
    bridges.map(|link| link.name).collect()
}

/// The groups of these interfaces, as far as the kernel says.
#[must_use]
pub fn groups(interfaces: &BTreeMap<String, u32>) -> BTreeMap<String, u32> {
    let mut groups = BTreeMap::new();
    let listed = Netlink::open(NETLINK_ROUTE).map(|mut socket| {
        socket.dump_once(&Request::new(RTM_GETLINK, 0, &IFINFOMSG), &mut |received| {
            let attributes = received.attributes(IFINFOMSG.len());
            let name = attributes
                .find(IFLA_IFNAME)
                .map(|name| String::from_utf8_lossy(name).trim_end_matches('\0').to_owned());
            let group = attributes.find_array(IFLA_GROUP).map(u32::from_ne_bytes);
            groups.extend(name.zip(group).filter(|(name, _)| interfaces.contains_key(name)));
            Ok(())
        })
    });
    if matches!(listed, Ok(Ok(_))) { groups } else { BTreeMap::new() }
}

/// The queues of packets for which a program listens; `None` if the kernel does not say.
#[must_use]
pub fn queues() -> Option<BTreeSet<u16>> {
    let text = std::fs::read_to_string("/proc/thread-self/net/netfilter/nfnetlink_queue").ok()?;
    Some(text.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect())
}

/// The main routing table: each destination network with its output interface.
#[must_use]
pub fn routes(family: IpFamily) -> Vec<(IpNet, String)> {
    match family {
        IpFamily::V4 => {
            let text = std::fs::read_to_string("/proc/thread-self/net/route").unwrap_or_default();
            text.lines().skip(1).filter_map(route_v4).collect()
        }
        IpFamily::V6 => {
            let text = std::fs::read_to_string("/proc/thread-self/net/ipv6_route").unwrap_or_default();
            text.lines().filter_map(route_v6).collect()
        }
    }
}

/// Parses a line of `/proc/net/route`.
///
/// `eth0 000200C0 00000000 0001 0 0 0 00FFFFFF …`: device, network, gateway, flags, …, mask, in host byte order.
pub(super) fn route_v4(line: &str) -> Option<(IpNet, String)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let number = |at: usize| u32::from_str_radix(words.get(at)?, 16).ok().map(u32::to_ne_bytes);
    let mask = Ipv4Addr::from(number(7)?);
    let net = IpNet::with_netmask(Ipv4Addr::from(number(1)?).into(), mask.into()).ok()?;
    Some((net, (*words.first()?).to_owned()))
}

/// Parses a line of `/proc/net/ipv6_route`: network, prefix length, …, device. Unreachable routes are on `lo`.
pub(super) fn route_v6(line: &str) -> Option<(IpNet, String)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let network = Ipv6Addr::from(u128::from_str_radix(words.first()?, 16).ok()?);
    let length = u8::from_str_radix(words.get(1)?, 16).ok()?;
    let device = (*words.last()?).to_owned();
    Some((IpNet::new(network.into(), length).ok()?, device)).filter(|(_, device)| device != "lo")
}

/// The other processes of a program in the calling thread's network namespace: process ID and command line.
#[must_use]
pub fn processes(program: &str) -> Vec<(u32, Vec<String>)> {
    let here = std::fs::read_link("/proc/thread-self/ns/net").ok();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let Some(words) = command_line(&line, program).filter(|_| pid != std::process::id()) else { continue };
        if std::fs::read_link(entry.path().join("ns/net")).ok() == here {
            found.push((pid, words));
        }
    }
    found.sort();
    found
}

/// The non-empty arguments in `/proc/PID/cmdline`, if the program is the given one.
pub(super) fn command_line(line: &[u8], program: &str) -> Option<Vec<String>> {
    let words: Vec<String> = line.split(|b| *b == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    let name = words.first().and_then(|word| word.rsplit('/').next());
    (name == Some(program)).then(|| words.into_iter().filter(|word| !word.is_empty()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_route_lines_are_parsed() {
        let line = "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0";
        if cfg!(target_endian = "little") {
            assert_eq!(route_v4(line), Some(("192.0.2.0/24".parse().expect("a net"), "eth0".to_owned())));
        }
        let line = "fd000000000000000000000000000000 40 0 00 0 00000100 00000001 00000000 00000001     eth1";
        assert_eq!(route_v6(line), Some(("fd00::/64".parse().expect("a net"), "eth1".to_owned())));
        assert_eq!((route_v4("Iface what"), route_v6("")), (None, None));
    }
}
