//! The addresses and pods of the test cluster, in both families.
//!
//! Wiring and objects are both made from these constants, so that they agree.

use std::net::{IpAddr, SocketAddr};

/// An IP family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both families, IPv4 first.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];
}

/// An IPv4 and an IPv6 address of the same object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dual(pub &'static str, pub &'static str);

impl Dual {
    /// The address as text.
    #[must_use]
    pub const fn text(self, family: Family) -> &'static str {
        match family {
            Family::V4 => self.0,
            Family::V6 => self.1,
        }
    }

    /// The address of one family.
    ///
    /// # Panics
    /// If the constant is not an address.
    #[must_use]
    pub fn of(self, family: Family) -> IpAddr {
        self.text(family).parse().expect("an address")
    }

    /// The address of one family with a port.
    #[must_use]
    pub fn at(self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.of(family), port)
    }
}

/// node-a, where the proxy runs.
pub const NODE: Dual = Dual("192.168.50.2", "fd00:50::2");
/// The second interface of node-a, in its own network.
pub const NODE_ETH1: Dual = Dual("192.168.60.2", "fd00:60::2");
/// The address of node-a on every pod link, the source of masqueraded packets to pods.
pub const NODE_CNI: Dual = Dual("10.244.1.1", "fd00:10:244:1::1");
/// The loopback address.
pub const LOOPBACK: Dual = Dual("127.0.0.1", "::1");
/// A host outside the cluster, on the node network.
pub const OUTSIDE: Dual = Dual("192.168.50.1", "fd00:50::1");
/// node-b, which does not run a proxy.
pub const NODE_B: Dual = Dual("192.168.50.3", "fd00:50::3");
/// A load balancer's virtual IP, routed to node-a.
pub const VIP: Dual = Dual("203.0.113.10", "2001:db8:1::10");
/// An externalIP, routed to node-a.
pub const EXTERNAL_IP: Dual = Dual("198.51.100.7", "2001:db8:2::7");

/// The networks of the cluster IPs.
pub const SERVICE_NETWORK: Dual = Dual("10.96.0.0/16", "fd00:10:96::/112");

/// More addresses of the host outside, one for each client.
pub const OUTSIDE_OTHERS: [Dual; 12] = [
    Dual("192.168.50.11", "fd00:50::11"),
    Dual("192.168.50.12", "fd00:50::12"),
    Dual("192.168.50.13", "fd00:50::13"),
    Dual("192.168.50.14", "fd00:50::14"),
    Dual("192.168.50.15", "fd00:50::15"),
    Dual("192.168.50.16", "fd00:50::16"),
    Dual("192.168.50.17", "fd00:50::17"),
    Dual("192.168.50.18", "fd00:50::18"),
    Dual("192.168.50.19", "fd00:50::19"),
    Dual("192.168.50.20", "fd00:50::20"),
    Dual("192.168.50.21", "fd00:50::21"),
    Dual("192.168.50.22", "fd00:50::22"),
];

/// Whether the address belongs to node-a, as the source of a masqueraded packet does.
#[must_use]
pub fn is_node(address: IpAddr) -> bool {
    [NODE, NODE_ETH1, NODE_CNI].iter().any(|own| Family::BOTH.iter().any(|family| own.of(*family) == address))
}

/// A pod: a server with a name, and a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pod {
    /// The name in its answers.
    pub name: &'static str,
    /// Its node.
    pub node: &'static str,
    /// Its addresses.
    pub address: Dual,
}

/// The port of every pod, TCP and UDP.
pub const TARGET_PORT: u16 = 8080;

/// A pod on node-a.
pub const POD_5: Pod = Pod { name: "pod-5", node: "node-a", address: Dual("10.244.1.5", "fd00:10:244:1::5") };
/// Another pod on node-a.
pub const POD_6: Pod = Pod { name: "pod-6", node: "node-a", address: Dual("10.244.1.6", "fd00:10:244:1::6") };
/// The client pod on node-a.
pub const POD_9: Pod = Pod { name: "pod-9", node: "node-a", address: Dual("10.244.1.9", "fd00:10:244:1::9") };
/// A pod on node-b.
pub const FAR_5: Pod = Pod { name: "far-5", node: "node-b", address: Dual("10.244.2.5", "fd00:10:244:2::5") };
/// Another pod on node-b.
pub const FAR_6: Pod = Pod { name: "far-6", node: "node-b", address: Dual("10.244.2.6", "fd00:10:244:2::6") };

/// A host on a link of node-a that answers at every Service address packets that were not translated.
pub const STRANGER: Pod = Pod { name: "stranger", node: "", address: Dual("192.168.70.2", "fd00:70::2") };

/// The pods of node-a, each in its own namespace.
pub const LOCAL_PODS: [Pod; 3] = [POD_5, POD_6, POD_9];
/// The pods of node-b, all in its namespace.
pub const FAR_PODS: [Pod; 2] = [FAR_5, FAR_6];
