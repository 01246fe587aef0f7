//! Full reads are skipped while the nf_tables generation ID shows no foreign change.

use std::time::{Duration, Instant};

use netfilter::IpFamily;
use netfilter::iptables::Table;
use netfilter::testing::{FakeHost, FakeIptables};
use proxier::backend::Backend;
use proxier::iptables::Iptables;
use proxier::testing::objects;
use proxier::track::{Kind, Tracker, Translator};
use serde_json::Value;

struct World {
    fake: FakeIptables,
    mode: Iptables,
    tracker: Tracker,
    now: Instant,
}

impl World {
    fn new() -> Self {
        let fake = FakeIptables::default();
        let mode =
            Iptables::new(IpFamily::V4, objects::config(), Box::new(fake.clone()), Box::new(FakeHost::default()));
        let mut world = Self { fake, mode, tracker: Tracker::default(), now: Instant::now() };
        world.take(Kind::Service, objects::service("default", "web", objects::address(1000)));
        world.move_endpoint(1);
        world.tracker.request_full_sync();
        world
    }

    fn take(&mut self, kind: Kind, object: Value) {
        let mut translator = Translator::new(objects::NODE, false);
        for (family, change) in translator.applied(objects::decoded(kind, object)).expect("a valid object").changes {
            if family == IpFamily::V4 {
                self.tracker.apply(change);
            }
        }
    }

    fn move_endpoint(&mut self, to: u32) {
        self.take(Kind::EndpointSlice, objects::slice("default", "web", "web-1", &[objects::address(to)]));
    }

    fn sync(&mut self) {
        let scope = self.tracker.take_scope();
        self.mode.sync(&self.tracker.snapshot(objects::address(1)), &scope, self.now).expect("a sync");
    }

    /// Checks, so much later that everything may be read; what it finds, and how many tables it read.
    fn check(&mut self) -> (Option<String>, usize) {
        self.now += Duration::from_hours(2);
        let before = self.fake.saves();
        let damage = self.mode.check_drift(self.now).expect("a check");
        (damage, self.fake.saves() - before)
    }
}

const TABLES: usize = Table::ALL.len();
const STRANGE: &str = "*nat\n:SOMEBODYS - [0:0]\nCOMMIT\n";

#[test]
fn unchanged_rules_are_not_read() {
    let mut world = World::new();
    world.sync();
    assert_eq!(world.check(), (None, 0), "after a sync of everything");
    world.move_endpoint(2);
    world.sync();
    assert_eq!(world.check(), (None, 0), "after a sync of what changed");
    world.fake.apply(STRANGE).expect("valid");
    assert_eq!(world.check(), (None, TABLES), "a foreign change without drift");
    assert_eq!(world.check(), (None, 0), "and that is known then");
    // Not noticed by a check first: our own write must not hide it.
    world.fake.apply(STRANGE).expect("valid");
    world.move_endpoint(3);
    world.sync();
    assert_eq!(world.check(), (None, TABLES), "a foreign change before our write");
    world.fake.be_legacy();
    assert_eq!(world.check(), (None, TABLES), "nothing tells of changes");
    assert_eq!(world.check(), (None, TABLES), "nor does it ever");
}

#[test]
fn drift_is_detected_whatever_caused_it() {
    for written_since in [false, true] {
        let mut world = World::new();
        world.sync();
        let chains = world.fake.chains(Table::Nat);
        let own = chains.keys().find(|chain| chain.starts_with("KUBE-SVC-")).expect("a chain");
        world.fake.apply(&format!("*nat\n:{own} - [0:0]\nCOMMIT\n")).expect("valid");
        if written_since {
            world.take(Kind::Service, objects::service("default", "other", objects::address(1001)));
            world.sync();
        }
        let (damage, _) = world.check();
        assert!(damage.is_some_and(|damage| damage.contains(own.as_str())), "{written_since}");
        world.tracker.request_full_sync();
        world.sync();
        assert_eq!(world.check(), (None, 0), "mended");
    }
}

#[test]
fn a_refused_write_leaves_nothing_known() {
    let mut world = World::new();
    world.sync();
    world.fake.refuse(Some("COMMIT"), true);
    world.move_endpoint(9);
    let scope = world.tracker.take_scope();
    let snapshot = world.tracker.snapshot(objects::address(1));
    assert!(world.mode.sync(&snapshot, &scope, world.now).is_err(), "nothing is taken");
    world.fake.refuse(None, false);
    assert_eq!(world.check().1, TABLES);
}
