//! When stale flows are looked for, and what becomes of failures: in the loop of a family, over a table that is a value.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use netfilter::IpFamily;
use netfilter::conntrack::UDP;
use netfilter::testing::{FakeConntrack, FakeHost};
use netfilter::{Flow, Tuple};
use proxier::backend::{Backend, SyncError, SyncStats};
use proxier::cleaner::{CleanupStats, FlowCleaner};
use proxier::mailbox::{self, mailbox};
use proxier::model::{NamespacedName, NodeInfo, NodePortAddresses, Scope, Snapshot};
use proxier::proxier::{Observer, Proxier, SyncReport};
use proxier::testing::objects;
use proxier::track::{Change, Kind, Translator};
use serde_json::{Value, json};

const EVENT_TIMEOUT: Duration = Duration::from_secs(10);
const LONG: Duration = Duration::from_secs(3600);

/// A backend whose first syncs fail, so many.
#[derive(Debug)]
struct Failing(usize);

impl Backend for Failing {
    fn sync(&mut self, _: &Snapshot<'_>, _: &Scope, _: Instant) -> Result<SyncStats, SyncError> {
        if self.0 == 0 {
            return Ok(SyncStats::default());
        }
        self.0 -= 1;
        Err(SyncError("not yet".to_owned()))
    }

    fn check_drift(&mut self, _: Instant) -> Result<Option<String>, SyncError> {
        Ok(None)
    }

    fn cleanup(&mut self) -> Result<(), Vec<SyncError>> {
        unreachable!("not called")
    }
}

/// What the loop has done.
#[derive(Debug, PartialEq, Eq)]
enum Event {
    Synced(bool),
    CleanupStats(usize),
}

struct Watcher(Sender<Event>);

impl Observer for Watcher {
    fn changed(&mut self, _: Kind, _: usize) {}
    fn queued(&mut self) {}
    fn synced(&mut self, report: &SyncReport<'_>) {
        // The test may have seen enough.
        let _ = self.0.send(Event::Synced(report.result.is_ok()));
    }
    fn cleaned(&mut self, cleaned: &CleanupStats) {
        let _ = self.0.send(Event::CleanupStats(cleaned.deleted));
    }
}

/// A proxier at work on Service `dns`, whose flows a test makes.
struct ActiveMode {
    changes: mailbox::Sender,
    events: Receiver<Event>,
    table: FakeConntrack,
    host: FakeHost,
    translator: Translator,
}

impl ActiveMode {
    /// The first `failures` syncs fail; they are retried after `period`.
    fn start(failures: usize, period: Duration) -> Self {
        Self::start_with_second_pass(failures, period, LONG)
    }

    /// As [`ActiveMode::start`], with the time from a pass to the second one.
    fn start_with_second_pass(failures: usize, period: Duration, second_after: Duration) -> Self {
        let mut config = objects::config();
        config.periods.sync = period;
        let (table, host) = (FakeConntrack::default(), FakeHost::default());
        host.set_addresses(["192.168.0.1".parse().expect("an address")]);
        let (changes, received) = mailbox();
        let (sender, events) = channel();
        let everywhere = NodePortAddresses::default();
        let cleaner = FlowCleaner::new(IpFamily::V4, everywhere, Box::new(table.clone()), Box::new(host.clone()));
        let cleaner = cleaner.with_second_pass_after(second_after);
        let proxier = Proxier::new(IpFamily::V4, config, Box::new(Failing(failures)), Box::new(Watcher(sender)));
        std::thread::spawn(move || proxier.with_cleaner(cleaner).run(&received));
        Self { changes, events, table, host, translator: Translator::new(objects::NODE, false) }
    }

    fn apply(&mut self, kind: Kind, object: Value) {
        for (family, change) in self.translator.applied(objects::decoded(kind, object)).expect("a good object").changes
        {
            if family == IpFamily::V4 {
                self.changes.send(change);
            }
        }
    }

    fn service(&mut self, protocol: &str, node_port: u16) {
        let mut service = objects::service("ns", "dns", "10.96.0.10".parse().expect("an address"));
        service["spec"]["type"] = json!("NodePort");
        service["spec"]["ports"][0]["protocol"] = json!(protocol);
        service["spec"]["ports"][0]["nodePort"] = json!(node_port);
        self.apply(Kind::Service, service);
    }

    fn endpoint(&mut self, protocol: &str, ip: &str) {
        let mut slice = objects::slice("ns", "dns", "dns-1", &[ip.parse().expect("an address")]);
        slice["ports"][0]["protocol"] = json!(protocol);
        self.apply(Kind::EndpointSlice, slice);
    }

    /// The first list: the Service with one endpoint, 10.0.0.5.
    fn list(&mut self, protocol: &str) {
        for kind in Kind::ALL {
            self.changes.send(Change::Listing(kind));
        }
        let node = NodeInfo { addresses: vec!["192.168.0.1".parse().expect("an address")], ..NodeInfo::default() };
        self.changes.send(Change::Node(node));
        self.service(protocol, 30_053);
        self.endpoint(protocol, "10.0.0.5");
        for kind in Kind::ALL {
            self.changes.send(Change::Listed(kind));
        }
    }

    fn flow(&self, to: &str, endpoint: &str) {
        let [client, to, endpoint] = ["10.0.0.1:40000", to, endpoint].map(|text| text.parse().expect("an address"));
        let original = Tuple { source: client, destination: to };
        self.table.add(Flow { protocol: UDP, original, reply: Tuple { source: endpoint, destination: client } });
    }

    #[track_caller]
    fn expect(&self, expected: &[Event]) {
        for event in expected {
            assert_eq!(self.events.recv_timeout(EVENT_TIMEOUT).as_ref(), Ok(event), "of {expected:?}");
        }
    }
}

