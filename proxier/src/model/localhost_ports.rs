//! Node ports that the localhost proxy of nftables mode serves (KEP-6032).
//!
//! The kernel does not forward packets from a loopback address, so a proxy in user space accepts connections to TCP node
//! ports there and connects to an endpoint.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::service::{Protocol, ServicePortName};
use super::snapshot::{Scope, Snapshot};
use super::topology::CategorizedEndpoints;

/// A node port to serve on the loopback address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalhostPort {
    /// The node port.
    pub node_port: u16,
    /// The endpoints to choose from, at least one: those of policy `Cluster` after `trafficDistribution`, or those on this
    /// node with `externalTrafficPolicy: Local`. Unlike packets to other local addresses, which reach endpoints on any node.
    pub endpoints: Box<[SocketAddr]>,
    /// The timeout of ClientIP affinity.
    pub affinity: Option<Duration>,
}

/// The changed localhost node ports of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalhostPorts {
    /// Whether `ports` is complete: no other node port is served.
    pub all: bool,
    /// By Service port; `None` if it is not served any more.
    pub ports: BTreeMap<ServicePortName, Option<LocalhostPort>>,
}

impl LocalhostPorts {
    /// The node ports affected by `scope`; the cost is proportional to it.
    #[must_use]
    pub fn of(snapshot: &Snapshot<'_>, scope: &Scope) -> Self {
        let ports = match scope {
            Scope::Full => {
                let served = snapshot.ports.keys().filter_map(|name| Some((name.clone(), Some(of(snapshot, name)?))));
                served.collect()
            }
            Scope::Changed(ports) => ports.iter().map(|name| (name.clone(), of(snapshot, name))).collect(),
        };
        Self { all: *scope == Scope::Full, ports }
    }
}

fn of(snapshot: &Snapshot<'_>, name: &ServicePortName) -> Option<LocalhostPort> {
    let port = snapshot.ports.get(name).filter(|port| port.node_port != 0 && name.protocol == Protocol::Tcp)?;
    let endpoints = snapshot.endpoints.of(name);
    let categorized = CategorizedEndpoints::of(&endpoints, port, snapshot.node);
    let chosen = if port.external_local { &categorized.local } else { &categorized.cluster };
    let endpoints: Box<[SocketAddr]> = chosen.iter().map(|endpoint| endpoint.address).collect();
    let affinity = port.affinity_seconds.map(|seconds| Duration::from_secs(seconds.into()));
    (!endpoints.is_empty()).then_some(LocalhostPort { node_port: port.node_port, endpoints, affinity })
}
