//! Health checks for load balancers: a server for each Service with a `healthCheckNodePort`.
//!
//! Successful syncs report the Services; each response has the number of ready endpoints on this node in the family of
//! the
//! client. A Service with the same port on all addresses of both families needs one dual-stack socket. A port that
//! cannot be
//! opened is logged, counted and retried; sockets never take the descriptors that the rest of the process needs.

mod listeners;
mod page;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use netfilter::IpFamily;
use prometheus::IntGauge;
use proxier::model::config::NodePortMatch;
use proxier::model::{HealthCheck, HealthChecks, NamespacedName};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::time::{Instant, timeout_at};
use tracing::{error, warn};

use self::listeners::{ListenAddress, ListenerContext, ServiceListeners, wildcard};
#[cfg(test)]
pub use self::page::page_of_service;
use crate::events::EventSender;
use crate::health::Health;
use crate::http::serve::ConnectionLimiter;

/// How often failed ports are retried and this node's addresses are listed without a sync.
const RETRY_INTERVAL: Duration = Duration::from_secs(30);

/// The health checks that a successful sync reports.
pub type FamilyHealthChecks = (IpFamily, HealthChecks);
/// Sends the families' health checks.
pub type HealthCheckSender = UnboundedSender<FamilyHealthChecks>;
/// Lists this node's addresses in a family.
pub type ListAddresses = Box<dyn Fn(IpFamily) -> io::Result<Vec<IpAddr>> + Send>;

/// The servers of all Services.
pub struct HealthCheckServers {
    shared: ListenerContext,
    addresses: ListAddresses,
    events: EventSender,
    /// The number of Services in `failed`.
    unserved: IntGauge,
    families: BTreeMap<IpFamily, FamilyListeners>,
    listeners: BTreeMap<NamespacedName, ServiceListeners>,
    /// Services that are not served on every address, and why. Each reason is logged once.
    failed: BTreeMap<NamespacedName, String>,
}

/// The desired health checks of a family, and the addresses to listen on.
#[derive(Default)]
struct FamilyListeners {
    listen: Option<NodePortMatch>,
    addresses: BTreeSet<IpAddr>,
    /// Health checks exist but no address for them.
    no_address: bool,
    /// This node's addresses cannot be listed, and that is logged.
    unreadable: bool,
    desired: BTreeMap<NamespacedName, HealthCheck>,
}

impl HealthCheckServers {
    /// No Service is served yet. Without `health` (its server is disabled) the proxy counts as healthy. `capacity`: the
    /// most sockets. `unserved` counts Services that are not fully served.
    pub fn new(
        health: Option<Arc<Health>>,
        addresses: ListAddresses,
        (clients, capacity): (Arc<ConnectionLimiter>, usize),
        events: EventSender,
        unserved: IntGauge,
    ) -> Self {
        let shared = ListenerContext { health, clients, capacity, open: 0 };
        let (families, listeners, failed) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { shared, addresses, events, unserved, families, listeners, failed }
    }

    /// Serves until the last sender is dropped; then all servers stop.
    pub async fn run(mut self, mut reports: UnboundedReceiver<FamilyHealthChecks>) {
        let mut retry_at = Instant::now() + RETRY_INTERVAL;
        loop {
            match timeout_at(retry_at, reports.recv()).await {
                Ok(Some((family, checks))) => self.apply(family, checks).await,
                Ok(None) => break,
                Err(_) => {}
            }
            // At fixed times: reports of one family must not delay the retries of the other.
            if Instant::now() >= retry_at {
                self.update(&IpFamily::ALL, BTreeSet::new()).await;
                retry_at = Instant::now() + RETRY_INTERVAL;
            }
        }
        for (service, mut listeners) in std::mem::take(&mut self.listeners) {
            listeners.close_others(&service, &BTreeSet::new(), &mut self.shared).await;
        }
        self.shared.clients.drain().await;
    }

    /// Applies the health checks of a sync.
    pub async fn apply(&mut self, family: IpFamily, checks: HealthChecks) {
        let state = self.families.entry(family).or_default();
        let mut changed: BTreeSet<NamespacedName> = checks.services.keys().cloned().collect();
        if checks.all {
            changed.extend(std::mem::take(&mut state.desired).into_keys());
        }
        for (service, check) in checks.services {
            match check {
                Some(check) => state.desired.insert(service, check),
                None => state.desired.remove(&service),
            };
        }
        state.listen = Some(checks.listen);
        self.update(&[family], changed).await;
    }

