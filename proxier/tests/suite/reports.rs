//! What a sync reports besides its rules: health checks, and how long changes took to get to the kernel.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use netfilter::IpFamily;
use proxier::backend::{Backend, SyncError, SyncStats};
use proxier::mailbox::{self, mailbox};
use proxier::model::config::NodePortMatch;
use proxier::model::{HealthCheck, HealthChecks, NamespacedName, NodePortAddresses, Scope, Snapshot};
use proxier::proxier::{Observer, Proxier, SyncReport};
use proxier::testing::objects;
use proxier::track::{Change, Kind, Tracker, Translator};
use serde_json::{Value, json};

const REPORT_TIMEOUT: Duration = Duration::from_secs(10);

/// A LoadBalancer Service that is health-checked at `port`; without a port it is none.
fn service(name: &str, port: u16) -> Value {
    let mut object = objects::service("ns", name, "10.96.0.1".parse().expect("an address"));
    if port != 0 {
        object["spec"]["type"] = "LoadBalancer".into();
        object["spec"]["externalTrafficPolicy"] = "Local".into();
        object["spec"]["healthCheckNodePort"] = port.into();
    }
    object
}

fn endpoint(ip: &str, node: &str, ready: bool) -> Value {
    json!({"addresses": [ip], "nodeName": node, "conditions": {"ready": ready, "serving": true}})
}

fn slice(service: &str, name: &str, port: &str, endpoints: &[Value]) -> Value {
    let mut object = objects::slice("ns", service, name, &[]);
    object["ports"][0]["name"] = port.into();
    object["endpoints"] = endpoints.into();
    object
}

fn ours(kind: Kind, object: Value) -> Vec<Change> {
    let translated =
        Translator::new(objects::NODE, false).applied(objects::decoded(kind, object)).expect("a good object");
    translated.changes.into_iter().filter(|(family, _)| *family == IpFamily::V4).map(|(_, change)| change).collect()
}

fn apply(tracker: &mut Tracker, kind: Kind, object: Value) -> bool {
    ours(kind, object).into_iter().map(|change| tracker.apply(change)).fold(false, |any, one| any | one)
}

fn checks(tracker: &Tracker, scope: &Scope) -> Vec<(String, Option<(u16, usize)>)> {
    let snapshot = tracker.snapshot(IpFamily::V4.localhost());
    let checks = HealthChecks::of(&snapshot, scope, NodePortMatch::All);
    assert_eq!(checks.all, *scope == Scope::Full);
    let state = |check: Option<HealthCheck>| check.map(|check| (check.port, check.local_endpoints));
    checks.services.into_iter().map(|(name, check)| (name.name.to_string(), state(check))).collect()
}

#[test]
fn addresses_of_this_node_that_are_ready_behind_any_port_count_once() {
    let mut tracker = Tracker::default();
    apply(&mut tracker, Kind::Service, service("web", 32001));
    apply(&mut tracker, Kind::Service, service("plain", 0));
    let here = [
        endpoint("10.0.0.1", objects::NODE, true),
        endpoint("10.0.0.2", objects::NODE, false),
        endpoint("10.0.0.3", "node-b", true),
    ];
    for service in ["web", "plain"] {
        apply(&mut tracker, Kind::EndpointSlice, slice(service, &format!("{service}-1"), "http", &here));
    }
    assert_eq!(checks(&tracker, &Scope::Full), [("web".to_owned(), Some((32001, 1)))]);
    // The same address and another one, behind a port that the Service does not have: they count all the same.
    tracker.take_scope();
    let more = [endpoint("10.0.0.1", objects::NODE, true), endpoint("10.0.0.4", objects::NODE, true)];
    assert!(
        apply(&mut tracker, Kind::EndpointSlice, slice("web", "web-2", "other", &more)),
        "it affects health checks"
    );
    let scope = tracker.take_scope();
    assert_eq!(checks(&tracker, &scope), [("web".to_owned(), Some((32001, 2)))]);
    assert!(
        !apply(&mut tracker, Kind::EndpointSlice, slice("plain", "plain-2", "other", &more)),
        "it has no health checks"
    );
}

#[test]
fn a_change_reports_only_its_own_service_including_its_deletion() {
    let mut tracker = Tracker::default();
    for name in ["a", "b"] {
        apply(&mut tracker, Kind::Service, service(name, 32001));
    }
    tracker.take_scope();
    apply(&mut tracker, Kind::Service, service("b", 32002));
    let scope = tracker.take_scope();
    assert_eq!(checks(&tracker, &scope), [("b".to_owned(), Some((32002, 0)))]);
    apply(&mut tracker, Kind::Service, service("b", 0));
    let scope = tracker.take_scope();
    assert_eq!(checks(&tracker, &scope), [("b".to_owned(), None)]);
    tracker.apply(Change::Service(NamespacedName::new("ns", "a"), Vec::new()));
    let scope = tracker.take_scope();
    assert_eq!(checks(&tracker, &scope), [("a".to_owned(), None)]);
    assert_eq!(checks(&tracker, &Scope::Full), []);
}

