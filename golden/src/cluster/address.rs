//! Who is where in the little cluster.
//!
//! In: nothing. Out: every address and pod a test may name, in both families. Nothing here touches the kernel.
//! The wiring and the objects are made from these, so that they cannot disagree.

use std::net::{IpAddr, SocketAddr};

/// One of the two IP families.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, for tests that mean both.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];
}

/// The same thing's address in each family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dual(pub &'static str, pub &'static str);

impl Dual {
    /// The address as it is written.
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
    /// When this file has a typing error.
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
/// Its second interface, in a network of its own.
pub const NODE_ETH1: Dual = Dual("192.168.60.2", "fd00:60::2");
/// Its own address on every pod link, and so the source of what it masquerades towards pods.
pub const NODE_CNI: Dual = Dual("10.244.1.1", "fd00:10:244:1::1");
/// The loopback address.
pub const LOOPBACK: Dual = Dual("127.0.0.1", "::1");
/// A machine outside the cluster, on the node network.
pub const OUTSIDE: Dual = Dual("192.168.50.1", "fd00:50::1");
/// node-b, which runs no proxy.
pub const NODE_B: Dual = Dual("192.168.50.3", "fd00:50::3");
/// A load balancer's address, routed to node-a.
pub const VIP: Dual = Dual("203.0.113.10", "2001:db8:1::10");
/// An externalIP, routed to node-a.
pub const EXTERNAL_IP: Dual = Dual("198.51.100.7", "2001:db8:2::7");

/// The networks of the cluster IPs.
pub const SERVICE_NETWORK: Dual = Dual("10.96.0.0/16", "fd00:10:96::/112");

/// Further addresses of the machine outside: as many clients.
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

/// Whether the address is one of node-a's: what a server sees of a masqueraded client.
#[must_use]
pub fn is_node(address: IpAddr) -> bool {
    [NODE, NODE_ETH1, NODE_CNI].iter().any(|own| Family::BOTH.iter().any(|family| own.of(*family) == address))
}

/// A pod: a server with a name, and a place to connect from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pod {
    /// What it answers with.
    pub name: &'static str,
    /// The node it runs on.
    pub node: &'static str,
    /// Its addresses.
    pub address: Dual,
}

/// The port every pod serves on, TCP and UDP.
pub const TARGET_PORT: u16 = 8080;

/// A pod on node-a.
pub const POD_5: Pod = Pod { name: "pod-5", node: "node-a", address: Dual("10.244.1.5", "fd00:10:244:1::5") };
/// Another pod on node-a.
pub const POD_6: Pod = Pod { name: "pod-6", node: "node-a", address: Dual("10.244.1.6", "fd00:10:244:1::6") };
/// The pod on node-a that tests use as a client.
pub const POD_9: Pod = Pod { name: "pod-9", node: "node-a", address: Dual("10.244.1.9", "fd00:10:244:1::9") };
/// A pod on node-b.
pub const FAR_5: Pod = Pod { name: "far-5", node: "node-b", address: Dual("10.244.2.5", "fd00:10:244:2::5") };
/// Another pod on node-b.
pub const FAR_6: Pod = Pod { name: "far-6", node: "node-b", address: Dual("10.244.2.6", "fd00:10:244:2::6") };

/// What answers, on a link of node-a, at every Service address, if packets come that nothing has translated.
pub const STRANGER: Pod = Pod { name: "stranger", node: "", address: Dual("192.168.70.2", "fd00:70::2") };

/// The pods of node-a, each with a namespace of its own.
pub const LOCAL_PODS: [Pod; 3] = [POD_5, POD_6, POD_9];
/// The pods of node-b, all in its one namespace.
pub const FAR_PODS: [Pod; 2] = [FAR_5, FAR_6];
