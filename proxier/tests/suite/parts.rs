//! Changes that are cut into several transactions, and refusals: what the first version of this got wrong.

use std::time::Instant;

use netfilter::IpFamily;
use netfilter::iptables::Table;
use netfilter::testing::{FakeHost, FakeIptables};
use proxier::backend::{Backend, SyncError, SyncStats};
use proxier::iptables::Iptables;
use proxier::model::Scope;
use proxier::testing::objects;
use proxier::track::{Change, Kind, Tracker, Translator};
use serde_json::{Value, json};

struct Node {
    kernel: FakeIptables,
    backend: Iptables,
    tracker: Tracker,
    translator: Translator,
}

impl Node {
    fn on(kernel: &FakeIptables) -> Self {
        let (tool, host) = (Box::new(kernel.clone()), Box::new(FakeHost::default()));
        let backend = Iptables::new(IpFamily::V4, objects::config(), tool, host);
        let translator = Translator::new(objects::NODE, false);
        Self { kernel: kernel.clone(), backend, tracker: Tracker::default(), translator }
    }

    fn apply(&mut self, kind: Kind, object: Value) {
        let translated = self.translator.applied(objects::decoded(kind, object)).expect("a good object");
        for (_, change) in translated.changes.into_iter().filter(|(family, _)| *family == IpFamily::V4) {
            self.tracker.apply(change);
        }
    }

    /// Services of five endpoints each; the ones in `sticky` have ClientIP affinity.
    fn services(&mut self, numbers: std::ops::Range<u32>, sticky: std::ops::Range<u32>) {
        for number in numbers {
            let name = format!("svc-{number}");
            let mut service = objects::service("ns", &name, objects::address(number));
            if sticky.contains(&number) {
                service["spec"]["sessionAffinity"] = json!("ClientIP");
            }
            self.apply(Kind::Service, service);
            let endpoints: Vec<_> = (0..5).map(|n| objects::address(10_000 + 5 * number + n)).collect();
            self.apply(Kind::EndpointSlice, objects::slice("ns", &name, &name, &endpoints));
        }
    }

    fn sync(&mut self, scope: Option<Scope>) -> SyncStats {
        self.try_sync(scope).expect("a sync")
    }

    fn try_sync(&mut self, scope: Option<Scope>) -> Result<SyncStats, SyncError> {
        let scope = scope.unwrap_or_else(|| self.tracker.take_scope());
        let snapshot = self.tracker.snapshot(IpFamily::V4.localhost());
        self.backend.sync(&snapshot, &scope, Instant::now())
    }

    fn service_chains(&self) -> usize {
        self.kernel.chains(Table::Nat).keys().filter(|name| name.starts_with("KUBE-S") && name.len() > 20).count()
    }
}

#[test]
fn chains_are_deleted_in_parts_none_before_those_that_jump_to_it() {
    for batch in [3, 7, 11] {
        let kernel = FakeIptables::default();
        kernel.set_batch(batch);
        let mut node = Node::on(&kernel);
        node.services(0..20, 0..0);
        node.sync(Some(Scope::Full));
        assert_eq!(node.service_chains(), 20 * 6);
        node.tracker.take_scope();

        // Some go while we run, the others while we do not.
        node.tracker.apply(Change::Listing(Kind::Service));
        node.services(0..10, 0..0);
        node.tracker.apply(Change::Listed(Kind::Service));
        node.sync(None);
        assert_eq!(node.service_chains(), 10 * 6, "batches of {batch}");
        Node::on(&kernel).sync(Some(Scope::Full));
        assert_eq!(kernel.chains(Table::Nat).keys().filter(|name| name.starts_with("KUBE-SEP")).count(), 0);
    }
}

