//! The health checks of load balancers: a server for each Service with a `healthCheckNodePort`, in each family.
//!
//! In: what successful syncs report, this node's addresses. Out: listening sockets that tell how many endpoints are ready
//! here. Must not know: rules. A port that cannot be had is named in the log and tried again.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use hyper::StatusCode;
use hyper::header::HeaderName;
use proxier::IpFamily;
use proxier::model::config::NodePortMatch;
use proxier::model::{HealthCheck, HealthChecks, NamespacedName};
use serde_json::Value;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tracing::{error, info, warn};

use crate::events::Events;
use crate::health::Health;
use crate::http::serve::{Clients, Server, listen};
use crate::http::{Answer, Handler, JSON, Reply};

const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");
/// How often ports that could not be had are tried, and this node's addresses looked at, without a sync.
const RETRY: Duration = Duration::from_secs(30);

/// What one successful sync reports.
pub type Report = (IpFamily, HealthChecks);
/// Where families send their reports.
pub type Reports = UnboundedSender<Report>;
/// Tells this node's addresses in a family.
pub type Addresses = Box<dyn Fn(IpFamily) -> io::Result<Vec<IpAddr>> + Send>;

/// All servers.
pub struct HealthCheckServers {
    health: Option<Arc<Health>>,
    addresses: Addresses,
    clients: Arc<Clients>,
    events: Events,
    families: BTreeMap<IpFamily, Family>,
}

#[derive(Default)]
struct Family {
    listen: Option<NodePortMatch>,
    addresses: BTreeSet<IpAddr>,
    /// There are health checks, and no address for them.
    lost: bool,
    /// This node's addresses cannot be read, and the log says so.
    unreadable: bool,
    wanted: BTreeMap<NamespacedName, HealthCheck>,
    open: BTreeMap<NamespacedName, Open>,
    /// What could not be had and is in the log already.
    failed: BTreeMap<NamespacedName, String>,
}

/// A Service that is served.
struct Open {
    port: u16,
    told: Arc<Told>,
    sockets: BTreeMap<IpAddr, Server>,
}

/// What the handlers of a Service tell.
#[derive(Debug, Default)]
struct Told {
    local_endpoints: AtomicUsize,
    closing: AtomicBool,
}

impl HealthCheckServers {
    /// Nobody is served yet. Without health (its server is switched off) the proxy counts as healthy.
    pub fn new(health: Option<Arc<Health>>, addresses: Addresses, clients: Arc<Clients>, events: Events) -> Self {
        Self { health, addresses, clients, events, families: BTreeMap::new() }
    }

    /// Serves until there is nobody left who reports; then all servers stop.
    pub async fn run(mut self, mut reports: UnboundedReceiver<Report>) {
        loop {
            match tokio::time::timeout(RETRY, reports.recv()).await {
                Ok(Some((family, checks))) => self.apply(family, checks).await,
                Ok(None) => break,
                Err(_) => {
                    for family in IpFamily::ALL {
                        self.look(family, BTreeSet::new()).await;
                    }
                }
            }
        }
        let all = self.families.values_mut().flat_map(|family| std::mem::take(&mut family.open));
        for (_, open) in all.collect::<Vec<_>>() {
            open.close().await;
        }
        self.clients.leave().await;
    }

    /// Takes a report.
    pub async fn apply(&mut self, family: IpFamily, checks: HealthChecks) {
        let state = self.families.entry(family).or_default();
        let mut changed: BTreeSet<NamespacedName> = checks.services.keys().cloned().collect();
        if checks.all {
            changed.extend(std::mem::take(&mut state.wanted).into_keys());
        }
        for (service, check) in checks.services {
            match check {
                Some(check) => state.wanted.insert(service, check),
                None => state.wanted.remove(&service),
            };
        }
        state.listen = Some(checks.listen);
        self.look(family, changed).await;
    }

    /// Brings the sockets of these Services in line, those that failed before, and all when addresses changed.
    async fn look(&mut self, family: IpFamily, mut services: BTreeSet<NamespacedName>) {
        let Some(state) = self.families.get_mut(&family) else { return };
        if state.find_addresses(family, &self.addresses) {
            services.extend(state.wanted.keys().chain(state.open.keys()).cloned());
        }
        services.extend(state.failed.keys().cloned());
        // First what is no more: a port may have gone from one Service to another.
        for service in &services {
            state.close(service).await;
        }
        for service in &services {
            if let Some(problems) = state.open(service, self.health.as_ref(), &self.clients) {
                self.events.health_check_failed(service, format!("health checks cannot be answered: {problems}"));
            }
        }
    }
}

