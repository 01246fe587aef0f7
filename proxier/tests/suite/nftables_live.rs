//! nftables mode in the real kernel: any history ends in the state of a fresh start.
//!
//! A restart writes nothing, drift is repaired, and a refused Service port does not affect others. Compares what nft
//! lists. Needs root and nft, which only reads here.

use std::cell::Cell;
use std::process::Command;
use std::time::{Duration, Instant};

use netfilter::IpFamily;
use netfilter::kernel::{Host, IptablesTool};
use netfilter::testing::{FakeHost, FakeIptables};
use proptest::test_runner::{Config, TestRunner};
use proxier::backend::{Backend, SyncStats};
use proxier::model::Scope;
use proxier::nftables::{self, Nftables};
use proxier::testing::objects::{self, config};
use proxier::track::{Kind, Tracker, Translator};
use serde_json::{Value, json};

use crate::common::cluster;
use crate::common::cluster::Operation;
use crate::common::run::{Kernel, Run};
use crate::nftables_engine::kernel::Real;
use crate::nftables_mode::meaning;
use crate::nftables_mode::meaning::meaning;

impl Kernel for Real {
    fn tool(&self) -> Box<dyn IptablesTool> {
        Box::new(FakeIptables::default())
    }

    fn host(&self) -> Box<dyn Host> {
        Box::new(FakeHost::default())
    }

    fn mode(&self, _: Box<dyn IptablesTool>) -> Box<dyn Backend> {
        Box::new(Nftables::new(IpFamily::V4, config(), self.engine(), self.host()).lookup_threshold(6))
    }

    fn fresh(&self) -> Self {
        Self::new()
    }

    /// By hand: empties a chain or a map, adds an element or a rule, or deletes the table.
    fn damage(&self, nth: usize) -> bool {
        let table = "ip kube-proxy";
        let damage = [
            format!("flush chain {table} services"),
            format!("flush map {table} service-ips"),
            format!("flush map {table} endpoints"),
            format!("add element {table} service-nodeports {{ tcp . 12345 : drop }}"),
            format!("insert rule {table} services drop"),
            format!("add rule {table} masquerading counter"),
            format!("add chain {table} mine"),
            format!("add set {table} mine {{ type ipv4_addr; }}"),
            format!("delete table {table}"),
        ];
        let damage = &damage[nth % damage.len()];
        // Emptying what is empty is no damage.
        if let Some(map) = damage.strip_prefix("flush map ")
            && !self.nft(&format!("list map {map}")).contains("elements")
        {
            return false;
        }
        self.nft(damage);
        true
    }

    fn refuse(&self, _: Option<&str>, _: bool) {
        // The kernel does not take orders.
    }

    fn text(&self) -> String {
        self.nft("list ruleset")
    }
}

#[test]
fn partial_syncs_equal_full_ones_and_drift_is_repaired() {
    let cases =
        std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).map_or(12, |n: u32| n.div_ceil(25));
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 50, ..Config::default() };
    let sequences = (cluster::operations(30, false), proptest::prelude::any::<usize>());
    let endpoints = Cell::new(0);
    let result = TestRunner::new(config).run(&sequences, |(operations, nth)| {
        let mut run = Run::new(Real::new());
        for operation in operations {
            run.apply(operation);
        }
        run.sync();
        run.apply(Operation::Damage(nth));
        let mut fresh = run.afresh();
        fresh.sync();
        let (incremental, fresh) = (run.kernel.text(), fresh.kernel.text());
        endpoints.set(endpoints.get() + fresh.matches(" . 808").count());
        meaning::compare(&incremental, &fresh, "in the end");
        // A new process finds nothing to do.
        let before = run.kernel.engine().generation().expect("a number");
        let written = run.apply(Operation::Restart).expect("it looks at everything");
        assert!(written.scope.is_none() && written.transactions.is_empty(), "{written:?}");
        let after = run.kernel.engine().generation().expect("a number");
        assert_eq!(before, after, "a restart changed something");
        assert_eq!(meaning(&run.kernel.text()), meaning(&incremental));
        Ok(())
    });
    result.unwrap_or_else(|failure| panic!("{failure}"));
    assert!(endpoints.get() > 0, "no sequence ended with endpoints");
}

#[test]
fn complete_kernel_passes_the_feature_check_unchanged() {
    for family in IpFamily::ALL {
        let real = Real::new();
        nftables::check(real.engine().as_mut(), family).expect("this kernel has everything");
        assert_eq!(real.nft("list ruleset"), "");
    }
}

