//! Health check states of Services with a `healthCheckNodePort`.

use std::collections::BTreeMap;

use super::config::NodePortMatch;
use super::service::{NamespacedName, ServicePortName};
use super::snapshot::{Scope, Snapshot};

/// The health check state of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The health check node port.
    pub port: u16,
    /// The number of ready endpoint addresses on this node.
    pub local_endpoints: usize,
}

/// The changed health check states of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthChecks {
    /// Whether `services` is complete: all others have no health check.
    pub all: bool,
    /// By Service; `None` if it has no health check any more.
    pub services: BTreeMap<NamespacedName, Option<HealthCheck>>,
    /// The node addresses that serve health checks.
    pub listen: NodePortMatch,
}

impl HealthChecks {
    /// The health check states affected by `scope`; the cost is proportional to it.
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

/// The health check node port, which all ports of a Service share.
fn port_of(snapshot: &Snapshot<'_>, service: &NamespacedName) -> Option<u16> {
    let first = ServicePortName::first_of(service);
    let (_, facts) = snapshot.ports.range(first..).next().filter(|(name, _)| name.service == *service)?;
    Some(facts.health_check_node_port).filter(|port| *port != 0)
}

fn check(snapshot: &Snapshot<'_>, service: &NamespacedName, port: u16) -> HealthCheck {
    HealthCheck { port, local_endpoints: snapshot.endpoints.local_ready(service) }
}
