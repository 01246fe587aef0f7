//! Facts of the host that cannot be read keep their last known value, in iptables and nftables mode and in the loop.

use std::io::ErrorKind;
use std::net::IpAddr;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use netfilter::IpFamily;
use netfilter::iptables::Table;
use netfilter::kernel::Host;
use netfilter::testing::{FakeAddressWatch, FakeHost, FakeIptables, FakeNftables};
use proxier::backend::{Backend, SyncError, SyncStats};
use proxier::iptables::Iptables;
use proxier::mailbox::{self, mailbox};
use proxier::model::{Config, NodeInfo, NodePortAddresses, Scope, Snapshot};
use proxier::nftables::Nftables;
use proxier::proxier::{Observer, Proxier, SyncReport};
use proxier::testing::objects;
use proxier::track::{Change, Kind, Tracker};

const LIBERAL: &str = "net/netfilter/nf_conntrack_tcp_be_liberal";

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn config() -> Config {
    let networks = vec!["192.0.2.0/24".parse().expect("a network")];
    Config { node_port_addresses: NodePortAddresses::within(networks), ..objects::config() }
}

/// A mode on a fake kernel, whose node has the address 192.0.2.10.
struct World {
    mode: Box<dyn Backend>,
    host: FakeHost,
    tracker: Tracker,
    text: Box<dyn Fn() -> String>,
}

impl World {
    fn iptables(host: FakeHost) -> Self {
        let fake = FakeIptables::default();
        let mode = Iptables::new(IpFamily::V4, config(), Box::new(fake.clone()), Box::new(host.clone()));
        Self::of(Box::new(mode), host, move || fake.save_text(Table::Nat) + &fake.save_text(Table::Filter))
    }

    fn nftables(host: FakeHost) -> Self {
        let fake = FakeNftables::default();
        let mode = Nftables::new(IpFamily::V4, config(), Box::new(fake.clone()), Box::new(host.clone()));
        Self::of(Box::new(mode), host, move || fake.text())
    }

    fn both() -> [Self; 2] {
        let host = || {
            let host = FakeHost::default();
            host.set_addresses([ip("127.0.0.1"), ip("192.0.2.10")]);
            host
        };
        [Self::iptables(host()), Self::nftables(host())]
    }

    fn of(mode: Box<dyn Backend>, host: FakeHost, text: impl Fn() -> String + 'static) -> Self {
        let mut tracker = Tracker::default();
        let addresses = vec![ip("192.0.2.10")];
        tracker.apply(Change::Node(NodeInfo { addresses, ..NodeInfo::default() }));
        Self { mode, host, tracker, text: Box::new(text) }
    }

    /// A sync of everything; the addresses of node ports then.
    fn sync(&mut self) -> Vec<String> {
        self.mode.sync(&self.tracker.snapshot(ip("192.0.2.10")), &Scope::Full, Instant::now()).expect("a sync");
        let text = (self.text)();
        ["192.0.2.10", "192.0.2.99"].into_iter().filter(|ip| text.contains(ip)).map(str::to_owned).collect()
    }

    fn host_changed(&mut self) -> bool {
        self.mode.host_changed(&self.tracker.snapshot(ip("192.0.2.10")))
    }
}

#[test]
fn addresses_that_cannot_be_read_are_the_last_known_ones() {
    for mut world in World::both() {
        world.host.set_addresses([ip("192.0.2.10"), ip("192.0.2.99")]);
        assert_eq!(world.sync(), ["192.0.2.10", "192.0.2.99"]);
        world.host.refuse_addresses(Some(ErrorKind::OutOfMemory));
        assert!(!world.host_changed());
        assert_eq!(world.sync(), ["192.0.2.10", "192.0.2.99"]);
        world.host.set_addresses([ip("192.0.2.10")]);
        assert!(!world.host_changed(), "it still cannot be read");
        world.host.refuse_addresses(None);
        assert!(world.host_changed(), "now it can");
        assert_eq!(world.sync(), ["192.0.2.10"]);
        assert!(!world.host_changed());
    }
}

#[test]
fn addresses_that_could_never_be_read_are_those_of_the_node_object() {
    for mut world in World::both() {
        world.host.set_addresses([ip("192.0.2.10"), ip("192.0.2.99")]);
        world.host.refuse_addresses(Some(ErrorKind::OutOfMemory));
        assert_eq!(world.sync(), ["192.0.2.10"]);
        world.host.refuse_addresses(None);
        assert!(world.host_changed());
        assert_eq!(world.sync(), ["192.0.2.10", "192.0.2.99"]);
    }
}

