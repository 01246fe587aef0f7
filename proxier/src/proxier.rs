//! The event loop of one IP family: applies changes, schedules syncs, checks for drift and reports.
//!
//! One thread owns all of it, and ends when the senders of its mailbox are gone. Nothing is locked.

mod checks;
mod flows;

use std::collections::HashMap;
use std::sync::mpsc::{RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant, SystemTime};

use netfilter::IpFamily;
use netfilter::kernel::{self, AddressWatch};
use tracing::{debug, error, info, warn};

use crate::backend::{Backend, Rejected, SyncError, SyncStats};
use crate::cleaner::{CleanupStats, FlowCleaner};
use crate::ender::ConnectionEnder;
use crate::leftovers::CleanupWorker;
use crate::mailbox::{Mail, Message, Receiver};
use crate::model::localhost_ports::LocalhostPorts;
use crate::model::{Config, HealthChecks, LocalDetector, Scope, ServicePortName};
use crate::schedule::SyncSchedule;
use crate::track::{Change, Kind, Tracker};

/// The interval of full syncs.
pub const FULL_SYNC_PERIOD: Duration = Duration::from_hours(1);

/// The pause before the next quick drift check, as a multiple of the CPU time of a repair.
const REPAIR_PAUSE_FACTOR: u32 = 10;

/// How long the first sync waits for the own Node.
const NODE_TIMEOUT: Duration = Duration::from_secs(30);

/// Receives the events of a [`Proxier`] on its thread; it must not block.
pub trait Observer: Send {
    /// An object of that kind changed, relevant or not; `pending` changes of the kind wait for a sync.
    fn changed(&mut self, kind: Kind, pending: usize);
    /// A sync was requested.
    fn queued(&mut self);
    /// A sync ended.
    fn synced(&mut self, report: &SyncReport<'_>);
    /// A pass over the conntrack table ended.
    fn cleaned(&mut self, _cleaned: &CleanupStats) {}
    /// Connections to endpoints that are gone were ended, so many.
    fn ended(&mut self, _connections: usize) {}
}

/// The report of a sync.
#[derive(Debug)]
pub struct SyncReport<'a> {
    /// Duration of the sync.
    pub duration: Duration,
    /// Whether a full sync was requested.
    pub full: bool,
    /// The statistics or the error.
    pub result: Result<&'a SyncStats, &'a SyncError>,
    /// The latencies of the changes that this sync was the first to program, as far as their trigger times are known.
    pub latencies: Vec<Duration>,
    /// The new health check states of Services; `None` after a failure.
    pub health_checks: Option<HealthChecks>,
    /// The new localhost node ports; `None` after a failure, and where no proxy serves them.
    pub localhost_ports: Option<LocalhostPorts>,
}

/// How long the first sync still waits for the own Node.
enum NodeWait {
    No,
    Until(Instant),
    /// Without limit: the Node watch ends the process if it takes too long.
    ForNetwork,
}

/// Owns one family's model and kernel state.
pub struct Proxier {
    family: IpFamily,
    config: Config,
    tracker: Tracker,
    schedule: SyncSchedule,
    backend: Box<dyn Backend>,
    cleaner: Option<FlowCleaner>,
    ender: Option<ConnectionEnder>,
    address_watch: Option<Box<dyn AddressWatch>>,
    leftovers: Option<CleanupWorker>,
    observer: Box<dyn Observer>,
    started: Instant,
    started_at: SystemTime,
    synced_once: bool,
    next_check: Instant,
    next_quick_check: Instant,
    /// The logged failures of quick and of full drift checks.
    check_failures: [String; 2],
    /// Whether the next sync repairs drift.
    repairing: bool,
    /// The drift since the last sync that is logged already.
    drift: String,
    /// When quick drift checks resume after a repair.
    quick_check_not_before: Instant,
    /// The Service ports that the last sync left out, with reasons.
    rejected: HashMap<ServicePortName, String>,
    /// When to retry them. Each retry costs a full sync.
    next_rejected_retry: Instant,
}

impl std::fmt::Debug for Proxier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxier").field("family", &self.family).finish_non_exhaustive()
    }
}

impl Proxier {
    /// Creates a proxier with an empty model.
    #[must_use]
    pub fn new(family: IpFamily, config: Config, backend: Box<dyn Backend>, observer: Box<dyn Observer>) -> Self {
        let periods = config.periods;
        let mut tracker = Tracker::default();
        tracker.request_full_sync();
        let now = Instant::now();
        Self {
            family,
            config,
            tracker,
            schedule: SyncSchedule::new(periods.min, periods.sync, FULL_SYNC_PERIOD),
            backend,
            cleaner: None,
            ender: None,
            address_watch: None,
            leftovers: None,
            observer,
            started: now,
            started_at: SystemTime::now(),
            synced_once: false,
            next_check: now + periods.sync,
            next_quick_check: now,
            check_failures: Default::default(),
            repairing: false,
            drift: String::new(),
            quick_check_not_before: now,
            rejected: HashMap::new(),
            next_rejected_retry: now,
        }
    }