#[test]
fn table_of_upstream_is_replaced_in_one_batch() {
    let cases = concat!(env!("CARGO_MANIFEST_DIR"), "/../golden/cases");
    let recorded = format!("{cases}/220-lb-etp-local/expected/nftables/00.nft");
    let recorded = std::fs::read_to_string(recorded).expect("a recording");
    let (recorded, _) = recorded.split_once("table ip6").expect("both families");
    let mut run = Run::new(Real::new());
    run.kernel.nft_reads(recorded);
    let before = run.kernel.engine().generation().expect("a number");
    run.sync();
    assert_eq!(run.kernel.engine().generation().expect("a number"), before + 1, "it was one batch");
    let mut fresh = run.afresh();
    fresh.sync();
    meaning::compare(&run.kernel.text(), &fresh.kernel.text(), "taken over");
}

/// Objects under names of ours that the kernel cannot change into ours, and what makes a table another's.
const CONFLICTS: [&str; 16] = [
    // Our own layout until `firewall-ips` became a map.
    "add set ip kube-proxy firewall-ips { type ipv4_addr . inet_proto . inet_service; }",
    "add set ip kube-proxy service-ips { type ipv4_addr; }",
    "add map ip kube-proxy cluster-ips { type ipv4_addr : verdict; }",
    "add map ip kube-proxy service-ips { type ipv4_addr . inet_service : verdict; }",
    "add map ip kube-proxy endpoints { type ipv4_addr : ipv4_addr; }",
    "add set ip kube-proxy cluster-ips { type ipv4_addr; flags interval; }",
    "add set ip kube-proxy hairpin-connections { type ipv4_addr; flags timeout; timeout 10s; }",
    "add set ip kube-proxy nodeport-ips { type ipv4_addr; size 1; }",
    "add chain ip kube-proxy filter-input { type filter hook input priority -110; }",
    "add chain ip kube-proxy filter-forward { type filter hook input priority 0; policy drop; }",
    "add chain ip kube-proxy nat-prerouting",
    "add chain ip kube-proxy services { type filter hook prerouting priority 0; policy drop; }",
    "add chain ip kube-proxy endpoints-4 { type filter hook input priority 0; }",
    "add chain ip kube-proxy filter-prerouting { type filter hook prerouting priority -110; policy drop; }",
    "add counter ip kube-proxy localhost-nodeport-rejected-udp",
    "add table ip kube-proxy { flags dormant; comment \"rules for kube-proxy\"; }",
];

#[test]
fn table_with_conflicting_objects_is_replaced_in_one_batch_once() {
    for conflict in CONFLICTS {
        let table = "add table ip kube-proxy { comment \"rules for kube-proxy\"; }";
        let mut run = Run::new(Real::new());
        let nothing = format!("{table}\n");
        run.kernel.nft_reads(if conflict.starts_with("add table") { "" } else { &nothing });
        run.kernel.nft_reads(&format!("{conflict}\n"));
        for (kind, object) in objects_of(2, 1) {
            run.apply(Operation::Apply(kind, object));
        }
        let before = run.kernel.engine().generation().expect("a number");
        run.sync();
        assert_eq!(run.kernel.engine().generation().expect("a number"), before + 1, "it was one batch: {conflict}");
        let mut fresh = run.afresh();
        fresh.sync();
        meaning::compare(&run.kernel.text(), &fresh.kernel.text(), conflict);
        let written = run.apply(Operation::Restart).expect("it looks at everything");
        assert!(written.transactions.is_empty(), "{conflict}: {written:?}");
    }
}

#[test]
fn cleanup_removes_the_table_and_no_other() {
    let real = Real::new();
    let mut run = Run::new(real.clone());
    run.sync();
    real.nft("add table ip mine");
    real.nft("add table ip6 kube-proxy");
    let before = real.nft("list tables");
    assert_eq!(before.lines().count(), 3, "{before}");
    let mut mode = real.mode(real.tool());
    mode.cleanup().expect("it can be removed");
    assert_eq!(meaning::sorted(&real.nft("list tables")), ["table ip mine", "table ip6 kube-proxy"]);
    mode.cleanup().expect("nothing is to be removed");
    // The program is there, or the text above would be empty for another reason.
    assert!(Command::new("nft").arg("--version").status().expect("nft").success());
}

/// Services of one endpoint, the second of them with a node port.
fn objects_of(services: u32, endpoint: u32) -> Vec<(Kind, Value)> {
    let of = |number: u32| {
        let name = format!("svc-{number}");
        let mut service = objects::service("ns", &name, objects::address(50_000 + number));
        if number == 1 {
            service["spec"]["type"] = json!("NodePort");
            service["spec"]["ports"][0]["nodePort"] = json!(30_080);
        }
        let slice = objects::slice("ns", &name, &format!("{name}-x"), &[objects::address(number * 16 + endpoint)]);
        [(Kind::Service, service), (Kind::EndpointSlice, slice)]
    };
    (0..services).flat_map(of).collect()
}

