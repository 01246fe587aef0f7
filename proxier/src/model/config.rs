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
    /// The network of all pods of a family, as it is configured; `None` if it is not.
    #[must_use]
    pub fn cluster_network(&self, family: IpFamily) -> Option<IpNet> {
        let Self::ClusterCidr(nets) = self else { return None };
        nets.iter().find(|net| IpFamily::of_net(net) == family).copied()
    }

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
///
/// The keywords `localhost` and `all` are networks of both families here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodePortAddresses {
    /// `primary`: the node's own address of each family.
    pub primary: bool,
    /// Addresses in these networks. Without `primary`, a family without networks uses all its addresses.
    pub networks: Vec<IpNet>,
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
    /// `primary` alone.
    #[must_use]
    pub fn primary() -> Self {
        Self { primary: true, networks: Vec::new() }
    }

    /// Addresses in networks; none: all addresses.
    #[must_use]
    pub fn within(networks: Vec<IpNet>) -> Self {
        Self { primary: false, networks }
    }

    /// Resolves the networks of a family whose node address is `node_ip`.
    ///
    /// Without a node address (`node_ip` is a loopback address then), `primary` selects no address; kube-proxy would
    /// select all (behaviour.yaml I6).
    #[must_use]
    pub fn resolve(&self, family: IpFamily, node_ip: IpAddr) -> NodePortMatch {
        let mut nets: Vec<IpNet> =
            self.networks.iter().filter(|net| IpFamily::of_net(net) == family).copied().collect();
        if (nets.is_empty() && !self.primary) || nets.iter().any(|net| net.prefix_len() == 0) {
            return NodePortMatch::All;
        }
        if self.primary {
            nets.extend(Some(node_ip).filter(|ip| !ip.is_loopback()).map(IpNet::from));
        }
        NodePortMatch::Within(nets)
    }

    /// Whether a network lies within the family's loopback network and contains the address of `localhost`.
    ///
    /// Larger networks do not count, the network of all addresses neither. kube-proxy 1.37 also counts networks beside
    /// `localhost`, as 127.0.0.2/32, and then listens on an address that nothing names (kubernetes/kubernetes 142129).
    #[must_use]
    pub fn names_localhost(&self, family: IpFamily) -> bool {
        self.networks.iter().any(|net| family.loopback().contains(net) && net.contains(&family.localhost()))
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

/// Whose connections are counted, for metrics that kube-proxy does not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum ServiceMetrics {
    /// None: rules are kube-proxy's.
    #[default]
    Off,
    /// Those of Service ports.
    Services,
    /// Those of Service ports and of their endpoints.
    Endpoints,
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
    /// Serve node ports on loopback addresses too; iptables mode.
    pub localhost_node_ports: bool,
    /// Nftables mode with the feature gate `KubeProxyNFTablesLocalhostNodePorts`.
    pub nftables_localhost_node_ports: bool,
    /// Do not program external IPs (feature gate `AllowServiceExternalIPs` off).
    pub hide_external_ips: bool,
    /// Whose connections are counted. Only nftables mode has rules and sets for it: the rules of iptables mode and virtual
    /// servers count anyway.
    pub service_metrics: ServiceMetrics,
    /// The intervals.
    pub periods: SyncPeriods,
}

impl Config {
    /// The packet mark for masquerading.
    #[must_use]
    pub fn masquerade_mark(&self) -> u32 {
        1 << self.masquerade_bit
    }

    /// Whether a user-space proxy serves the family's node ports on its loopback address; nftables mode.
    #[must_use]
    pub fn proxies_localhost(&self, family: IpFamily) -> bool {
        self.nftables_localhost_node_ports && self.node_port_addresses.names_localhost(family)
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
            NodePortAddresses::primary().resolve(IpFamily::of(&ip), ip)
        };
        let own = "192.168.0.1/32".parse().expect("a network");
        assert_eq!(primary("192.168.0.1"), NodePortMatch::Within(vec![own]));
        for loopback in ["127.0.0.1", "::1"] {
            let closed = primary(loopback);
            assert_eq!(closed, NodePortMatch::Within(Vec::new()));
            assert!(!closed.covers_loopback(IpFamily::V4) && closed.select(&[IpFamily::V4.localhost()]).is_empty());
        }
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().expect("a network")).collect()
    }

    #[test]
    fn networks_beside_primary_are_added_and_a_family_without_any_keeps_its_primary_address() {
        let addresses = NodePortAddresses { primary: true, networks: nets(&["10.0.0.0/8"]) };
        let of = |ip: &str| {
            let ip: IpAddr = ip.parse().expect("an address");
            addresses.resolve(IpFamily::of(&ip), ip)
        };
        assert_eq!(of("192.0.2.1"), NodePortMatch::Within(nets(&["10.0.0.0/8", "192.0.2.1/32"])));
        assert_eq!(of("fd00::1"), NodePortMatch::Within(nets(&["fd00::1/128"])));
        assert_eq!(of("::1"), NodePortMatch::Within(Vec::new()), "no address of the Node in this family");
        let all = NodePortAddresses { primary: true, networks: nets(&["0.0.0.0/0", "::/0"]) };
        assert_eq!(all.resolve(IpFamily::V6, IpFamily::V6.localhost()), NodePortMatch::All);
    }

    #[test]
    fn localhost_is_named_by_loopback_networks_that_contain_it_and_by_no_larger_ones() {
        let named = |texts: &[&str]| {
            let addresses = NodePortAddresses { primary: true, networks: nets(texts) };
            IpFamily::ALL.map(|family| addresses.names_localhost(family))
        };
        assert_eq!(named(&["127.0.0.0/8", "::1/128"]), [true, true]);
        assert_eq!(named(&["127.0.0.1/32"]), [true, false]);
        assert_eq!(named(&["0.0.0.0/0", "::/0", "127.0.0.1/32"]), [true, false]);
        assert_eq!(named(&["0.0.0.0/0", "::/0", "126.0.0.0/7", "127.0.0.2/32"]), [false, false]);
    }
}