#[test]
fn however_many_are_refused_the_others_are_programmed() {
    for naming_the_line in [false, true] {
        let kernel = FakeIptables::default();
        kernel.refuse(Some("-m recent"), naming_the_line);
        let mut node = Node::on(&kernel);
        node.services(0..160, 0..130);
        let stats = node.sync(Some(Scope::Full));
        assert_eq!((stats.rejected.len(), node.service_chains()), (130, 30 * 6), "{naming_the_line}");
    }
}

/// A held lock, memory that is missing for a moment: upstream keeps its rules and tries again.
#[test]
fn a_tool_that_fails_for_a_moment_costs_no_service_its_rules() {
    for (failures, refused) in [(5, false), (50, false), (4, true)] {
        let kernel = FakeIptables::default();
        let mut node = Node::on(&kernel);
        node.services(0..8, 0..0);
        node.sync(Some(Scope::Full));
        node.tracker.take_scope();
        kernel.fail(failures, ":KUBE-SVC", refused);
        let endpoints = [objects::address(20_000)];
        node.apply(Kind::EndpointSlice, objects::slice("ns", "svc-1", "svc-1", &endpoints));
        let error = node.try_sync(None).expect_err("the tool fails");
        assert!(error.to_string().contains("failed by the test"), "{error}");
        let chains = kernel.chains(Table::Nat);
        let services = chains.iter().filter(|(name, rules)| name.starts_with("KUBE-SVC") && !rules.is_empty());
        assert_eq!(services.count(), 8, "{failures}, {refused}");
        kernel.fail(0, "", false);
        let stats = node.sync(Some(Scope::Full));
        assert_eq!((stats.rejected.len(), node.service_chains()), (0, 7 * 6 + 2));
    }
}

#[test]
fn change_that_fails_after_a_flush_is_followed_by_a_full_sync() {
    let kernel = FakeIptables::default();
    let mut node = Node::on(&kernel);
    node.services(0..5, 0..0);
    node.sync(Some(Scope::Full));
    node.tracker.take_scope();
    let before = kernel.to_string();
    kernel.flush(Table::Nat);
    node.services(4..5, 4..5);
    assert!(node.sync(None).full);
    node.services(4..5, 0..0);
    node.sync(None);
    assert_eq!(kernel.to_string(), before);
}

#[test]
fn hundreds_of_refused_service_ports_among_thousands_cost_few_tool_runs_now_and_later() {
    for naming_the_line in [false, true] {
        let kernel = FakeIptables::default();
        kernel.refuse(Some("-m recent"), naming_the_line);
        let mut node = Node::on(&kernel);
        node.services(0..1000, 100..300);
        let stats = node.sync(Some(Scope::Full));
        assert_eq!((stats.rejected.len(), node.service_chains()), (200, 800 * 6), "{naming_the_line}");
        let first = kernel.restores();
        assert!(first < 20, "{first} tool runs");
        // They are tried again, and nothing is looked for anew.
        node.tracker.take_scope();
        node.tracker.request_sync_of(stats.rejected.into_iter().map(|rejected| rejected.port));
        let stats = node.sync(None);
        assert_eq!((stats.rejected.len(), stats.full, node.service_chains()), (200, false, 800 * 6));
        assert!(kernel.restores() - first < 8, "{} more", kernel.restores() - first);
        // Once the tool takes them, they are programmed.
        kernel.refuse(None, false);
        node.tracker.request_sync_of(stats.rejected.into_iter().map(|rejected| rejected.port));
        assert_eq!((node.sync(None).rejected.len(), node.service_chains()), (0, 1000 * 6));
    }
}

#[test]
fn refused_values_reject_only_the_affected_service_ports() {
    for naming_the_line in [false, true] {
        let kernel = FakeIptables::default();
        // Services 70 to 79.
        kernel.refuse(Some("ns/svc-7"), naming_the_line);
        let mut node = Node::on(&kernel);
        node.services(10..100, 0..0);
        let stats = node.sync(Some(Scope::Full));
        assert_eq!((stats.rejected.len(), node.service_chains()), (10, 80 * 6), "{naming_the_line}");
    }
}
