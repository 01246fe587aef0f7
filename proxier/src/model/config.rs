//! The settings that rules and schedules depend on.
//!
//! In: values that the command line and the configuration file were turned into. Out: [`Config`], the same for every
//! mode; what a mode does not use it ignores. Must not know: flags, files, or how a mode spells a match.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use netfilter::IpFamily;

use super::node::NodeInfo;

/// How kube-proxy tells traffic of this node's pods from other traffic (`detectLocalMode`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalDetector {
    /// By source address, in one of the cluster's pod networks; the first of a family counts.
    ClusterCidr(Vec<IpNet>),
    /// By source address, in this node's own pod network.
    NodeCidr,
    /// By the bridge that packets come in from.
    BridgeInterface(String),
    /// By the beginning of the name of the interface that packets come in from.
    InterfaceNamePrefix(String),
}

/// A [`LocalDetector`] made concrete for one family and node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalTraffic {
    /// It comes from this network.
    From(IpNet),
    /// It comes in through this interface.
    Interface(String),
    /// It comes in through an interface whose name begins so.
    InterfacePrefix(String),
}

impl LocalDetector {
    /// What local traffic looks like in a family; `None` where it cannot be told, and nothing counts as local.
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
    /// Those in these networks. A family without any network takes all its addresses, as does an empty list.
    Cidrs(Vec<IpNet>),
}

/// [`NodePortAddresses`] made concrete for one family and node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortMatch {
    /// Every local address.
    All,
    /// Local addresses in these networks.
    Within(Vec<IpNet>),
}

impl NodePortAddresses {
    /// The networks of a family whose node address is `node_ip`. While there is none (it is a loopback address then),
    /// `primary` means no address; kube-proxy would open all (behaviour.yaml I6).
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
    /// Whether loopback addresses are meant too: a network lies in the loopback network, or around it.
    #[must_use]
    pub fn covers_loopback(&self, family: IpFamily) -> bool {
        let loopback = family.loopback();
        match self {
            Self::All => true,
            Self::Within(nets) => nets.iter().any(|net| loopback.contains(net) || net.contains(&loopback)),
        }
    }

    /// Those of the node's addresses that are meant.
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
    /// `syncPeriod`: how soon a failed sync is tried again, and how often the rules are checked.
    pub sync: Duration,
}

/// Everything a family's proxier is told at its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The name of this node: endpoints with it are local.
    pub node_name: String,
    /// Where local traffic comes from.
    pub local_detector: LocalDetector,
    /// Where node ports are served.
    pub node_port_addresses: NodePortAddresses,
    /// `bindAddress`, where it is not a wildcard: the node's address of its family.
    pub bind_address: Option<IpAddr>,
    /// Masquerade all traffic to cluster IPs.
    pub masquerade_all: bool,
    /// Which bit of the packet mark asks for masquerading, 0 to 31.
    pub masquerade_bit: u8,
    /// Serve node ports on loopback addresses too.
    pub localhost_node_ports: bool,
    /// Do not program external IPs (feature gate `AllowServiceExternalIPs` off).
    pub hide_external_ips: bool,
    /// The intervals.
    pub periods: SyncPeriods,
}

impl Config {
    /// The mark that asks for masquerading.
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
    fn a_family_without_a_node_address_has_no_primary_one() {
        let primary = |ip: &str| {
            let ip: IpAddr = ip.parse().expect("an address");
            NodePortAddresses::Primary.resolve(IpFamily::of(&ip), ip)
        };
        let own = "192.168.0.1/32".parse().expect("a network");
        assert_eq!(primary("192.168.0.1"), NodePortMatch::Within(vec![own]));
        for nobody in ["127.0.0.1", "::1"] {
            let closed = primary(nobody);
            assert_eq!(closed, NodePortMatch::Within(Vec::new()));
            assert!(!closed.covers_loopback(IpFamily::V4) && closed.select(&[IpFamily::V4.localhost()]).is_empty());
        }
    }
}
