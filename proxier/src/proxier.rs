//! The loop of one family: takes changes, decides when to sync, syncs, reports.
//!
//! In: [`Change`]s through a channel, and questions. Out: calls of a [`Backend`], reports to an [`Observer`].
//! Must not know: which mode it is, or where changes come from. One thread owns all of it; it ends with its channel.

mod checks;

use std::collections::{BTreeSet, HashMap};
use std::sync::mpsc::{RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant, SystemTime};

use netfilter::IpFamily;
use netfilter::kernel::{self, AddressWatch};
use tracing::{debug, error, info, warn};

use crate::backend::{Backend, Rejected, SyncError, SyncStats};
use crate::cleaner::{CleanupStats, FlowCleaner};
use crate::leftovers::CleanupWorker;
use crate::mailbox::{Mail, Message, Receiver};
use crate::model::{Config, Destination, HealthChecks, LocalDetector, Scope, ServicePortName};
use crate::schedule::SyncSchedule;
use crate::track::{Change, Kind, Tracker};

/// How long at most without a sync that looks at everything.
pub const FULL_SYNC_PERIOD: Duration = Duration::from_hours(1);

/// How many times the CPU time of a repair has to pass before the next quick look for damage.
const REPAIR_PAUSE_FACTOR: u32 = 10;

/// How long to wait for the own Node before its facts are taken for unknown.
const NODE_TIMEOUT: Duration = Duration::from_secs(30);

/// Who wants to know what a [`Proxier`] does. Called on its thread: it must not block.
pub trait Observer: Send {
    /// An event of that kind came, relevant or not; so many changes of it wait for a sync now.
    fn changed(&mut self, kind: Kind, pending: usize);
    /// Something has to be synced.
    fn queued(&mut self);
    /// A sync ended.
    fn synced(&mut self, report: &SyncReport<'_>);
    /// Stale flows were looked for.
    fn cleaned(&mut self, _cleaned: &CleanupStats) {}
}

/// What a sync came to.
#[derive(Debug)]
pub struct SyncReport<'a> {
    /// How long it took.
    pub duration: Duration,
    /// Whether it was meant to look at everything.
    pub full: bool,
    /// What it did, or why it failed.
    pub result: Result<&'a SyncStats, &'a SyncError>,
    /// How long ago that happened which this sync was the first to make known to the kernel, as far as it was noted.
    pub latencies: Vec<Duration>,
    /// What the health checks of Services have to tell from now on; `None` after a failure.
    pub health_checks: Option<HealthChecks>,
}

/// How long the first sync is still held up for the sake of the own Node.
enum NodeWait {
    No,
    Until(Instant),
    /// Whoever watches the Node ends the process if it takes too long.
    ForNetwork,
}

/// The owner of one family's model and kernel state.
pub struct Proxier {
    family: IpFamily,
    config: Config,
    tracker: Tracker,
    schedule: SyncSchedule,
    backend: Box<dyn Backend>,
    cleaner: Option<FlowCleaner>,
    address_watch: Option<Box<dyn AddressWatch>>,
    leftovers: Option<CleanupWorker>,
    observer: Box<dyn Observer>,
    started: Instant,
    started_at: SystemTime,
    synced_once: bool,
    next_check: Instant,
    next_quick_check: Instant,
    /// The failures of checks and of quick looks that the log has already.
    complaints: [String; 2],
    /// The next sync repairs damage.
    repairing: bool,
    /// The damage since the last sync that the log has already.
    drift: String,
    /// Not before this are quick looks for damage taken again.
    quick_check_not_before: Instant,
    /// What the last sync left out, and why.
    rejected: HashMap<ServicePortName, String>,
    /// When to try that again. Each try costs a look at everything.
    next_rejected_retry: Instant,
}

impl std::fmt::Debug for Proxier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxier").field("family", &self.family).finish_non_exhaustive()
    }
}

