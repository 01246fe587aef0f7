//! The settings that the table depends on, resolved for one family.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use netfilter::IpFamily;

use crate::model::config::{LocalTraffic, NodePortMatch, ServiceMetrics};
use crate::model::{Config, Protocol, Snapshot};

/// The settings that rules depend on besides Services and endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NftablesSettings {
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
    /// The addresses that serve node ports, sorted; `None` means all local ones but loopback.
    pub node_port_ips: Option<Vec<IpAddr>>,
    /// Networks that cluster IPs are taken from.
    pub service_cidrs: Arc<[IpNet]>,
    /// The protocols whose node ports are rejected at loopback addresses: with the feature gate, protocols that the localhost
    /// proxy does not serve.
    pub localhost_rejected: &'static [Protocol],
    /// Whether new connections are counted by destination.
    pub counts_connections: bool,
    /// Whether the kernel can choose endpoints by a hash, for Services that ask for it.
    pub hashes: bool,
}

/// The settings that the elements of a Service port depend on.
#[derive(Clone, Debug)]
pub struct RenderSettings {
    /// The node's own address.
    pub node_ip: IpAddr,
    /// As in [`NftablesSettings`].
    pub service_cidrs: Arc<[IpNet]>,
    /// As in [`NftablesSettings`].
    pub localhost_rejected: &'static [Protocol],
    /// As in [`NftablesSettings`].
    pub counts_connections: bool,
}

impl NftablesSettings {
    /// Resolves the settings, for a kernel that hashes. Calls `local_addresses` only if node ports are restricted to some addresses.
    #[must_use]
    pub fn of(
        family: IpFamily,
        config: &Config,
        snapshot: &Snapshot<'_>,
        local_addresses: impl FnOnce() -> Vec<IpAddr>,
    ) -> Self {
        let selector = config.node_port_addresses.resolve(family, snapshot.node_ip);
        let node_port_ips = match &selector {
            NodePortMatch::All => None,
            NodePortMatch::Within(_) => {
                let mut addresses = selector.select(&local_addresses());
                addresses.retain(|ip| !ip.is_loopback());
                addresses.sort_unstable();
                addresses.dedup();
                Some(addresses)
            }
        };
        Self {
            family,
            node_ip: snapshot.node_ip,
            masquerade_all: config.masquerade_all,
            masquerade_mark: config.masquerade_mark(),
            local_traffic: config.local_detector.resolve(family, snapshot.node),
            node_port_ips,
            service_cidrs: snapshot.service_cidrs.into(),
            localhost_rejected: match (config.nftables_localhost_node_ports, config.proxies_localhost(family)) {
                (false, _) => &[],
                (true, false) => &[Protocol::Tcp, Protocol::Udp, Protocol::Sctp],
                (true, true) => &[Protocol::Udp, Protocol::Sctp],
            },
            counts_connections: config.service_metrics != ServiceMetrics::Off,
            hashes: true,
        }
    }

    /// What elements depend on.
    #[must_use]
    pub fn rendering(&self) -> RenderSettings {
        let Self { node_ip, localhost_rejected, counts_connections, .. } = *self;
        RenderSettings { node_ip, service_cidrs: self.service_cidrs.clone(), localhost_rejected, counts_connections }
    }
}
