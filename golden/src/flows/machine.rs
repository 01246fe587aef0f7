//! The addresses and interfaces of the recorded node, by the names of flow tables.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use proxier_inspect::walk::{Node, Origin};

const NODE: [IpAddr; 4] = [
    IpAddr::V4(Ipv4Addr::new(192, 168, 50, 2)),
    IpAddr::V4(Ipv4Addr::new(192, 168, 60, 2)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x50, 0, 0, 0, 0, 0, 2)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x60, 0, 0, 0, 0, 0, 2)),
];
const POD_NETWORKS: [IpNet; 2] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 1, 0), 24)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, 0), 64)),
];
/// A pod of this node that is not an endpoint.
const POD: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 244, 1, 200)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, 200))];
/// A client outside the cluster, in the source ranges of most cases.
const OUTSIDE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 3, 0, 0, 0, 0, 7))];
/// The pods' bridge, and the interface to other hosts.
const BRIDGE: &str = "cbr0";
const UPLINK: &str = "eth0";

/// The node.
pub(super) fn node() -> Node {
    Node { addresses: NODE.to_vec(), ..Node::default() }
}

/// The address and origin of `pod`, `host`, `outside`, `ADDRESS` or `ADDRESS via INTERFACE`.
pub(super) fn sender(from: &str, to: IpAddr) -> Result<(IpAddr, Origin), String> {
    let on = |interface: &str| Origin::Interface(interface.to_owned());
    let of_family = |pair: [IpAddr; 2]| pair[usize::from(to.is_ipv6())];
    if let Some((address, interface)) = from.split_once(" via ") {
        return Ok((parse(address)?, on(interface)));
    }
    Ok(match from {
        "pod" => (of_family(POD), on(BRIDGE)),
        "outside" => (of_family(OUTSIDE), on(UPLINK)),
        // The host uses a local destination as the source address.
        "host" if node().is_local(to) => (to, Origin::Host),
        "host" => (of_family([NODE[0], NODE[2]]), Origin::Host),
        address => {
            let address = parse(address)?;
            let in_pod_network = POD_NETWORKS.iter().any(|net| net.contains(&address));
            let origin =
                if node().is_local(address) { Origin::Host } else { on(if in_pod_network { BRIDGE } else { UPLINK }) };
            (address, origin)
        }
    })
}

/// Clients that no rule distinguishes: many for `pod` and `outside`, only itself for an address.
pub(super) fn alike(client: IpAddr) -> Vec<IpAddr> {
    match client {
        // The ranges in the tables are multiples of 64.
        IpAddr::V4(v4) if POD.contains(&client) || OUTSIDE.contains(&client) => {
            let [a, b, c, d] = v4.octets();
            (1..63).map(|host| Ipv4Addr::new(a, b, c, d / 64 * 64 + host).into()).collect()
        }
        IpAddr::V6(v6) if POD.contains(&client) || OUTSIDE.contains(&client) => {
            let first = u128::from(v6);
            (0..63).map(|more| Ipv6Addr::from(first + more).into()).collect()
        }
        _ => vec![client],
    }
}

fn parse(address: &str) -> Result<IpAddr, String> {
    address.parse().map_err(|_| format!("{address:?} is not pod, host, outside or an address"))
}
