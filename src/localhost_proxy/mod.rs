//! The localhost proxy of nftables mode (KEP-6032): serves TCP node ports on 127.0.0.1 and ::1 from user space.
//!
//! The kernel forwards no packets from loopback addresses unless `route_localnet` is set, which nftables mode leaves
//! alone. So each node port has a listening socket there, and each connection one to an endpoint. All of them are tasks
//! of one thread with a runtime of its own: clients that transfer much must not delay the API server's watches. Data
//! moves through pipes with splice(2), so it is not copied to user space.

mod budget;
mod choice;
mod listener;
mod pipes;
mod relay;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::Duration;

use netfilter::IpFamily;
use proxier::model::localhost_ports::{LocalhostPort, LocalhostPorts};
use proxier::model::{Protocol, ServicePortName};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, timeout_at};
use tracing::{debug, error, info};

use self::budget::SocketBudget;
use self::listener::Listener;
use crate::metrics::LocalhostMetrics;

/// How often ports that could not be opened are tried again without a sync.
const RETRY_INTERVAL: Duration = Duration::from_secs(30);
/// How often they are tried again with syncs, of which there may be many a second.
const SYNC_RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// The most pipes in use; more transfers under way copy through a buffer.
const MAX_PIPES: usize = 256;

/// The localhost node ports that a successful sync reports.
pub type FamilyLocalhostPorts = (IpFamily, LocalhostPorts);
/// Sends the families' localhost node ports.
pub type LocalhostSender = UnboundedSender<FamilyLocalhostPorts>;

/// How the proxy divides its file descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalhostLimits {
    /// For sockets: one for each node port and family that listens, two for each connection. Further connections wait in
    /// the kernel's queue of their listening socket.
    pub sockets: usize,
    /// The most listening sockets: three quarters of `sockets`, so that node ports leave room for connections.
    pub listeners: usize,
    /// The most pipes, with two descriptors each.
    pub pipes: usize,
}

impl LocalhostLimits {
    /// Divides a number of descriptors: at most a sixteenth is for pipes.
    #[must_use]
    pub fn share(descriptors: usize) -> Self {
        let pipes = MAX_PIPES.min(descriptors / 32);
        let sockets = descriptors - 2 * pipes;
        Self { sockets, listeners: sockets / 4 * 3, pipes }
    }
}

/// Starts the proxy's thread. It ends, and with it all connections, when the sender and its clones are dropped.
///
/// # Errors
/// The runtime or the thread cannot be started.
pub fn start(limits: LocalhostLimits, metrics: LocalhostMetrics) -> io::Result<LocalhostSender> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (sender, reports) = unbounded_channel();
    let proxy = LocalhostProxy::new(limits, metrics);
    let thread = std::thread::Builder::new().name("localhost-proxy".to_owned());
    thread.spawn(move || runtime.block_on(proxy.run(reports)))?;
    Ok(sender)
}

/// The listeners of both families.
pub struct LocalhostProxy {
    metrics: LocalhostMetrics,
    budget: SocketBudget,
    max_listeners: usize,
    families: BTreeMap<IpFamily, FamilyListeners>,
}

/// The desired node ports of a family, and their listeners.
#[derive(Default)]
struct FamilyListeners {
    desired: BTreeMap<ServicePortName, LocalhostPort>,
    /// The Service ports that have a node port; of several, the first by name owns it.
    claims: BTreeMap<u16, BTreeSet<ServicePortName>>,
    listeners: BTreeMap<u16, Listener>,
    /// Node ports that could not be opened, and why. Each reason is logged once for all that have it.
    failed: BTreeMap<u16, String>,
    /// When those of them were last tried that no sync reported as changed.
    retried_at: Option<Instant>,
}

impl LocalhostProxy {
    /// No node port is served yet.
    pub fn new(limits: LocalhostLimits, metrics: LocalhostMetrics) -> Self {
        let budget = SocketBudget::new(limits.sockets, limits.pipes);
        Self { metrics, budget, max_listeners: limits.listeners, families: BTreeMap::new() }
    }

    /// Serves until the last sender is dropped; then all listeners and connections are closed.
    pub async fn run(mut self, mut reports: UnboundedReceiver<FamilyLocalhostPorts>) {
        let mut retry_at = Instant::now() + RETRY_INTERVAL;
        loop {
            match timeout_at(retry_at, reports.recv()).await {
                Ok(Some((family, ports))) => self.apply(family, ports).await,
                Ok(None) => return,
                Err(_) => {}
            }
            if Instant::now() >= retry_at {
                self.retry().await;
                retry_at = Instant::now() + RETRY_INTERVAL;
            }
        }
    }

    /// Applies the node ports of a sync.
    pub async fn apply(&mut self, family: IpFamily, report: LocalhostPorts) {
        let state = self.families.entry(family).or_default();
        let mut touched = state.replace(report);
        if state.retried_at.is_none_or(|at| at.elapsed() >= SYNC_RETRY_INTERVAL) {
            touched.extend(state.failed_to_retry());
        }
        self.update(family, touched).await;
    }

    /// The number of open listeners of a family.
    #[cfg(test)]
    pub fn listening(&self, family: IpFamily) -> usize {
        self.families.get(&family).map_or(0, |family| family.listeners.len())
    }