#[test]
fn pending_changes_are_counted_by_kind_until_synced() {
    let mut tracker = Tracker::default();
    apply(&mut tracker, Kind::Service, service("a", 0));
    apply(&mut tracker, Kind::Service, service("a", 0));
    apply(&mut tracker, Kind::Service, service("b", 0));
    apply(&mut tracker, Kind::EndpointSlice, slice("a", "a-1", "http", &[endpoint("10.0.0.1", "n", true)]));
    apply(&mut tracker, Kind::EndpointSlice, slice("a", "a-1", "http", &[endpoint("10.0.0.2", "n", true)]));
    apply(&mut tracker, Kind::EndpointSlice, slice("a", "a-1", "http", &[endpoint("10.0.0.2", "n", true)]));
    assert_eq!((tracker.waiting(Kind::Service), tracker.waiting(Kind::EndpointSlice)), (2, 2));
    tracker.take_scope();
    assert_eq!((tracker.waiting(Kind::Service), tracker.waiting(Kind::EndpointSlice)), (0, 0));
}

/// Fails the first time, then waits for the test each time.
#[derive(Debug)]
struct Gated {
    failed: bool,
}

impl Backend for Gated {
    fn sync(&mut self, _: &Snapshot<'_>, _: &Scope, _: Instant) -> Result<SyncStats, SyncError> {
        if std::mem::replace(&mut self.failed, true) { Ok(SyncStats::default()) } else { Err(SyncError("no".into())) }
    }

    fn check_drift(&mut self, _: Instant) -> Result<Option<String>, SyncError> {
        Ok(None)
    }

    fn cleanup(&mut self) -> Result<(), Vec<SyncError>> {
        unreachable!("not called")
    }
}

/// Of each sync: how many latencies, and the health checks.
type ReportedSync = (Vec<Duration>, Option<HealthChecks>);

struct Watcher(Sender<ReportedSync>);

impl Observer for Watcher {
    fn changed(&mut self, _: Kind, _: usize) {}
    fn queued(&mut self) {}
    fn synced(&mut self, report: &SyncReport<'_>) {
        let _ = self.0.send((report.latencies.clone(), report.health_checks.clone()));
    }
}

fn start() -> (mailbox::Sender, Receiver<ReportedSync>) {
    let mut config = objects::config();
    config.periods.sync = Duration::from_millis(20);
    config.node_port_addresses = NodePortAddresses::within(vec!["192.168.0.0/24".parse().expect("a network")]);
    let (changes, received) = mailbox();
    let (sender, reports) = channel();
    let proxier = Proxier::new(IpFamily::V4, config, Box::new(Gated { failed: false }), Box::new(Watcher(sender)));
    std::thread::spawn(move || proxier.run(&received));
    (changes, reports)
}

#[test]
fn a_failed_sync_loses_neither_latencies_nor_health_checks() {
    let (changes, reports) = start();
    let send = |kind, object| ours(kind, object).into_iter().for_each(|change| changes.send(change));
    Kind::ALL.into_iter().for_each(|kind| changes.send(Change::Listing(kind)));
    send(Kind::Node, objects::node(&["192.168.0.1".parse().expect("an address")]));
    send(Kind::Service, service("web", 32001));
    for (name, noted) in [("old", "2020-01-01T00:00:00Z"), ("new", "2999-01-01T00:00:00Z"), ("bad", "yesterday")] {
        let mut object = slice("web", name, "http", &[endpoint("10.0.0.1", objects::NODE, true)]);
        object["metadata"]["annotations"] =
            json!({"endpoints.kubernetes.io/last-change-trigger-time": noted, "another": "one"});
        send(Kind::EndpointSlice, object);
    }
    let now = jiff::Timestamp::now().to_string();
    let mut object = slice("web", "now", "http", &[endpoint("10.0.0.2", objects::NODE, true)]);
    object["metadata"]["annotations"] = json!({"endpoints.kubernetes.io/last-change-trigger-time": now});
    send(Kind::EndpointSlice, object);
    Kind::ALL.into_iter().for_each(|kind| changes.send(Change::Listed(kind)));

    let failed = reports.recv_timeout(REPORT_TIMEOUT).expect("a report");
    assert_eq!(failed, (Vec::new(), None));
    let (latencies, checks) = reports.recv_timeout(REPORT_TIMEOUT).expect("a report");
    // Neither what happened before the proxy began nor what is yet to come is a latency of ours.
    assert!(matches!(latencies[..], [one] if one < REPORT_TIMEOUT), "{latencies:?}");
    let checks = checks.expect("the sync succeeded");
    assert!(checks.all);
    let check = HealthCheck { port: 32001, local_endpoints: 2 };
    assert_eq!(checks.services, [(NamespacedName::new("ns", "web"), Some(check))].into());
    assert_eq!(checks.listen, NodePortMatch::Within(vec!["192.168.0.0/24".parse().expect("a network")]));
}
