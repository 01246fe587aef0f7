//! What load balancers' health checks are told: `healthCheckNodePort`.
//!
//! In: a snapshot and which Service ports changed. Out: for each Service that has such a port and changed, the port and
//! how many endpoints are ready on this node. Must not know: who tells them, or on which sockets.

use std::collections::BTreeMap;

use super::config::NodePortMatch;
use super::service::{NamespacedName, ServicePortName};
use super::snapshot::{Scope, Snapshot};

/// What a Service's health checks are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The port they come to.
    pub port: u16,
    /// How many addresses on this node are ready.
    pub local_endpoints: usize,
}

/// What changed of all Services' health checks in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthChecks {
    /// Whether these are all: a Service that is not among them has none.
    pub all: bool,
    /// By Service; `None` for one that has none any more.
    pub services: BTreeMap<NamespacedName, Option<HealthCheck>>,
    /// The node's addresses that they come to.
    pub listen: NodePortMatch,
}

impl HealthChecks {
    /// What follows from the changes of `scope`. The work is proportional to them.
    #[must_use]
    pub fn of(snapshot: &Snapshot<'_>, scope: &Scope, listen: NodePortMatch) -> Self {
        let mut services = BTreeMap::new();
        match scope {
            Scope::Full => {
                let checked = snapshot.ports.iter().filter(|(_, facts)| facts.health_check_node_port != 0);
                for (name, facts) in checked {
                    services
                        .entry(name.service.clone())
                        .or_insert_with(|| Some(check(snapshot, &name.service, facts.health_check_node_port)));
                }
            }
            Scope::Changed(ports) => {
                for ServicePortName { service, .. } in ports {
                    if !services.contains_key(service) {
                        let port = port_of(snapshot, service);
                        services.insert(service.clone(), port.map(|port| check(snapshot, service, port)));
                    }
                }
            }
        }
        Self { all: *scope == Scope::Full, services, listen }
    }
}

/// All ports of a Service have the same one.
fn port_of(snapshot: &Snapshot<'_>, service: &NamespacedName) -> Option<u16> {
    let first = ServicePortName::first_of(service);
    let (_, facts) = snapshot.ports.range(first..).next().filter(|(name, _)| name.service == *service)?;
    Some(facts.health_check_node_port).filter(|port| *port != 0)
}

fn check(snapshot: &Snapshot<'_>, service: &NamespacedName, port: u16) -> HealthCheck {
    HealthCheck { port, local_endpoints: snapshot.endpoints.local_ready(service) }
}
