//! The loop of a family: when it syncs, how much, and what it does about failures and damage.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use netfilter::IpFamily;
use proxier::backend::{Backend, Rejected, SyncError, SyncStats};
use proxier::leftovers::{CleanupFn, CleanupWorker};
use proxier::mailbox::{self, mailbox};
use proxier::model::{Config, LocalDetector, NamespacedName, NodeInfo, Scope, ServicePortName, Snapshot};
use proxier::proxier::{Observer, Proxier, SyncReport};
use proxier::testing::objects;
use proxier::track::{Change, Kind, Translator};

const SYNC_TIMEOUT: Duration = Duration::from_secs(10);

/// The results of the next syncs.
type Script = Arc<Mutex<VecDeque<Result<SyncStats, SyncError>>>>;

#[derive(Debug)]
struct Scripted {
    script: Script,
    syncs: Sender<(Scope, usize)>,
    damaged: Arc<Mutex<bool>>,
}

impl Backend for Scripted {
    fn sync(&mut self, snapshot: &Snapshot<'_>, scope: &Scope, _: Instant) -> Result<SyncStats, SyncError> {
        self.syncs.send((scope.clone(), snapshot.ports.len())).expect("the test listens");
        self.script.lock().expect("unpoisoned").pop_front().unwrap_or_else(|| Ok(SyncStats::default()))
    }

    fn check_drift(&mut self, _: Instant) -> Result<Option<String>, SyncError> {
        let damaged = std::mem::take(&mut *self.damaged.lock().expect("unpoisoned"));
        Ok(damaged.then(|| "a chain was deleted".to_owned()))
    }

    fn cleanup(&mut self) -> Result<(), Vec<SyncError>> {
        unreachable!("not called")
    }
}

struct Watcher(Sender<bool>);

impl Observer for Watcher {
    fn changed(&mut self, _: Kind, _: usize) {}
    fn queued(&mut self) {}
    fn synced(&mut self, report: &SyncReport<'_>) {
        // The test may have seen enough.
        let _ = self.0.send(report.result.is_ok());
    }
}

/// A proxier on a thread of its own, whose failures are retried after `period`.
struct ActiveMode {
    changes: Option<mailbox::Sender>,
    syncs: Receiver<(Scope, usize)>,
    reports: Receiver<bool>,
    damaged: Arc<Mutex<bool>>,
    thread: std::thread::JoinHandle<()>,
}

fn start(script: Vec<Result<SyncStats, SyncError>>, period: Duration) -> ActiveMode {
    let mut config = objects::config();
    config.periods.sync = period;
    begin(config, script, Box::new(|| Ok(())))
}

fn begin(config: Config, script: Vec<Result<SyncStats, SyncError>>, removal: CleanupFn) -> ActiveMode {
    let (changes, received) = mailbox();
    let (sync_sender, syncs) = channel();
    let (report_sender, reports) = channel();
    let damaged = Arc::new(Mutex::new(false));
    let script = Arc::new(Mutex::new(script.into()));
    let backend = Scripted { script, syncs: sync_sender, damaged: damaged.clone() };
    let proxier = Proxier::new(IpFamily::V4, config, Box::new(backend), Box::new(Watcher(report_sender)));
    let leftovers = CleanupWorker::start(IpFamily::V4, removal).expect("a thread");
    let thread = std::thread::spawn(move || proxier.with_leftovers(leftovers).run(&received));
    ActiveMode { changes: Some(changes), syncs, reports, damaged, thread }
}

impl ActiveMode {
    fn send(&self, change: Change) {
        self.changes.as_ref().expect("still running").send(change);
    }

    fn list(&self, service_names: &[&str]) {
        for kind in Kind::ALL {
            self.send(Change::Listing(kind));
        }
        let node = NodeInfo { addresses: vec!["192.168.0.1".parse().expect("an address")], ..NodeInfo::default() };
        self.send(Change::Node(node));
        for name in service_names {
            self.send(service(name, 80));
        }
        for kind in Kind::ALL {
            self.send(Change::Listed(kind));
        }
    }

    fn sync(&self) -> (Scope, usize) {
        self.syncs.recv_timeout(SYNC_TIMEOUT).expect("a sync")
    }
}

fn service(name: &str, port: u16) -> Change {
    let mut object = objects::service("ns", name, "10.96.0.1".parse().expect("an address"));
    object["spec"]["ports"][0]["port"] = port.into();
    let translated =
        Translator::new("n", false).applied(objects::decoded(Kind::Service, object)).expect("a good Service");
    translated.changes.into_iter().find(|(family, _)| *family == IpFamily::V4).expect("IPv4").1
}

fn port(name: &str) -> ServicePortName {
    ServicePortName {
        service: NamespacedName::new("ns", name),
        port: "http".into(),
        protocol: proxier::model::Protocol::Tcp,
    }
}

