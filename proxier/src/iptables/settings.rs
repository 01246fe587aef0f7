//! The settings that iptables rules depend on, resolved for one family.

use std::net::IpAddr;

use netfilter::IpFamily;

use crate::model::Config;
use crate::model::config::{LocalTraffic, NodePortMatch};
use crate::model::snapshot::Snapshot;

/// The name of the nfacct object that counts packets to node ports on loopback addresses.
pub const LOCALHOST_NODE_PORTS_COUNTER: &str = "localhost_nps_accepted_pkts";
/// The name of the nfacct object that counts packets dropped for their conntrack state.
pub const INVALID_DROPPED_COUNTER: &str = "ct_state_invalid_dropped_pkts";

/// The number of endpoints above which kube-proxy omits per-endpoint comments.
pub const LARGE_CLUSTER_ENDPOINTS: usize = 1000;

/// Features of this host's kernel and tools.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostFeatures {
    /// `MASQUERADE --random-fully`.
    pub random_fully: bool,
    /// Whether the nfacct objects exist and rules may use them.
    pub nfacct: bool,
    /// Whether `nf_conntrack_tcp_be_liberal` is set, so that out-of-window packets are not dropped.
    pub tcp_be_liberal: bool,
}

/// The destination addresses at which node ports apply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortDestinations {
    /// Any local address.
    All,
    /// These local addresses.
    Addresses(Vec<IpAddr>),
}

/// The settings that rules depend on besides Services and endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IptablesSettings {
    /// The family.
    pub family: IpFamily,
    /// The node's own address.
    pub node_ip: IpAddr,
    /// Masquerade all traffic to cluster IPs.
    pub masquerade_all: bool,
    /// The packet mark for masquerading.
    pub masquerade_mark: u32,
    /// How to match traffic from this node's pods.
    pub local_traffic: Option<LocalTraffic>,
    /// Node ports work on loopback addresses.
    pub localhost_node_ports: bool,
    /// Where node ports apply.
    pub node_ports: NodePortDestinations,
    /// What the host can do.
    pub features: HostFeatures,
}

impl IptablesSettings {
    /// Resolves the settings. Calls `local_addresses` only if node ports are restricted to some addresses.
    #[must_use]
    pub fn of(
        family: IpFamily,
        config: &Config,
        snapshot: &Snapshot<'_>,
        features: HostFeatures,
        local_addresses: impl FnOnce() -> Vec<IpAddr>,
    ) -> Self {
        let selector = config.node_port_addresses.resolve(family, snapshot.node_ip);
        let localhost_node_ports = localhost_node_ports(family, config, &selector);
        let node_ports = match &selector {
            NodePortMatch::All => NodePortDestinations::All,
            NodePortMatch::Within(_) => {
                let mut addresses = selector.select(&local_addresses());
                addresses.retain(|ip| !ip.is_loopback() || localhost_node_ports);
                NodePortDestinations::Addresses(addresses)
            }
        };
        Self {
            family,
            node_ip: snapshot.node_ip,
            masquerade_all: config.masquerade_all,
            masquerade_mark: config.masquerade_mark(),
            local_traffic: config.local_detector.resolve(family, snapshot.node),
            localhost_node_ports,
            node_ports,
            features,
        }
    }
}

/// Whether node ports apply on loopback addresses: configured, within `nodePortAddresses`, and supported.
#[must_use]
pub fn localhost_node_ports(family: IpFamily, config: &Config, selector: &NodePortMatch) -> bool {
    config.localhost_node_ports && family.has_route_localnet() && selector.covers_loopback(family)
}
