//! Hundreds of refused Service ports among thousands, with the real tools and the real kernel.
//!
//! Needs root and both flavours of iptables. Prints what each sync took: the search is bounded by time, not by the test.

use std::time::Instant;

use netfilter::IpFamily;
use netfilter::testing::FakeHost;
use proxier::backend::{Backend, SyncStats};
use proxier::iptables::Iptables;
use proxier::model::Scope;
use proxier::testing::objects;
use proxier::track::{Kind, Tracker, Translator};
use serde_json::{Value, json};

use crate::common::real::{FLAVOURS, Real};

const SERVICES: u32 = 5000;
const REFUSED: u32 = 500;

struct Node {
    real: Real,
    backend: Iptables,
    tracker: Tracker,
    translator: Translator,
}

impl Node {
    fn new(flavour: usize) -> Self {
        let real = Real::new(FLAVOURS[flavour]);
        let backend = Iptables::new(IpFamily::V4, objects::config(), real.tools(), Box::new(FakeHost::default()));
        Self { real, backend, tracker: Tracker::default(), translator: Translator::new(objects::NODE, false) }
    }

    fn apply(&mut self, kind: Kind, object: Value) {
        let translated = self.translator.applied(objects::decoded(kind, object)).expect("a good object");
        for (_, change) in translated.changes.into_iter().filter(|(family, _)| *family == IpFamily::V4) {
            self.tracker.apply(change);
        }
    }

    /// A Service with one endpoint; an affinity timeout of 0 s is what both flavours' iptables-restore refuses.
    fn service(&mut self, number: u32, refused: bool, endpoint: u32) {
        let name = format!("svc-{number}");
        let mut service = objects::service("ns", &name, objects::address(number));
        service["spec"]["sessionAffinity"] = json!("ClientIP");
        let timeout = if refused { 0 } else { 10800 };
        service["spec"]["sessionAffinityConfig"] = json!({ "clientIP": { "timeoutSeconds": timeout } });
        self.apply(Kind::Service, service);
        let endpoints = [objects::address(20_000 + endpoint)];
        self.apply(Kind::EndpointSlice, objects::slice("ns", &name, &name, &endpoints));
    }

    fn sync(&mut self, scope: Option<Scope>) -> SyncStats {
        let scope = scope.unwrap_or_else(|| self.tracker.take_scope());
        let snapshot = self.tracker.snapshot(IpFamily::V4.localhost());
        let start = Instant::now();
        let stats = self.backend.sync(&snapshot, &scope, Instant::now()).expect("a sync");
        println!("{:?}: {} refused, {:?}", self.real.flavour, stats.rejected.len(), start.elapsed());
        stats
    }

    /// Chains of Services in the kernel: one for each that is programmed.
    fn programmed(&self) -> usize {
        self.real.saved().lines().filter(|line| line.starts_with(":KUBE-SVC-")).count()
    }
}

fn refused_alone(flavour: usize) {
    let mut node = Node::new(flavour);
    // Every tenth, so that each transaction has some.
    let refused = |number: u32| number.is_multiple_of(SERVICES / REFUSED);
    (0..SERVICES).for_each(|number| node.service(number, refused(number), number));
    let stats = node.sync(Some(Scope::Full));
    assert_eq!((stats.rejected.len(), node.programmed()), (500, 4500));
    assert!(stats.rejected.iter().all(|rejected| rejected.reason.contains("seconds")), "{:?}", stats.rejected[0]);
    node.tracker.take_scope();

    // A change of another Service is programmed beside them.
    node.service(1, false, 50_001);
    node.sync(None);
    assert!(node.real.saved().contains(&objects::address(70_001).to_string()), "the new endpoint is in the kernel");

    // Corrected, they are programmed.
    (0..SERVICES).filter(|number| refused(*number)).for_each(|number| node.service(number, false, number));
    assert_eq!((node.sync(None).rejected.len(), node.programmed()), (0, 5000));
}

#[test]
fn five_hundred_of_five_thousand_are_refused_alone_in_nf_tables() {
    refused_alone(0);
}

#[test]
fn five_hundred_of_five_thousand_are_refused_alone_in_legacy_tables() {
    refused_alone(1);
}

#[test]
fn five_hundred_of_five_thousand_are_refused_alone_without_the_programs() {
    refused_alone(2);
}