fn changed(name: &str) -> Scope {
    Scope::Changed([port(name)].into())
}

const LONG: Duration = Duration::from_secs(3600);

#[test]
fn first_sync_waits_for_all_lists_and_later_ones_are_partial() {
    let running = start(vec![], LONG);
    running.send(Change::Listing(Kind::Service));
    running.send(service("a", 80));
    running.send(Change::Listed(Kind::Service));
    assert!(running.syncs.try_recv().is_err(), "the slices are not known");
    running.list(&["a", "b"]);
    assert_eq!(running.sync(), (Scope::Full, 2));
    running.send(service("b", 81));
    assert_eq!(running.sync(), (changed("b"), 2));
    // Nothing new, then something: the next sync is about the latter only.
    running.send(service("b", 81));
    running.send(service("a", 82));
    assert_eq!(running.sync(), (changed("a"), 2));
}

#[test]
fn a_failed_first_sync_is_retried_by_itself_and_in_full() {
    let running =
        start(vec![Err(SyncError("no".to_owned())), Err(SyncError("no".to_owned()))], Duration::from_millis(20));
    running.list(&["a"]);
    for _ in 0..3 {
        assert_eq!(running.sync(), (Scope::Full, 1));
    }
    let results: Vec<bool> = running.reports.iter().take(3).collect();
    assert_eq!(results, [false, false, true]);
}

#[test]
fn a_refused_service_port_is_tried_again_alone() {
    let rejected = vec![Rejected { port: port("b"), reason: "no such match".to_owned() }];
    let running = start(vec![Ok(SyncStats { rejected, ..SyncStats::default() })], Duration::from_millis(20));
    running.list(&["a", "b"]);
    assert_eq!(running.sync(), (Scope::Full, 2));
    assert_eq!(running.sync(), (changed("b"), 2));
}

#[test]
fn a_refused_service_port_is_not_tried_with_every_change() {
    let rejected = || {
        Ok(SyncStats { rejected: vec![Rejected { port: port("b"), reason: String::new() }], ..SyncStats::default() })
    };
    let running = start(vec![rejected(), rejected(), rejected()], LONG);
    running.list(&["a", "b"]);
    assert_eq!(running.sync(), (Scope::Full, 2));
    running.send(service("a", 81));
    assert_eq!(running.sync(), (changed("a"), 2));
    running.send(service("b", 81));
    assert_eq!(running.sync(), (changed("b"), 2), "unless it has changed itself");
}

#[test]
fn drift_is_repaired_by_a_full_sync() {
    let running = start(vec![], Duration::from_millis(20));
    running.list(&["a"]);
    assert_eq!(running.sync(), (Scope::Full, 1));
    *running.damaged.lock().expect("unpoisoned") = true;
    assert_eq!(running.sync(), (Scope::Full, 1));
}

#[test]
fn leftovers_are_deleted_after_a_successful_sync_and_retried() {
    let mut config = objects::config();
    config.periods.sync = Duration::from_millis(20);
    let (closed, order) = channel();
    let mut fails = 2;
    let removal = Box::new(move || {
        // The test may have seen enough.
        let _ = closed.send(());
        fails -= 1;
        if fails >= 0 { Err(vec![SyncError("not yet".to_owned())]) } else { Ok(()) }
    });
    let running = begin(config, vec![Err(SyncError("not yet".to_owned()))], removal);
    running.list(&["a"]);
    running.sync();
    assert!(order.try_recv().is_err(), "theirs serve until ours do");
    running.sync();
    for _ in 0..3 {
        order.recv_timeout(SYNC_TIMEOUT).expect("a try");
    }
    // The closure is gone, and with it the channel's other end.
    assert!(order.recv_timeout(SYNC_TIMEOUT).is_err_and(|error| error == RecvTimeoutError::Disconnected));
}

#[test]
fn sync_waits_for_pod_cidrs_where_they_are_used() {
    let config = Config { local_detector: LocalDetector::NodeCidr, ..objects::config() };
    let running = begin(config, vec![], Box::new(|| Ok(())));
    running.list(&["a"]);
    let pod_cidrs = vec!["10.244.1.0/24".parse().expect("a network")];
    running.send(service("b", 80));
    let addresses = vec!["192.168.0.1".parse().expect("an address")];
    running.send(Change::Node(NodeInfo { addresses, pod_cidrs, ..NodeInfo::default() }));
    // One sync, of all that came before and with the networks.
    assert_eq!(running.sync(), (Scope::Full, 2));
}

#[test]
fn loop_ends_with_its_channel() {
    let mut running = start(vec![], LONG);
    running.list(&["a"]);
    running.sync();
    running.changes = None;
    running.thread.join().expect("an orderly end");
}