impl Proxier {
    /// A proxier that knows nothing yet.
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
            address_watch: None,
            leftovers: None,
            observer,
            started: now,
            started_at: SystemTime::now(),
            synced_once: false,
            next_check: now + periods.sync,
            next_quick_check: now,
            complaints: Default::default(),
            repairing: false,
            drift: String::new(),
            quick_check_not_before: now,
            rejected: HashMap::new(),
            next_rejected_retry: now,
        }
    }

    /// Has stale flows deleted after syncs.
    #[must_use]
    pub fn with_cleaner(self, cleaner: FlowCleaner) -> Self {
        Self { cleaner: Some(cleaner), ..self }
    }

    /// Has the node's addresses read again soon after one came or went, not only every `syncPeriod`.
    #[must_use]
    pub fn with_address_watch(self, watch: Box<dyn AddressWatch>) -> Self {
        Self { address_watch: Some(watch), ..self }
    }

    /// Has other modes' state removed once our own rules are in place: until then theirs serve.
    #[must_use]
    pub fn with_leftovers(self, worker: CleanupWorker) -> Self {
        Self { leftovers: Some(worker), ..self }
    }

    /// Runs until the channel's senders are gone. A sync under way is finished first; the rules stay.
    pub fn run(mut self, messages: &Receiver) {
        loop {
            let now = Instant::now();
            let wait = self.next_event(now).map(|at| at.saturating_duration_since(now));
            let received = match wait {
                // What has come already is taken before a sync begins: a list of 10,000 is one change.
                Some(Duration::ZERO) => messages.try_recv().map_err(|e| match e {
                    TryRecvError::Empty => RecvTimeoutError::Timeout,
                    TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
                }),
                wait => messages.recv(wait),
            };
            match received {
                Ok(Mail { message: Message::Change(change), events }) => self.apply_change(change, events),
                // Who does not wait for it any more does not need it.
                Ok(Mail { message: Message::Copy(extent, answer), .. }) => {
                    let _ = answer.send(self.tracker.copy(&extent));
                }
                Err(RecvTimeoutError::Timeout) => self.run_due(Instant::now()),
                Err(RecvTimeoutError::Disconnected) => {
                    info!("{}: stopped, the rules stay", self.family);
                    return;
                }
            }
        }
    }

    /// Takes the newest of so many changes of an object.
    fn apply_change(&mut self, change: Change, events: u32) {
        let kind = match &change {
            Change::Service(..) => Some(Kind::Service),
            Change::Slice(..) => Some(Kind::EndpointSlice),
            _ => None,
        };
        // Both families are told of a slice that is gone, or that is the other one's.
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

    /// When there is something to do besides taking changes.
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
        [due, self.backend.next_event()].into_iter().flatten().chain([self.next_check, self.next_quick_check]).min()
    }

    /// Rules depend on the node's addresses and networks, so the first sync waits for them, for addresses not for ever.
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
                "{}: the Node {:?} is unknown or has no addresses, going on without",
                self.family, self.config.node_name
            );
            self.schedule.request(now);
        }
        if self.schedule.due().is_some_and(|due| due <= now) {
            self.sync(now);
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
            warn!("{}: looking at everything: {error}", self.family);
            self.request_full_sync(now);
        }
    }

    fn request_full_sync(&mut self, now: Instant) {
        self.tracker.request_full_sync();
        self.observer.queued();
        self.schedule.request(now);
    }

    fn sync(&mut self, now: Instant) {
        if now >= self.next_rejected_retry {
            self.tracker.request_sync_of(self.rejected.keys().cloned());
            self.next_rejected_retry = now + self.config.periods.sync;
        }
        let scope = match self.tracker.take_scope() {
            // The hourly run has nothing pending and looks at everything.
            Scope::Changed(pending) if pending.is_empty() => Scope::Full,
            scope => scope,
        };
        let node_ip = self.config.node_ip(self.family, self.tracker.node());
        let before = kernel::cpu_time();
        let result = self.backend.sync(&self.tracker.snapshot(node_ip), &scope, now);
        let duration = now.elapsed();
        self.drift.clear();
        if std::mem::take(&mut self.repairing) {
            // A program that damages the rules all the time must not keep a CPU busy.
            let effort = kernel::cpu_time().saturating_sub(before);
            self.quick_check_not_before = Instant::now() + effort * REPAIR_PAUSE_FACTOR;
        }
        let retry = match &result {
            Ok(stats) => Some(self.record_success(stats, duration)),
            Err(error) => {
                let pause = self.schedule.failure_pause();
                error!("{}: sync failed, next try in {pause:?} or with the next change: {error}", self.family);
                self.tracker.request_full_sync();
                None
            }
        };
        let full = scope == Scope::Full;
        if full {
            kernel::memory::release();
        }
        // After a failure both are told by the sync that makes up for it (behaviour.yaml I9).
        let latencies = if result.is_ok() { self.latencies() } else { Vec::new() };
        let health_checks = result.is_ok().then(|| self.health_checks(&scope));
        self.observer.synced(&SyncReport { duration, full, result: result.as_ref(), latencies, health_checks });
        // After a failure the next sync looks at everything, and so does the clean-up after it (behaviour.yaml I9).
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

    /// What was noted before this process began was nothing that it could have been quicker about.
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

    /// Deletes flows that the rules would not make so any more. Only after a sync: until then the old rules would make
    /// them again.
    fn clean_flows(&mut self, scope: &Scope, gone: BTreeSet<Destination>) {
        let node_ip = self.config.node_ip(self.family, self.tracker.node());
        let Some(cleaner) = &mut self.cleaner else { return };
        if let Some(cleaned) = cleaner.clean(&self.tracker.snapshot(node_ip), scope, gone) {
            self.observer.cleaned(&cleaned);
        }
    }

    pub(super) fn wake_leftovers(&mut self) {
        if self.leftovers.as_ref().is_some_and(|worker| !worker.wake()) {
            self.leftovers = None;
        }
    }

    /// Notes what was left out; whether to try again.
    fn record_success(&mut self, stats: &SyncStats, duration: Duration) -> bool {
        let mut rejected = HashMap::new();
        for Rejected { port, reason } in &stats.rejected {
            // Once is enough, however often it is tried.
            if self.rejected.get(port) != Some(reason) {
                error!(
                    "{}: Service port {port} is left out until it changes or can be programmed: {reason}",
                    self.family
                );
            }
            rejected.insert(port.clone(), reason.clone());
        }
        self.rejected = rejected;
        let rules: Vec<String> =
            stats.rules.iter().map(|r| format!("{} {} of {}", r.table, r.written, r.total)).collect();
        let scope = if stats.full { "all" } else { "changed" };
        // Not every mode counts rules.
        let written = if rules.is_empty() { String::new() } else { format!("; rules written: {}", rules.join(", ")) };
        debug!("{}: synced {scope} Service ports in {duration:?}{written}", self.family);
        !stats.rejected.is_empty()
    }
}
