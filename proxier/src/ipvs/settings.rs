//! The settings that IPVS mode depends on, resolved for one family.

use std::collections::BTreeSet;
use std::net::IpAddr;

use netfilter::IpFamily;
use netfilter::ipvs::{Flags, Scheduler};

use crate::model::config::{LocalTraffic, NodePortMatch, ServiceMetrics};
use crate::model::{Config, EndpointHash, Snapshot};

/// The settings that the kernel state depends on besides Services and endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpvsSettings {
    /// The family.
    pub family: IpFamily,
    /// The node's own address.
    pub node_ip: IpAddr,
    /// The scheduler of virtual servers.
    pub scheduler: Scheduler,
    /// Masquerade all traffic to cluster IPs.
    pub masquerade_all: bool,
    /// The packet mark for masquerading.
    pub masquerade_mark: u32,
    /// Whether `MASQUERADE --random-fully` is supported.
    pub random_fully: bool,
    /// How to match traffic from this node's pods.
    pub local_traffic: Option<LocalTraffic>,
    /// The addresses of the node's other devices, which are not bound to kube-ipvs0.
    pub local: BTreeSet<IpAddr>,
    /// The addresses that serve node ports.
    pub node_ports: BTreeSet<IpAddr>,
    /// Whether the kernel has the scheduler that hashes, for Services that ask for it.
    pub hashes: bool,
    /// Whether refused packets are counted.
    pub counts_refused: bool,
}

/// The scheduler of virtual servers whose Service asks for a hash.
pub const HASH_SCHEDULER: &str = "mh";

impl IpvsSettings {
    /// Resolves the settings, for a kernel that hashes; `addresses` are the node's, without those of kube-ipvs0.
    #[must_use]
    pub fn of(
        family: IpFamily,
        config: &Config,
        scheduler: Scheduler,
        random_fully: bool,
        snapshot: &Snapshot<'_>,
        addresses: &[IpAddr],
    ) -> Self {
        let (local, node_ports) = resolve(family, config, snapshot.node_ip, addresses);
        Self {
            family,
            node_ip: snapshot.node_ip,
            scheduler,
            masquerade_all: config.masquerade_all,
            masquerade_mark: config.masquerade_mark(),
            random_fully,
            local_traffic: config.local_detector.resolve(family, snapshot.node),
            local,
            node_ports,
            hashes: true,
            counts_refused: config.service_metrics != ServiceMetrics::Off,
        }
    }

    /// The scheduler of a virtual server and its flags; `hash`: what it hashes, on a kernel that does.
    ///
    /// `mh` chooses another real server while the chosen one has weight 0, as those do that are drained.
    #[must_use]
    pub fn scheduler(&self, hash: Option<EndpointHash>) -> (Scheduler, Flags) {
        match (hash, Scheduler::parse(HASH_SCHEDULER)) {
            (Some(EndpointHash::Client), Some(mh)) => (mh, Flags::FALLBACK),
            (Some(EndpointHash::Flow), Some(mh)) => (mh, Flags::FALLBACK.with(Flags::PORT)),
            _ => (self.scheduler, self.flags()),
        }
    }

    /// The flags of virtual servers: `mh` hashes the port too, as in kube-proxy.
    fn flags(&self) -> Flags {
        if self.scheduler.as_str() == HASH_SCHEDULER { Flags::PORT } else { Flags::default() }
    }

    /// Whether the settings still apply to the node, addresses aside.
    #[must_use]
    pub fn same_node(&self, config: &Config, snapshot: &Snapshot<'_>) -> bool {
        let local_traffic = config.local_detector.resolve(self.family, snapshot.node);
        self.node_ip == snapshot.node_ip && self.local_traffic == local_traffic
    }

    /// Whether the settings were resolved with these node addresses.
    #[must_use]
    pub fn has_addresses(&self, config: &Config, addresses: &[IpAddr]) -> bool {
        let (local, node_ports) = resolve(self.family, config, self.node_ip, addresses);
        self.local == local && self.node_ports == node_ports
    }
}

/// The node's own addresses, and the ones that serve node ports.
fn resolve(
    family: IpFamily,
    config: &Config,
    node_ip: IpAddr,
    addresses: &[IpAddr],
) -> (BTreeSet<IpAddr>, BTreeSet<IpAddr>) {
    // IPVS ignores packets to loopback addresses, and link-local ones are not unique to the node.
    let usable = |ip: &&IpAddr| !ip.is_loopback() && !family.is_link_local(ip);
    let local: BTreeSet<IpAddr> = addresses.iter().filter(usable).copied().collect();
    let selector = config.node_port_addresses.resolve(family, node_ip);
    let node_ports = match &selector {
        NodePortMatch::All => local.clone(),
        NodePortMatch::Within(_) => selector.select(addresses).into_iter().filter(|ip| !ip.is_loopback()).collect(),
    };
    (local, node_ports)
}
