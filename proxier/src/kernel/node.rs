//! What else on the node decides about packets: links, routes, numbers in `/proc/sys`.
//!
//! In: nothing. Out: what the kernel says in the network namespace of the calling thread. Must not know: what of it is
//! good or bad. Nothing is changed.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::family::IpFamily;

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its MTU.
    pub mtu: u32,
    /// Whether it is up.
    pub up: bool,
    /// Whether it is a port of a bridge.
    pub bridge_port: bool,
    /// As a port of a bridge: whether it sends packets back where they came from.
    pub hairpin: bool,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// The interfaces, in the order of their names.
///
/// # Errors
/// If the kernel does not say.
pub fn links() -> io::Result<Vec<Link>> {
    let mut links: Vec<Link> = Vec::new();
    for interface in nix::ifaddrs::getifaddrs()? {
        let up = interface.flags.contains(nix::net::if_::InterfaceFlags::IFF_UP);
        let name = interface.interface_name;
        let at = links.iter().position(|link| link.name == name).unwrap_or_else(|| {
            // /sys shows the network namespace that it was mounted in, which may be another.
            let of = |file: &str| std::fs::read_to_string(format!("/sys/class/net/{name}/{file}")).ok();
            let number = |file| of(file).and_then(|text| text.trim().parse().ok());
            links.push(Link {
                mtu: mtu(&name).unwrap_or_default(),
                up,
                bridge_port: number("brport/hairpin_mode").is_some(),
                hairpin: number("brport/hairpin_mode") == Some(1),
                addresses: Vec::new(),
                name: name.clone(),
            });
            links.len() - 1
        });
        let Some(address) = interface.address else { continue };
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        links[at].addresses.extend(v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip()))));
    }
    links.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(links)
}

/// The MTU that IPv6 or, without it, the device has.
fn mtu(name: &str) -> Option<u32> {
    let read = |path: String| std::fs::read_to_string(path).ok()?.trim().parse().ok();
    read(format!("/proc/sys/net/ipv6/conf/{name}/mtu")).or_else(|| read(format!("/sys/class/net/{name}/mtu")))
}

/// A number in `/proc/sys`, named as below it; `None` if there is none.
#[must_use]
pub fn sysctl(name: &str) -> Option<i64> {
    std::fs::read_to_string(format!("/proc/sys/{name}")).ok()?.trim().parse().ok()
}

/// The main routing table: where packets to which networks leave.
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

/// `eth0 000200C0 00000000 0001 0 0 0 00FFFFFF …`: device, network, gateway, flags, …, mask, in the machine's order.
fn route_v4(line: &str) -> Option<(IpNet, String)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let number = |at: usize| u32::from_str_radix(words.get(at)?, 16).ok().map(u32::to_ne_bytes);
    let mask = Ipv4Addr::from(number(7)?);
    let net = IpNet::with_netmask(Ipv4Addr::from(number(1)?).into(), mask.into()).ok()?;
    Some((net, (*words.first()?).to_owned()))
}

/// Network, its length, …, device as the last word. Routes that lead nowhere are on `lo`.
fn route_v6(line: &str) -> Option<(IpNet, String)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let network = Ipv6Addr::from(u128::from_str_radix(words.first()?, 16).ok()?);
    let length = u8::from_str_radix(words.get(1)?, 16).ok()?;
    let device = (*words.last()?).to_owned();
    Some((IpNet::new(network.into(), length).ok()?, device)).filter(|(_, device)| device != "lo")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_read_as_the_kernel_prints_them() {
        let line = "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0";
        if cfg!(target_endian = "little") {
            assert_eq!(route_v4(line), Some(("192.0.2.0/24".parse().expect("a net"), "eth0".to_owned())));
        }
        let line = "fd000000000000000000000000000000 40 0 00 0 00000100 00000001 00000000 00000001     eth1";
        assert_eq!(route_v6(line), Some(("fd00::/64".parse().expect("a net"), "eth1".to_owned())));
        assert_eq!((route_v4("Iface what"), route_v6("")), (None, None));
    }
}
