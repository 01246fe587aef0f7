//! Decides which UDP flows are stale: the rules would send a new flow elsewhere.
//!
//! TCP connections end by themselves, so only UDP is considered.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use netfilter::Flow;

use crate::model::{Destination, Protocol, Scope, ServicePort, ServicePortName, Snapshot, sorted_addresses};

/// The stale flows after a change.
///
/// As in kube-proxy 1.37, a flow may stay with every serving endpoint, terminating or not, whatever the traffic
/// policies say, and without serving endpoints every flow is stale (kubernetes/kubernetes#139628). A Service may ask that
/// flows stay with terminating endpoints that do not serve any more. In addition, flows
/// to released destinations are stale, flows to a node port count only at addresses of this node, and so do flows at an
/// address that the node has lost.
#[derive(Debug, Default)]
pub struct StaleFlows {
    /// The affected destinations, each with the indexes in `keepers` of the Service ports that own it.
    ///
    /// A destination without an owner was released.
    destinations: HashMap<Destination, Vec<usize>>,
    /// The endpoints of each Service port that keep their flows, sorted; if empty, every flow to it is stale.
    keepers: Vec<Box<[SocketAddr]>>,
    node_addresses: Vec<IpAddr>,
    /// Addresses that the node has lost.
    left: Vec<IpAddr>,
}

impl StaleFlows {
    /// The stale flows after the changes of `scope` and the release of the destinations `gone`.
    #[must_use]
    pub fn of(snapshot: &Snapshot<'_>, scope: &Scope, gone: &BTreeSet<Destination>) -> Self {
        let mut found = Self { destinations: in_question(snapshot, scope, gone), ..Self::default() };
        if found.is_empty() {
            return found;
        }
        // All Service ports: two may share an external IP, and a flow may stay with the endpoints of both.
        for (name, port) in snapshot.ports.iter().filter(|(name, _)| name.protocol == Protocol::Udp) {
            let mut owns = false;
            for to in port.destinations() {
                if let Some(owners) = found.destinations.get_mut(&to) {
                    owners.push(found.keepers.len());
                    owns = true;
                }
            }
            if owns {
                found.keepers.push(keepers(snapshot, name, port));
            }
        }
        found
    }

    /// Whether no flow can be stale, so that no pass is needed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.destinations.is_empty()
    }

    /// Whether node ports are affected: deciding about them takes the node's addresses.
    #[must_use]
    pub fn has_node_ports(&self) -> bool {
        self.destinations.keys().any(|to| matches!(to, Destination::NodePort(_)))
    }

    /// Sets the addresses at which node ports apply.
    #[must_use]
    pub fn at_node(self, addresses: Vec<IpAddr>) -> Self {
        Self { node_addresses: addresses, ..self }
    }

    /// Sets the addresses at which node ports no longer apply.
    #[must_use]
    pub fn left(self, addresses: Vec<IpAddr>) -> Self {
        Self { left: addresses, ..self }
    }

    /// Whether a UDP flow is stale.
    #[must_use]
    pub fn is_stale(&self, flow: &Flow) -> bool {
        let to = flow.original.destination;
        let owners = self.destinations.get(&Destination::Address(to));
        let node_port = self.destinations.get(&Destination::NodePort(to.port()));
        if owners.is_none() && node_port.is_some() && self.left.contains(&to.ip()) {
            return flow.redirected();
        }
        let node_port = || node_port.filter(|_| self.is_node(to.ip()));
        match owners.or_else(node_port).map(Vec::as_slice) {
            None => false,
            // A flow without NAT goes to that address itself, which no Service owns any more.
            Some([]) => flow.redirected(),
            Some(owners) => !owners.iter().any(|i| self.keepers[*i].binary_search(&flow.reply.source).is_ok()),
        }
    }

    /// Whether an address is the node's; one loopback address stands for the whole network.
    fn is_node(&self, ip: IpAddr) -> bool {
        self.node_addresses.iter().any(|own| *own == ip || (own.is_loopback() && ip.is_loopback()))
    }
}

fn in_question(
    snapshot: &Snapshot<'_>,
    scope: &Scope,
    gone: &BTreeSet<Destination>,
) -> HashMap<Destination, Vec<usize>> {
    let udp = |name: &ServicePortName| name.protocol == Protocol::Udp;
    let ports: Vec<&ServicePort> = match scope {
        Scope::Full => snapshot.ports.iter().filter(|(name, _)| udp(name)).map(|(_, port)| port).collect(),
        Scope::Changed(names) => names.iter().filter(|name| udp(name)).filter_map(|n| snapshot.ports.get(n)).collect(),
    };
    let changed = ports.into_iter().flat_map(ServicePort::destinations);
    changed.chain(gone.iter().copied()).map(|to| (to, Vec::new())).collect()
}

/// The endpoints with which flows may stay, sorted.
fn keepers(snapshot: &Snapshot<'_>, name: &ServicePortName, port: &ServicePort) -> Box<[SocketAddr]> {
    let keeps_terminating = port.extensions.keep_terminating_udp_flows;
    let endpoints = snapshot.endpoints.of(name);
    sorted_addresses(endpoints.iter().filter(|e| e.state.serving || (keeps_terminating && e.state.terminating)))
}