use Event::{CleanupStats as Deleted, Synced};

#[test]
fn the_first_sync_and_each_change_of_udp_are_followed_by_one_pass() {
    let mut running = ActiveMode::start(0, LONG);
    running.flow("10.96.0.10:80", "10.0.0.4:8080");
    running.flow("10.96.0.10:80", "10.0.0.5:8080");
    running.list("UDP");
    running.expect(&[Synced(true), Deleted(1)]);
    running.endpoint("UDP", "10.0.0.6");
    running.expect(&[Synced(true), Deleted(1)]);
    assert_eq!((running.table.passes(), running.table.flows()), (2, vec![]));
    // Only the Service changes: its node port.
    running.flow("192.168.0.1:30053", "10.0.0.6:8080");
    running.flow("10.96.0.10:80", "10.0.0.6:8080");
    running.service("UDP", 30_054);
    running.expect(&[Synced(true), Deleted(1)]);
    running.changes.send(Change::Service(NamespacedName::new("ns", "dns"), Vec::new()));
    running.expect(&[Synced(true), Deleted(1)]);
}

#[test]
fn flow_that_the_old_rules_made_during_a_pass_goes_with_the_second_pass_and_no_other() {
    let mut running = ActiveMode::start_with_second_pass(0, LONG, Duration::from_millis(300));
    running.list("UDP");
    running.expect(&[Synced(true), Deleted(0)]);
    running.endpoint("UDP", "10.0.0.6");
    running.expect(&[Synced(true), Deleted(0)]);
    running.flow("10.96.0.10:80", "10.0.0.5:8080");
    running.flow("10.96.0.10:80", "10.0.0.6:8080");
    running.expect(&[Deleted(1)]);
    let passes = running.table.passes();
    running.flow("10.96.0.10:80", "10.0.0.5:8080");
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!((running.table.passes(), running.table.flows().len()), (passes, 2), "no pass is planned any more");
}

#[test]
fn when_the_last_endpoint_goes_its_flows_go_with_it() {
    let mut running = ActiveMode::start(0, LONG);
    running.list("UDP");
    running.expect(&[Synced(true), Deleted(0)]);
    running.flow("10.96.0.10:80", "10.0.0.5:8080");
    running.flow("192.168.0.1:30053", "10.0.0.5:8080");
    running.changes.send(Change::Slice(NamespacedName::new("ns", "dns-1"), None));
    running.expect(&[Synced(true), Deleted(2)]);
}

#[test]
fn without_udp_the_table_is_left_alone() {
    let mut running = ActiveMode::start(0, LONG);
    running.list("TCP");
    running.expect(&[Synced(true)]);
    running.endpoint("TCP", "10.0.0.6");
    running.expect(&[Synced(true)]);
    running.endpoint("TCP", "10.0.0.7");
    running.expect(&[Synced(true)]);
    assert_eq!(running.table.passes(), 0);
}

#[test]
fn a_pass_when_syncs_fail_follows_the_first_success() {
    let mut running = ActiveMode::start(2, Duration::from_millis(20));
    running.flow("10.96.0.10:80", "10.0.0.4:8080");
    running.list("UDP");
    running.expect(&[Synced(false), Synced(false), Synced(true), Deleted(1)]);
}

#[test]
fn a_pass_that_fails_is_repeated_without_another_sync() {
    let mut running = ActiveMode::start(0, Duration::from_millis(20));
    running.list("UDP");
    running.expect(&[Synced(true), Deleted(0)]);
    for fail in [FakeConntrack::set_unreadable, FakeConntrack::refuse_deletes] {
        fail(&running.table, true);
        running.flow("192.168.0.1:30053", "10.0.0.5:8080");
        running.service("UDP", 30_054);
        running.expect(&[Synced(true)]);
        let before = running.table.passes();
        while running.table.passes() < before + 2 {
            std::thread::yield_now();
        }
        fail(&running.table, false);
        // Passes that could list, but not delete, count.
        let last = running.events.iter().find(|event| *event != Deleted(0));
        assert_eq!(last, Some(Deleted(1)));
        running.service("UDP", 30_053);
        running.expect(&[Synced(true), Deleted(0)]);
    }
    let passes = running.table.passes();
    running.service("UDP", 30_054);
    running.expect(&[Synced(true), Deleted(0)]);
    assert_eq!(running.table.passes(), passes + 1, "nothing is owed any more");
}

#[test]
fn flows_at_an_address_that_the_node_gave_up_go_though_no_service_changed() {
    let addresses = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("an address")).collect::<Vec<_>>();
    let mut running = ActiveMode::start(0, Duration::from_millis(20));
    running.host.set_addresses(addresses(&["192.168.0.1", "192.168.0.2"]));
    running.list("UDP");
    running.expect(&[Synced(true), Deleted(0)]);
    for (to, endpoint) in [
        ("192.168.0.1:30053", "10.0.0.5:8080"),
        ("192.168.0.2:30053", "10.0.0.5:8080"),
        ("192.168.0.2:30099", "10.0.0.5:8080"),
        // Another node's, and what nothing redirects.
        ("192.168.0.3:30053", "10.0.0.5:8080"),
        ("192.168.0.2:30053", "192.168.0.2:30053"),
    ] {
        running.flow(to, endpoint);
    }
    running.host.set_addresses(addresses(&["192.168.0.1"]));
    // The rules may lead there until a sync.
    running.expect(&[Synced(true), Deleted(1)]);
    assert_eq!(running.table.flows().len(), 4);
    let passes = running.table.passes();
    // Once is enough.
    running.service("UDP", 30_054);
    running.expect(&[Synced(true), Deleted(1)]);
    assert_eq!(running.table.passes(), passes + 1);
}