    /// Updates the sockets of these Services and of failed ones, and of all if the addresses of one of `families`
    /// changed.
    async fn update(&mut self, families: &[IpFamily], mut services: BTreeSet<NamespacedName>) {
        for family in families {
            let Some(state) = self.families.get_mut(family) else { continue };
            if state.read_addresses(*family, &self.addresses) {
                services.extend(state.desired.keys().chain(self.listeners.keys()).cloned());
            }
        }
        services.extend(self.failed.keys().cloned());
        // Closes first: a port may have moved from one Service to another.
        for service in &services {
            self.close(service).await;
        }
        for service in &services {
            if let Some(problems) = self.open(service) {
                self.events.health_check_failed(service, format!("cannot serve health checks: {problems}"));
            }
        }
        self.unserved.set(i64::try_from(self.failed.len()).unwrap_or(i64::MAX));
    }

    /// The addresses on which a Service should be served. `split`: never with a dual-stack socket.
    fn desired(&self, service: &NamespacedName, split: bool) -> BTreeSet<ListenAddress> {
        let in_family = |state: &FamilyListeners| state.desired.get(service).map(|check| check.port);
        let on_wildcard = |family| {
            self.families.get(&family).filter(|state| state.listen == Some(NodePortMatch::All)).and_then(in_family)
        };
        match IpFamily::ALL.map(on_wildcard) {
            [Some(v4), Some(v6)] if v4 == v6 && !split => [ListenAddress::dual_stack(v4)].into(),
            _ => {
                let states = self.families.values().filter_map(|state| Some((state, in_family(state)?)));
                let sockets =
                    states.flat_map(|(state, port)| state.addresses.iter().map(move |ip| SocketAddr::new(*ip, port)));
                sockets.map(|socket| ListenAddress { socket, dual_stack: false }).collect()
            }
        }
    }

    async fn close(&mut self, service: &NamespacedName) {
        if !self.families.values().any(|state| state.desired.contains_key(service)) {
            self.failed.remove(service);
            if let Some(mut listeners) = self.listeners.remove(service) {
                listeners.close_others(service, &BTreeSet::new(), &mut self.shared).await;
            }
            return;
        }
        let split = self.listeners.get(service).is_some_and(|listeners| listeners.split);
        let desired = self.desired(service, split);
        if let Some(listeners) = self.listeners.get_mut(service) {
            listeners.close_others(service, &desired, &mut self.shared).await;
        }
    }

    /// Opens the missing sockets. Returns the problems.
    fn open(&mut self, service: &NamespacedName) -> Option<String> {
        if !self.families.values().any(|state| state.desired.contains_key(service)) {
            return None;
        }
        let mut listeners = self.listeners.remove(service).unwrap_or_default();
        for (family, state) in &self.families {
            listeners.endpoints.set(*family, state.desired.get(service).map_or(0, |check| check.local_endpoints));
        }
        let desired = self.desired(service, listeners.split);
        let (mut problems, no_dual_stack) = listeners.open_missing(service, &desired, &mut self.shared);
        if no_dual_stack {
            // The port may be free in one family only, or the host may lack IPv6.
            listeners.split = true;
            let desired = self.desired(service, true);
            problems = listeners.open_missing(service, &desired, &mut self.shared).0;
        }
        self.listeners.insert(service.clone(), listeners);
        if problems.is_empty() {
            self.failed.remove(service);
            return None;
        }
        let problems = problems.join("; ");
        if self.failed.insert(service.clone(), problems.clone()).as_ref() != Some(&problems) {
            error!("Failed to serve health checks of Service {service}, retrying with the next sync: {problems}");
        }
        Some(problems)
    }
}

impl FamilyListeners {
    /// Lists the addresses to listen on. Returns whether they changed.
    fn read_addresses(&mut self, family: IpFamily, list: &ListAddresses) -> bool {
        let found = match &self.listen {
            None => return false,
            Some(NodePortMatch::All) => BTreeSet::from([wildcard(family)]),
            Some(within) => match list(family) {
                Ok(local) => {
                    self.unreadable = false;
                    within.select(&local).into_iter().collect()
                }
                Err(error) => {
                    if !std::mem::replace(&mut self.unreadable, true) {
                        warn!(
                            "Failed to list this node's {family} addresses, health checks stay on the last known ones, \
                             retrying: {error}"
                        );
                    }
                    return false;
                }
            },
        };
        let no_address = found.is_empty() && !self.desired.is_empty();
        if no_address && !std::mem::replace(&mut self.no_address, no_address) {
            warn!("No {family} address of this node is in nodePortAddresses, health checks are not served");
        }
        self.no_address = no_address;
        std::mem::replace(&mut self.addresses, found) != self.addresses
    }
}

#[cfg(test)]
mod tests;