/// A mode and the cluster that it is given.
struct Driven {
    translator: Translator,
    tracker: Tracker,
    mode: Box<dyn Backend>,
    real: Real,
}

impl Driven {
    fn new() -> Self {
        let real = Real::new();
        let mode = real.mode(real.tool());
        Self { translator: Translator::new(objects::NODE, false), tracker: Tracker::default(), mode, real }
    }

    /// Applies objects and syncs. Returns what the sync says, and the table as nft lists it.
    fn sync(&mut self, objects: Vec<(Kind, Value)>) -> (SyncStats, String) {
        for (kind, object) in objects {
            let changes = self.translator.applied(objects::decoded(kind, object)).expect("a good object").changes;
            for (_, change) in changes.into_iter().filter(|(family, _)| *family == IpFamily::V4) {
                self.tracker.apply(change);
            }
        }
        let scope = self.tracker.take_scope();
        let stats = self.mode.sync(&self.tracker.snapshot(IpFamily::V4.localhost()), &scope, Instant::now());
        let stats = stats.expect("the sync succeeds");
        self.tracker.request_sync_of(stats.rejected.iter().map(|rejected| rejected.port.clone()));
        (stats, self.real.nft("list table ip kube-proxy"))
    }

    fn full_sync(&mut self) -> String {
        let snapshot = self.tracker.snapshot(IpFamily::V4.localhost());
        self.mode.sync(&snapshot, &Scope::Full, Instant::now()).expect("the full sync succeeds");
        self.real.nft("list table ip kube-proxy")
    }
}

fn has_service(text: &str, number: u32) -> bool {
    text.contains(&format!("{} . tcp", objects::address(50_000 + number)))
}

#[test]
fn a_foreign_rule_that_jumps_to_an_unused_chain_delays_only_the_deletion_of_that_chain() {
    const UNUSED: &str = "external-nodeport-endpoints-1";
    let mut driven = Driven::new();
    let (_, before) = driven.sync(objects_of(2, 1));
    assert!(before.contains(&format!("chain {UNUSED} ")), "{before}");
    driven.real.nft("add chain ip kube-proxy foreign");
    driven.real.nft(&format!("add rule ip kube-proxy foreign jump {UNUSED}"));
    // svc-1 loses its node port, svc-2 is new.
    let mut changed = objects_of(3, 1);
    let service = &mut changed[2].1;
    service["spec"]["type"] = json!("ClusterIP");
    service["spec"]["ports"][0].as_object_mut().expect("a port").remove("nodePort");
    let (stats, text) = driven.sync(changed);
    assert_eq!((stats.failed_writes, stats.rejected.len()), (0, 0), "{:?}", stats.rejected);
    assert_eq!([0, 1, 2].map(|number| has_service(&text, number)), [true; 3], "{text}");
    assert!(text.contains(&format!("jump {UNUSED}")) && text.contains(&format!("chain {UNUSED} ")), "{text}");
    // The generation ID says that another process wrote, so the table is read and the foreign chain found.
    let damage = driven.mode.check_drift(Instant::now()).expect("the table can be read").expect("it differs");
    assert!(damage.ends_with("chains of other programs are in the table: foreign"), "{damage}");
    let text = driven.full_sync();
    driven.mode.check_drift(Instant::now() + Duration::from_secs(3600)).expect("the table can be read");
    let text = if text.contains(UNUSED) { driven.real.nft("list table ip kube-proxy") } else { text };
    assert!(!text.contains("foreign") && !text.contains(&format!("chain {UNUSED} ")), "{text}");
    assert_eq!([0, 1, 2].map(|number| has_service(&text, number)), [true; 3], "{text}");
}

#[test]
fn a_foreign_base_chain_under_one_of_our_names_is_replaced() {
    let mut driven = Driven::new();
    driven.sync(objects_of(1, 1));
    // A base chain cannot become a regular chain, and no element may jump to one.
    let table = "ip kube-proxy external-nodeport-endpoints-1";
    driven.real.nft_reads(&format!("add chain {table} {{ type filter hook input priority 0; }}"));
    let (stats, text) = driven.sync(objects_of(3, 2));
    // The partial sync is refused; the full one finds the base chain and replaces the table.
    assert_eq!((stats.failed_writes, stats.rejected.len()), (1, 0), "{:?}", stats.rejected);
    assert_eq!([0, 1, 2].map(|number| has_service(&text, number)), [true; 3], "{text}");
    assert!(text.contains("tcp . 30080 ") && text.contains(&format!(" : {} . ", objects::address(2))), "{text}");
    assert!(!text.contains("chain external-nodeport-endpoints-1 {\n\t\ttype"), "{text}");
}