    /// Opens, changes or closes the listeners of these node ports.
    async fn update(&mut self, family: IpFamily, mut touched: BTreeSet<u16>) {
        let Some(state) = self.families.get_mut(&family) else { return };
        let closed = state.close_unclaimed(family, &touched).await;
        if closed {
            // What they had may be enough for others.
            touched.extend(state.failed_to_retry());
        }
        let open: usize = self.families.values().map(|family| family.listeners.len()).sum();
        let room = self.max_listeners.saturating_sub(open);
        let Some(state) = self.families.get_mut(&family) else { return };
        let failures = state.open_claimed(family, touched, room, &self.budget);
        self.metrics.failures.with_label_values(&[family.name()]).inc_by(failures);
        let listening = i64::try_from(state.listeners.len()).unwrap_or(i64::MAX);
        self.metrics.listeners.with_label_values(&[family.name()]).set(listening);
    }

    /// Tries again to open the node ports that could not be opened.
    async fn retry(&mut self) {
        for family in IpFamily::ALL {
            let failed = self.families.get_mut(&family).map(FamilyListeners::failed_to_retry);
            self.update(family, failed.unwrap_or_default()).await;
        }
    }
}

impl FamilyListeners {
    /// Replaces what a sync reports; returns the node ports concerned.
    fn replace(&mut self, report: LocalhostPorts) -> BTreeSet<u16> {
        let LocalhostPorts { all, mut ports } = report;
        if all {
            let gone = self.desired.keys().filter(|name| !ports.contains_key(*name)).cloned().collect::<Vec<_>>();
            ports.extend(gone.into_iter().map(|name| (name, None)));
        }
        let mut touched = BTreeSet::new();
        for (name, port) in ports {
            let old = match &port {
                Some(new) => self.desired.insert(name.clone(), new.clone()),
                None => self.desired.remove(&name),
            };
            if old == port {
                continue;
            }
            if let Some(LocalhostPort { node_port, .. }) = old {
                touched.insert(node_port);
                if let Some(claims) = self.claims.get_mut(&node_port) {
                    claims.remove(&name);
                    if claims.is_empty() {
                        self.claims.remove(&node_port);
                    }
                }
            }
            if let Some(LocalhostPort { node_port, .. }) = port {
                touched.insert(node_port);
                self.claims.entry(node_port).or_default().insert(name);
            }
        }
        touched
    }

    /// The node ports that could not be opened, to try them again.
    fn failed_to_retry(&mut self) -> BTreeSet<u16> {
        if !self.failed.is_empty() {
            self.retried_at = Some(Instant::now());
        }
        self.failed.keys().copied().collect()
    }

    /// Closes the listeners of those of these node ports that no Service port has. Returns whether it closed one.
    async fn close_unclaimed(&mut self, family: IpFamily, touched: &BTreeSet<u16>) -> bool {
        let mut closed = false;
        for port in touched {
            if self.owner(*port).is_some() {
                continue;
            }
            self.failed.remove(port);
            if let Some(listener) = self.listeners.remove(port) {
                listener.close().await;
                debug!("{family}: stopped serving node port {port} on {}", family.localhost());
                closed = true;
            }
        }
        closed
    }

    /// Opens or changes the listeners of those of these node ports that a Service port has, at most `room` more than
    /// there are. Returns the number of failures.
    fn open_claimed(
        &mut self,
        family: IpFamily,
        touched: BTreeSet<u16>,
        mut room: usize,
        budget: &SocketBudget,
    ) -> u64 {
        let mut problems: BTreeMap<String, Vec<u16>> = BTreeMap::new();
        let mut failures = 0;
        for port in touched {
            let Some((name, desired)) = self.owner(port) else { continue };
            if let Some(listener) = self.listeners.get(&port) {
                listener.update(desired);
                continue;
            }
            let opened = match room {
                0 => Err("too many localhost node ports for RLIMIT_NOFILE; raise the limit".to_owned()),
                _ => Listener::open(family, desired, budget).map_err(|error| error.to_string()),
            };
            match opened {
                Ok(listener) => {
                    debug!("{family}: serving node port {port} of {name} on {}", family.localhost());
                    room -= 1;
                    self.listeners.insert(port, listener);
                    if self.failed.remove(&port).is_some() {
                        info!("{family}: serving localhost node port {port} after all");
                    }
                }
                Err(problem) => {
                    failures += 1;
                    if self.failed.insert(port, problem.clone()).as_ref() != Some(&problem) {
                        problems.entry(problem).or_default().push(port);
                    }
                }
            }
        }
        self.log(family, &problems);
        failures
    }

    /// Logs node ports that could not be opened, by reason.
    fn log(&self, family: IpFamily, problems: &BTreeMap<String, Vec<u16>>) {
        for (problem, ports) in problems {
            let [port, others @ ..] = &ports[..] else { continue };
            let Some((name, _)) = self.owner(*port) else { continue };
            let localhost = family.localhost();
            let others = match others.len() {
                0 => String::new(),
                count => format!(", nor on {count} other localhost node ports"),
            };
            error!("{family}: Failed to listen on {localhost} port {port} for {name}{others}, retrying: {problem}");
        }
    }

    fn owner(&self, port: u16) -> Option<(&ServicePortName, &LocalhostPort)> {
        let name = self.claims.get(&port)?.first()?;
        debug_assert_eq!(name.protocol, Protocol::Tcp);
        Some((name, self.desired.get(name)?))
    }
}