impl Family {
    /// Whether they are others than before.
    fn find_addresses(&mut self, family: IpFamily, ask: &Addresses) -> bool {
        let found = match &self.listen {
            None => return false,
            Some(NodePortMatch::All) => BTreeSet::from([match family {
                IpFamily::V4 => Ipv4Addr::UNSPECIFIED.into(),
                IpFamily::V6 => Ipv6Addr::UNSPECIFIED.into(),
            }]),
            Some(within) => match ask(family) {
                Ok(local) => {
                    self.unreadable = false;
                    within.select(&local).into_iter().collect()
                }
                Err(error) => {
                    if !std::mem::replace(&mut self.unreadable, true) {
                        warn!(
                            "{family}: cannot read this node's addresses, health checks stay at the last known ones, \
                             trying again: {error}"
                        );
                    }
                    return false;
                }
            },
        };
        let lost = found.is_empty() && !self.wanted.is_empty();
        if lost && !std::mem::replace(&mut self.lost, lost) {
            warn!("{family}: no address of this node is in nodePortAddresses, health checks find nobody");
        }
        self.lost = lost;
        std::mem::replace(&mut self.addresses, found) != self.addresses
    }

    async fn close(&mut self, service: &NamespacedName) {
        let wanted = self.wanted.get(service);
        if wanted.is_none() {
            self.failed.remove(service);
        }
        let Some(open) = self.open.get_mut(service) else { return };
        if wanted.is_none_or(|wanted| wanted.port != open.port) {
            info!("Service {service}: health checks at port {} are no longer answered", open.port);
            if let Some(open) = self.open.remove(service) {
                open.close().await;
            }
            return;
        }
        let gone: Vec<IpAddr> = open.sockets.keys().filter(|ip| !self.addresses.contains(ip)).copied().collect();
        for ip in gone {
            if let Some(server) = open.sockets.remove(&ip) {
                server.stop().await;
            }
        }
    }

    /// Listens where nobody does yet; what is in the way.
    fn open(
        &mut self,
        service: &NamespacedName,
        health: Option<&Arc<Health>>,
        clients: &Arc<Clients>,
    ) -> Option<String> {
        let wanted = self.wanted.get(service)?;
        let fresh = || Open { port: wanted.port, told: Arc::default(), sockets: BTreeMap::new() };
        let open = self.open.entry(service.clone()).or_insert_with(fresh);
        open.told.local_endpoints.store(wanted.local_endpoints, Ordering::Relaxed);
        let mut problems = Vec::new();
        for ip in &self.addresses {
            if open.sockets.contains_key(ip) {
                continue;
            }
            let address = SocketAddr::new(*ip, wanted.port);
            match listen(address, false) {
                Ok(listener) => {
                    info!("Service {service}: health checks are answered at {address}");
                    let handler = handler(service, open.told.clone(), health.cloned());
                    open.sockets.insert(*ip, Server::start(listener, handler, clients.clone()));
                }
                Err(error) => problems.push(format!("{address}: {error}")),
            }
        }
        let problems = problems.join("; ");
        if problems.is_empty() {
            self.failed.remove(service);
            return None;
        }
        if self.failed.insert(service.clone(), problems.clone()).as_ref() != Some(&problems) {
            error!("Service {service}: health checks cannot be answered, trying again with the next sync: {problems}");
        }
        Some(problems)
    }
}

impl Open {
    /// Whoever is still connected hears that no traffic should come.
    async fn close(self) {
        self.told.closing.store(true, Ordering::Relaxed);
        for server in self.sockets.into_values() {
            server.stop().await;
        }
    }
}

/// Any path and method get the same answer.
fn handler(service: &NamespacedName, told: Arc<Told>, health: Option<Arc<Health>>) -> Handler {
    let service = service.clone();
    Arc::new(move |_| {
        let closing = told.closing.load(Ordering::Relaxed);
        let count = if closing { 0 } else { told.local_endpoints.load(Ordering::Relaxed) };
        answer(&service, count, health.as_ref().is_none_or(|health| health.live()))
    })
}

fn answer(service: &NamespacedName, count: usize, healthy: bool) -> Answer {
    let text = |text: &str| Value::from(text).to_string();
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": {},\n\t\t\"name\": {}\n\t}},\n\t\"localEndpoints\": {count},\n\t\
         \"serviceProxyHealthy\": {healthy}\n}}",
        text(&service.namespace),
        text(&service.name)
    );
    let status = if count > 0 && healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Reply::new(JSON, body).nosniff().with(WEIGHT, &count.to_string()).status(status).done()
}

/// The page of a Service whose count never changes.
#[cfg(test)]
pub fn page_of_service(service: &NamespacedName, count: usize, health: Option<Arc<Health>>) -> Handler {
    let told = Told { local_endpoints: AtomicUsize::new(count), closing: AtomicBool::new(false) };
    handler(service, Arc::new(told), health)
}

#[cfg(test)]
#[path = "health_checks_tests.rs"]
mod tests;
