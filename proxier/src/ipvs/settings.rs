//! What IPVS mode depends on besides the objects, made concrete for one family and one moment.
//!
//! In: the configuration, the node, its addresses. Out: [`IpvsSettings`]. Must not know: how any of it was found out.

use std::collections::BTreeSet;
use std::net::IpAddr;

use netfilter::IpFamily;
use netfilter::ipvs::{Flags, Scheduler};

use crate::model::config::{LocalTraffic, NodePortMatch};
use crate::model::{Config, Snapshot};

/// Everything that the kernel's state depends on besides Services and endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpvsSettings {
    /// The family.
    pub family: IpFamily,
    /// The node's own address.
    pub node_ip: IpAddr,
    /// How connections are distributed.
    pub scheduler: Scheduler,
    /// Masquerade all traffic to cluster IPs.
    pub masquerade_all: bool,
    /// The mark that asks for masquerading.
    pub masquerade_mark: u32,
    /// `MASQUERADE --random-fully` is known.
    pub random_fully: bool,
    /// What traffic from this node's pods looks like.
    pub local_traffic: Option<LocalTraffic>,
    /// The addresses of the node's other devices: they are not bound to ours too.
    pub local: BTreeSet<IpAddr>,
    /// Where node ports are served.
    pub node_ports: BTreeSet<IpAddr>,
}

impl IpvsSettings {
    /// The settings at a moment when the node's devices, without ours, have these addresses.
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
        }
    }

    /// The flags of virtual servers: `mh` is told to look at the port too, as kube-proxy tells it.
    #[must_use]
    pub fn flags(&self) -> Flags {
        if self.scheduler.as_str() == "mh" { Flags::PORT } else { Flags::default() }
    }

    /// Whether they still hold for the node, but for its devices' addresses.
    #[must_use]
    pub fn same_node(&self, config: &Config, snapshot: &Snapshot<'_>) -> bool {
        let local_traffic = config.local_detector.resolve(self.family, snapshot.node);
        self.node_ip == snapshot.node_ip && self.local_traffic == local_traffic
    }

    /// Whether they were made with these addresses of the node's devices.
    #[must_use]
    pub fn has_addresses(&self, config: &Config, addresses: &[IpAddr]) -> bool {
        let (local, node_ports) = resolve(self.family, config, self.node_ip, addresses);
        self.local == local && self.node_ports == node_ports
    }
}

/// Of the addresses of the node's devices, those that are the node's own, and those that serve node ports.
fn resolve(
    family: IpFamily,
    config: &Config,
    node_ip: IpAddr,
    addresses: &[IpAddr],
) -> (BTreeSet<IpAddr>, BTreeSet<IpAddr>) {
    // IPVS does not take packets to loopback addresses, and link-local ones are not the node's alone.
    let usable = |ip: &&IpAddr| !ip.is_loopback() && !family.is_link_local(ip);
    let local: BTreeSet<IpAddr> = addresses.iter().filter(usable).copied().collect();
    let selector = config.node_port_addresses.resolve(family, node_ip);
    let node_ports = match &selector {
        NodePortMatch::All => local.clone(),
        NodePortMatch::Within(_) => selector.select(addresses).into_iter().filter(|ip| !ip.is_loopback()).collect(),
    };
    (local, node_ports)
}
