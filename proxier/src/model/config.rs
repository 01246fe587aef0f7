//! The settings that rules and schedules depend on, the same for every mode.
//!
//! A mode ignores settings that it does not use.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use netfilter::IpFamily;

use super::node::NodeInfo;

/// How to detect traffic from this node's pods (`detectLocalMode`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalDetector {
    /// By source address, in the cluster's pod networks; the first of a family counts.
    ClusterCidr(Vec<IpNet>),
    /// By source address, in this node's own pod network.
    NodeCidr,
    /// By the bridge interface that packets arrive on.
    BridgeInterface(String),
    /// By the name prefix of the interface that packets arrive on.
    InterfaceNamePrefix(String),
}

/// A [`LocalDetector`] resolved for one family and node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalTraffic {
    /// Packets from this network.
    From(IpNet),
    /// Packets that arrive on this interface.
    Interface(String),
    /// Packets that arrive on an interface with this name prefix.
    InterfacePrefix(String),
}

impl LocalDetector {
    /// How to match local traffic of a family; `None` if unknown, then no traffic counts as local.
    #[must_use]
    pub fn resolve(&self, family: IpFamily, node: &NodeInfo) -> Option<LocalTraffic> {
        match self {
            Self::ClusterCidr(nets) => {
                nets.iter().find(|net| IpFamily::of_net(net) == family).copied().map(LocalTraffic::From)
            }
            Self::NodeCidr => node.pod_cidr(family).map(LocalTraffic::From),
            Self::BridgeInterface(name) => Some(LocalTraffic::Interface(name.clone())),
            Self::InterfaceNamePrefix(prefix) => Some(LocalTraffic::InterfacePrefix(prefix.clone())),
        }
    }
}

/// Which of the node's addresses serve node ports (`nodePortAddresses`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// `primary`: the node's own address of each family.
    Primary,
    /// Addresses in these networks. A family without networks uses all its addresses.
    Cidrs(Vec<IpNet>),
}

/// [`NodePortAddresses`] resolved for one family and node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortMatch {
    /// Every local address.
    All,
    /// Local addresses in these networks.
    Within(Vec<IpNet>),
}

impl NodePortAddresses {
    /// Resolves the networks of a family whose node address is `node_ip`.
    ///
    /// Without a node address (`node_ip` is a loopback address then), `primary` selects no address; kube-proxy would
    /// select all (behaviour.yaml I6).
    #[must_use]
    pub fn resolve(&self, family: IpFamily, node_ip: IpAddr) -> NodePortMatch {
        let nets: Vec<IpNet> = match self {
            Self::Primary => {
                let own = Some(node_ip).filter(|ip| !ip.is_loopback()).map(IpNet::from);
                return NodePortMatch::Within(own.into_iter().collect());
            }
            Self::Cidrs(nets) => nets.iter().filter(|net| IpFamily::of_net(net) == family).copied().collect(),
        };
        if nets.is_empty() || nets.iter().any(|net| net.prefix_len() == 0) {
            NodePortMatch::All
        } else {
            NodePortMatch::Within(nets)
        }
    }
}

impl NodePortMatch {
    /// Whether a network contains, or lies within, the loopback network.
    #[must_use]
    pub fn covers_loopback(&self, family: IpFamily) -> bool {
        let loopback = family.loopback();
        match self {
            Self::All => true,
            Self::Within(nets) => nets.iter().any(|net| loopback.contains(net) || net.contains(&loopback)),
        }
    }

    /// The selected ones of the node's addresses.
    #[must_use]
    pub fn select(&self, local: &[IpAddr]) -> Vec<IpAddr> {
        match self {
            Self::All => local.to_vec(),
            Self::Within(nets) => local.iter().copied().filter(|ip| nets.iter().any(|net| net.contains(ip))).collect(),
        }
    }
}

/// The intervals of [`crate::schedule::SyncSchedule`], in the configuration's terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SyncPeriods {
    /// `minSyncPeriod`: the least time between the end of a sync and the start of the next.
    pub min: Duration,
    /// `syncPeriod`: the longest backoff of failed syncs, and the period of drift checks.
    pub sync: Duration,
}

/// The configuration of a family's proxier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The name of this node: endpoints with it are local.
    pub node_name: String,
    /// How to detect local traffic.
    pub local_detector: LocalDetector,
    /// The addresses that serve node ports.
    pub node_port_addresses: NodePortAddresses,
    /// `bindAddress`, where it is not a wildcard: the node's address of its family.
    pub bind_address: Option<IpAddr>,
    /// Masquerade all traffic to cluster IPs.
    pub masquerade_all: bool,
    /// The bit of the packet mark for masquerading, 0 to 31.
    pub masquerade_bit: u8,
    /// Serve node ports on loopback addresses too.
    pub localhost_node_ports: bool,
    /// Do not program external IPs (feature gate `AllowServiceExternalIPs` off).
    pub hide_external_ips: bool,
    /// The intervals.
    pub periods: SyncPeriods,
}

impl Config {
    /// The packet mark for masquerading.
    #[must_use]
    pub fn masquerade_mark(&self) -> u32 {
        1 << self.masquerade_bit
    }

    /// This node's address in a family: `bindAddress`, else the Node's, else loopback.
    #[must_use]
    pub fn node_ip(&self, family: IpFamily, node: &NodeInfo) -> IpAddr {
        self.bind_address
            .filter(|ip| IpFamily::of(ip) == family)
            .or_else(|| node.address(family))
            .unwrap_or_else(|| family.localhost())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn primary_without_a_node_address_selects_no_address() {
        let primary = |ip: &str| {
            let ip: IpAddr = ip.parse().expect("an address");
            NodePortAddresses::Primary.resolve(IpFamily::of(&ip), ip)
        };
        let own = "192.168.0.1/32".parse().expect("a network");
        assert_eq!(primary("192.168.0.1"), NodePortMatch::Within(vec![own]));
        for loopback in ["127.0.0.1", "::1"] {
            let closed = primary(loopback);
            assert_eq!(closed, NodePortMatch::Within(Vec::new()));
            assert!(!closed.covers_loopback(IpFamily::V4) && closed.select(&[IpFamily::V4.localhost()]).is_empty());
        }
    }
}
