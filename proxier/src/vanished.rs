//! Decides which connections go to endpoints that are gone, for Services that ask for their end.
//!
//! UDP flows are not considered: [`conntrack`](crate::conntrack) finds those of all Services.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use netfilter::Flow;

use crate::model::{Destination, Protocol, ServicePort, ServicePortName, Snapshot, sorted_addresses};

/// The endpoints of Service ports, each list sorted.
pub type KnownEndpoints = HashMap<ServicePortName, Box<[SocketAddr]>>;

/// The connections to destinations of some Service ports that go to none of their endpoints.
///
/// An endpoint counts as long as an EndpointSlice has it, ready, terminating or neither.
#[derive(Debug, Default)]
pub struct VanishedConnections {
    /// Each destination with the indexes in `known` of the Service ports that have it.
    ///
    /// It is not here if one of them does not ask: its connections stay as they are.
    destinations: HashMap<(u8, Destination), Vec<usize>>,
    known: Vec<Box<[SocketAddr]>>,
    node_addresses: Vec<IpAddr>,
}

/// Whether a Service port asks for the end of its connections to endpoints that are gone.
#[must_use]
pub fn asks(name: &ServicePortName, port: &ServicePort) -> bool {
    port.extensions.end_stale_connections && name.protocol != Protocol::Udp
}

/// All endpoints of a Service port, sorted.
#[must_use]
pub fn endpoints(snapshot: &Snapshot<'_>, name: &ServicePortName) -> Box<[SocketAddr]> {
    sorted_addresses(snapshot.endpoints.of(name).iter())
}

impl VanishedConnections {
    /// The connections of the Service ports `names`. Endpoints in `programmed`, the rules' own, count too.
    #[must_use]
    pub fn of(snapshot: &Snapshot<'_>, names: &BTreeSet<ServicePortName>, programmed: &KnownEndpoints) -> Self {
        let mut found = Self::default();
        for name in names {
            let Some(port) = snapshot.ports.get(name).filter(|port| asks(name, port)) else { continue };
            for to in port.destinations() {
                found.destinations.entry((name.protocol.number(), to)).or_default();
            }
        }
        if found.destinations.is_empty() {
            return found;
        }
        // All Service ports: two may share an external IP.
        for (name, port) in snapshot.ports {
            let (mut owns, asks) = (false, asks(name, port));
            for to in port.destinations().map(|to| (name.protocol.number(), to)) {
                if !asks {
                    found.destinations.remove(&to);
                } else if let Some(owners) = found.destinations.get_mut(&to) {
                    owners.push(found.known.len());
                    owns = true;
                }
            }
            if owns {
                let mut known = endpoints(snapshot, name).into_vec();
                known.extend(programmed.get(name).into_iter().flatten());
                known.sort_unstable();
                found.known.push(known.into());
            }
        }
        found
    }

    /// The IP protocols of the connections in question.
    #[must_use]
    pub fn protocols(&self) -> BTreeSet<u8> {
        self.destinations.keys().map(|(protocol, _)| *protocol).collect()
    }

    /// Whether node ports are affected: deciding about them takes the node's addresses.
    #[must_use]
    pub fn has_node_ports(&self) -> bool {
        self.destinations.keys().any(|(_, to)| matches!(to, Destination::NodePort(_)))
    }

    /// Sets the addresses at which node ports apply.
    #[must_use]
    pub fn at_node(self, addresses: Vec<IpAddr>) -> Self {
        Self { node_addresses: addresses, ..self }
    }

    /// Whether a connection goes to an endpoint that is gone.
    #[must_use]
    pub fn contains(&self, flow: &Flow) -> bool {
        let to = flow.original.destination;
        let owners = self.destinations.get(&(flow.protocol, Destination::Address(to)));
        let node_port = || {
            let port = self.destinations.get(&(flow.protocol, Destination::NodePort(to.port())));
            port.filter(|_| self.node_addresses.contains(&to.ip()))
        };
        let Some(owners) = owners.or_else(node_port) else { return false };
        flow.redirected() && !owners.iter().any(|owner| self.known[*owner].binary_search(&flow.reply.source).is_ok())
    }
}