#[test]
fn addresses_in_another_order_change_nothing() {
    for mut world in World::both() {
        world.host.set_addresses([ip("192.0.2.10"), ip("192.0.2.99")]);
        world.sync();
        world.host.set_addresses([ip("192.0.2.99"), ip("192.0.2.10")]);
        assert!(!world.host_changed());
    }
}

#[test]
fn a_sysctl_that_could_not_be_read_is_read_again() {
    let mut host = FakeHost::default();
    host.set_sysctl(LIBERAL, 1).expect("it can be set");
    host.hide(LIBERAL);
    let mut world = World::iptables(host.clone());
    world.sync();
    assert!((world.text)().contains("INVALID"));
    host.show(LIBERAL);
    assert!(world.host_changed());
    world.sync();
    assert!(!(world.text)().contains("INVALID"), "{}", (world.text)());
    // kube-proxy does not follow it either.
    host.set_sysctl(LIBERAL, 0).expect("it can be set");
    assert!(!world.host_changed());
}

#[test]
fn counters_that_cannot_be_verified_are_assumed_to_exist() {
    let host = FakeHost::default();
    host.allow_counters();
    let mut world = World::iptables(host.clone());
    world.sync();
    let with = (world.text)();
    assert!(with.contains("nfacct"), "{with}");
    host.refuse_counters();
    world.sync();
    assert_eq!((world.text)(), with);
}

/// A backend whose node facts differ at each read.
#[derive(Debug)]
struct Restless;

impl Backend for Restless {
    fn sync(&mut self, _: &Snapshot<'_>, _: &Scope, _: Instant) -> Result<SyncStats, SyncError> {
        Ok(SyncStats::default())
    }

    fn check_drift(&mut self, _: Instant) -> Result<Option<String>, SyncError> {
        Ok(None)
    }

    fn host_changed(&mut self, _: &Snapshot<'_>) -> bool {
        true
    }

    fn cleanup(&mut self) -> Result<(), Vec<SyncError>> {
        Ok(())
    }
}

struct Watcher(Sender<bool>);

impl Observer for Watcher {
    fn changed(&mut self, _: Kind, _: usize) {}
    fn queued(&mut self) {}
    fn synced(&mut self, report: &SyncReport<'_>) {
        // The test may have seen enough.
        let _ = self.0.send(report.full);
    }
}

/// A proxier that only news about addresses keep busy.
fn running() -> (FakeAddressWatch, Receiver<bool>, mailbox::Sender) {
    let mut config = config();
    config.periods.sync = Duration::from_hours(1);
    let ((changes, received), (reports, synced), watch) = (mailbox(), channel(), FakeAddressWatch::default());
    let proxier = Proxier::new(IpFamily::V4, config, Box::new(Restless), Box::new(Watcher(reports)))
        .with_address_watch(Box::new(watch.clone()));
    std::thread::spawn(move || proxier.run(&received));
    let node = NodeInfo { addresses: vec![ip("192.0.2.10")], ..NodeInfo::default() };
    let listed = Kind::ALL.map(Change::Listed);
    for change in [Change::Node(node)].into_iter().chain(listed) {
        changes.send(change);
    }
    assert_eq!(synced.recv_timeout(Duration::from_secs(10)), Ok(true), "the first sync");
    (watch, synced, changes)
}

#[test]
fn an_address_that_comes_is_synced_within_a_second() {
    let (watch, synced, _changes) = running();
    for _ in 0..3 {
        watch.change();
        // A busy machine may be late.
        assert_eq!(synced.recv_timeout(Duration::from_secs(5)), Ok(true));
    }
    assert!(synced.recv_timeout(Duration::from_millis(600)).is_err(), "no news, no sync");
}

#[test]
fn a_storm_of_addresses_costs_few_syncs() {
    let (watch, synced, _changes) = running();
    let start = Instant::now();
    for _ in 0..1000 {
        watch.change();
        std::thread::sleep(Duration::from_millis(1));
    }
    let most = start.elapsed().as_millis() / 250 + 1;
    let syncs = synced.try_iter().count();
    assert!(u128::try_from(syncs).is_ok_and(|syncs| syncs >= 1 && syncs <= most), "{syncs} syncs, at most {most}");
}