    /// Deletes stale flows after syncs.
    #[must_use]
    pub fn with_cleaner(self, cleaner: FlowCleaner) -> Self {
        Self { cleaner: Some(cleaner), ..self }
    }

    /// Ends connections to endpoints that are gone, of Services that ask for it.
    #[must_use]
    pub fn with_ender(self, ender: ConnectionEnder) -> Self {
        Self { ender: Some(ender), ..self }
    }

    /// Reads the node's addresses right after a change, not only every `syncPeriod`.
    #[must_use]
    pub fn with_address_watch(self, watch: Box<dyn AddressWatch>) -> Self {
        Self { address_watch: Some(watch), ..self }
    }

    /// Removes other modes' state once this mode's rules are in place; until then theirs serve.
    #[must_use]
    pub fn with_leftovers(self, worker: CleanupWorker) -> Self {
        Self { leftovers: Some(worker), ..self }
    }

    /// Runs until the mailbox's senders are gone. A running sync is finished; rules stay in place.
    pub fn run(mut self, messages: &Receiver) {
        loop {
            let now = Instant::now();
            let wait = self.next_event(now).map(|at| at.saturating_duration_since(now));
            let received = match wait {
                // Pending changes are applied before a sync: a list of 10,000 objects is one sync.
                Some(Duration::ZERO) => messages.try_recv().map_err(|e| match e {
                    TryRecvError::Empty => RecvTimeoutError::Timeout,
                    TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
                }),
                wait => messages.recv(wait),
            };
            match received {
                Ok(Mail { message: Message::Change(change), events }) => self.apply_change(change, events),
                // A requester that timed out does not need the copy.
                Ok(Mail { message: Message::Copy(extent, answer), .. }) => {
                    let _ = answer.send(self.tracker.copy(&extent));
                }
                Ok(Mail { message: Message::Names(answer), .. }) => _ = answer.send(self.tracker.destination_names()),
                Err(RecvTimeoutError::Timeout) => self.run_due(Instant::now()),
                Err(RecvTimeoutError::Disconnected) => {
                    info!("{}: stopped; rules left in place", self.family);
                    return;
                }
            }
        }
    }

    /// Applies the newest of `events` changes of an object.
    fn apply_change(&mut self, change: Change, events: u32) {
        let kind = match &change {
            Change::Service(..) => Some(Kind::Service),
            Change::Slice(..) => Some(Kind::EndpointSlice),
            _ => None,
        };
        // Both families receive the deletion of a slice, and the change of a slice of the other family.
        let elsewhere = matches!(change, Change::Slice(_, None));
        let relisted = self.synced_once && matches!(change, Change::Listed(_) | Change::ListedInPart(_));
        let relevant = self.tracker.apply(change);
        if relisted {
            kernel::memory::release();
        }
        if let Some(kind) = kind.filter(|_| relevant || !elsewhere) {
            for _ in 0..events {
                self.observer.changed(kind, self.tracker.waiting(kind));
            }
        }
        if relevant && self.tracker.complete() {
            self.observer.queued();
            self.schedule.request(Instant::now());
        }
    }

    /// When the next sync, check or tick is due.
    fn next_event(&self, now: Instant) -> Option<Instant> {
        if !self.tracker.complete() {
            return None;
        }
        if !self.synced_once {
            match self.wait_for_node(now) {
                NodeWait::No => {}
                NodeWait::Until(at) => return Some(at),
                NodeWait::ForNetwork => return None,
            }
        }
        let due = self.schedule.due();
        if !self.synced_once {
            return due;
        }
        let end = self.ender.as_ref().and_then(ConnectionEnder::due);
        [due, end, self.backend.next_event()]
            .into_iter()
            .flatten()
            .chain([self.next_check, self.next_quick_check])
            .min()
    }

    /// Whether the first sync waits for the Node: rules depend on its addresses and pod networks.
    ///
    /// The wait for addresses is limited.
    fn wait_for_node(&self, now: Instant) -> NodeWait {
        let node = self.tracker.node();
        let known = self.tracker.node_listed() && !node.addresses.is_empty();
        let until = self.started + NODE_TIMEOUT;
        if self.config.local_detector == LocalDetector::NodeCidr && node.pod_cidrs.is_empty() {
            NodeWait::ForNetwork
        } else if known || now >= until {
            NodeWait::No
        } else {
            NodeWait::Until(until)
        }
    }

    fn run_due(&mut self, now: Instant) {
        if !self.synced_once && self.tracker.node().addresses.is_empty() {
            warn!(
                "{}: Node {:?} is unknown or has no addresses; syncing without it",
                self.family, self.config.node_name
            );
            self.schedule.request(now);
        }
        if self.schedule.due().is_some_and(|due| due <= now) {
            self.sync(now);
        } else if self.synced_once && self.ender.as_ref().and_then(ConnectionEnder::due).is_some_and(|at| at <= now) {
            self.end_connections(now);
        } else if self.synced_once && self.next_check <= now {
            self.check(now);
        } else if self.synced_once && self.backend.next_event().is_some_and(|at| at <= now) {
            self.tick(now);
        } else if self.synced_once && self.next_quick_check <= now {
            self.quick_check(now);
        }
    }

    fn tick(&mut self, now: Instant) {
        if let Err(error) = self.backend.tick(now) {
            warn!("{}: starting a full sync: {error}", self.family);
            self.request_full_sync_for_host(now);
        }
    }

    fn request_full_sync_for_host(&mut self, now: Instant) {
        self.tracker.request_full_sync();
        self.observer.queued();
        self.schedule.request_for_host(now);
    }

    fn sync(&mut self, now: Instant) {
        if now >= self.next_rejected_retry {
            self.tracker.request_sync_of(self.rejected.keys().cloned());
            self.next_rejected_retry = now + self.config.periods.sync;
        }
        let scope = match self.tracker.take_scope() {
            // The hourly run has nothing pending and is a full sync.
            Scope::Changed(pending) if pending.is_empty() => Scope::Full,
            scope => scope,
        };
        let node_ip = self.config.node_ip(self.family, self.tracker.node());
        let before = kernel::cpu_time();
        let result = self.backend.sync(&self.tracker.snapshot(node_ip), &scope, now);
        let duration = now.elapsed();
        self.drift.clear();
        if std::mem::take(&mut self.repairing) {
            // A program that keeps changing the rules must not keep a CPU busy.
            let effort = kernel::cpu_time().saturating_sub(before);
            self.quick_check_not_before = Instant::now() + effort * REPAIR_PAUSE_FACTOR;
        }
        let retry = match &result {
            Ok(stats) => Some(self.record_success(stats, duration)),
            Err(error) => {
                let backoff = self.schedule.failure_backoff();
                error!("{}: sync failed, retrying in {backoff:?} or with the next change: {error}", self.family);
                self.tracker.request_full_sync();
                None
            }
        };
        let full = scope == Scope::Full;
        if full {
            kernel::memory::release();
        }
        // After a failure, the next successful sync reports both (behaviour.yaml I9).
        let latencies = if result.is_ok() { self.latencies() } else { Vec::new() };
        let health_checks = result.is_ok().then(|| self.health_checks(&scope));
        let proxied = result.is_ok() && self.config.proxies_localhost(self.family);
        let localhost_ports = proxied.then(|| LocalhostPorts::of(&self.tracker.snapshot(node_ip), &scope));
        let result_ref = result.as_ref();
        let report = SyncReport { duration, full, result: result_ref, latencies, health_checks, localhost_ports };
        self.observer.synced(&report);
        // After a failure, the next sync and the pass after it are full (behaviour.yaml I9).
        if result.is_ok() {
            let gone = self.tracker.take_gone();
            self.clean_flows(&scope, gone);
            self.wake_leftovers();
        }
        let end = Instant::now();
        match retry {
            Some(retry) => self.schedule.ended(end, retry),
            None => self.schedule.failed(end),
        }
        if !self.synced_once {
            self.synced_once = true;
            self.next_check = end + self.config.periods.sync;
        }
    }

    /// Latencies of the changes since this process started.
    fn latencies(&mut self) -> Vec<Duration> {
        let now = SystemTime::now();
        let ours = self.tracker.take_triggers().into_iter().filter(|at| *at > self.started_at);
        ours.filter_map(|at| now.duration_since(at).ok()).collect()
    }

    fn health_checks(&self, scope: &Scope) -> HealthChecks {
        let node_ip = self.config.node_ip(self.family, self.tracker.node());
        let listen = self.config.node_port_addresses.resolve(self.family, node_ip);
        HealthChecks::of(&self.tracker.snapshot(node_ip), scope, listen)
    }

    pub(super) fn wake_leftovers(&mut self) {
        if self.leftovers.as_ref().is_some_and(|worker| !worker.wake()) {
            self.leftovers = None;
        }
    }

    /// Records the Service ports left out; returns whether to retry them.
    fn record_success(&mut self, stats: &SyncStats, duration: Duration) -> bool {
        let mut rejected = HashMap::new();
        for Rejected { port, reason } in &stats.rejected {
            // Log each reason once, not at each retry.
            if self.rejected.get(port) != Some(reason) {
                error!("{}: left out Service port {port}, retrying every sync period: {reason}", self.family);
            }
            rejected.insert(port.clone(), reason.clone());
        }
        self.rejected = rejected;
        let rules: Vec<String> =
            stats.rules.iter().map(|r| format!("{} {} of {}", r.table, r.written, r.total)).collect();
        let scope = if stats.full { "all" } else { "changed" };
        // Only iptables mode counts rules.
        let written = if rules.is_empty() { String::new() } else { format!("; rules written: {}", rules.join(", ")) };
        debug!("{}: synced {scope} Service ports in {duration:?}{written}", self.family);
        !stats.rejected.is_empty()
    }
}
