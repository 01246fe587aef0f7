//! Work is in proportion to the change: counted in elements, whatever else is in the table.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use netfilter::IpFamily;
use netfilter::kernel::NftTables;
use netfilter::nft::{Chain, Operation, Table, Transaction};
use netfilter::testing::{FakeHost, FakeNftables};
use proxier::backend::Backend;
use proxier::nftables::{self, Nftables};
use proxier::testing::objects;
use proxier::track::{Kind, Tracker, Translator};
use serde_json::Value;

pub struct Cluster {
    pub kernel: FakeNftables,
    translator: Translator,
    pub tracker: Tracker,
    pub backend: Nftables,
}

impl Cluster {
    fn new(services: u32) -> Self {
        let mut cluster = Self::unsynced(services);
        cluster.sync();
        cluster
    }

    /// So many Services of three endpoints, and an empty kernel.
    pub fn unsynced(services: u32) -> Self {
        let kernel = FakeNftables::default();
        let host = Box::new(FakeHost::default());
        let backend = Nftables::new(IpFamily::V4, objects::config(), Box::new(kernel.clone()), host);
        let mut cluster =
            Self { kernel, translator: Translator::new(objects::NODE, false), tracker: Tracker::default(), backend };
        cluster.tracker.request_full_sync();
        for number in 0..services {
            cluster.take(Kind::Service, service(number));
            cluster.take(Kind::EndpointSlice, slice(number, &[1, 2, 3]));
        }
        cluster
    }

    pub fn take(&mut self, kind: Kind, object: Value) {
        for (family, change) in self.translator.applied(objects::decoded(kind, object)).expect("a good object").changes
        {
            if family == IpFamily::V4 {
                self.tracker.apply(change);
            }
        }
    }

    /// What was written.
    pub fn sync(&mut self) -> Vec<Transaction> {
        let scope = self.tracker.take_scope();
        let snapshot = self.tracker.snapshot(IpFamily::V4.localhost());
        let stats = self.backend.sync(&snapshot, &scope, Instant::now()).expect("the kernel takes it");
        assert_eq!(stats.rejected, []);
        self.kernel.take_transactions()
    }
}

fn service(number: u32) -> Value {
    objects::service("ns", &format!("svc-{number}"), objects::address(50_000 + number))
}

fn slice(number: u32, endpoints: &[u32]) -> Value {
    let endpoints: Vec<IpAddr> = endpoints.iter().map(|n| objects::address(number * 16 + n)).collect();
    let name = format!("svc-{number}");
    objects::slice("ns", &name, &format!("{name}-x"), &endpoints)
}

/// The operations, without names: kinds and how many elements.
fn shape(written: &[Transaction]) -> Vec<Vec<String>> {
    let one = |operation: &Operation| match operation {
        Operation::AddElements(set, elements) => format!("add {} {}", elements.len(), set.name),
        Operation::DeleteElements(set, elements) => format!("delete {} {}", elements.len(), set.name),
        Operation::AddChain(chain) => format!("chain {}", chain.name),
        Operation::AddRule { chain, .. } => format!("rule {chain}"),
        Operation::DeleteChain(name) => format!("delete {name}"),
        other => format!("{other:?}"),
    };
    written.iter().map(|transaction| transaction.operations().iter().map(one).collect()).collect()
}

#[test]
fn a_change_costs_what_it_changes_however_many_services_there_are() {
    for services in [3, 300] {
        let mut cluster = Cluster::new(services);
        // One endpoint for another.
        cluster.take(Kind::EndpointSlice, slice(1, &[1, 9, 3]));
        assert_eq!(shape(&cluster.sync()), [["delete 1 endpoints", "add 1 endpoints"]]);
        // One more.
        cluster.take(Kind::EndpointSlice, slice(1, &[1, 3, 9, 4]));
        assert_eq!(shape(&cluster.sync()), [["add 1 endpoints"]]);
        // And one more: now they are so many that the choice is another one.
        cluster.take(Kind::EndpointSlice, slice(1, &[1, 3, 9, 4, 5]));
        let dispatch = ["delete 1 service-ips", "add 1 service-ips"];
        assert_eq!(shape(&cluster.sync()), [[&["add 1 endpoints"][..], &dispatch].concat()]);
        // One endpoint less, not the last: the last one takes its number; unused elements are deleted later.
        cluster.take(Kind::EndpointSlice, slice(1, &[3, 9, 4, 5]));
        let shrunk = shape(&cluster.sync());
        let replaced = ["delete 1 service-ips", "delete 1 endpoints", "add 1 endpoints", "add 1 service-ips"];
        assert_eq!(shrunk[0].iter().collect::<std::collections::BTreeSet<_>>().len(), 4);
        assert!(replaced.iter().all(|operation| shrunk[0].contains(&(*operation).to_owned())), "{shrunk:?}");
        assert_eq!(shrunk[1..], [["delete 1 endpoints"]]);
        cluster.take(Kind::EndpointSlice, slice(1, &[3, 9, 4]));
        assert_eq!(shape(&cluster.sync())[1..], [["delete 1 endpoints"]]);
        // Nothing is nothing.
        cluster.take(Kind::EndpointSlice, slice(1, &[3, 4, 9]));
        assert_eq!(shape(&cluster.sync()), Vec::<Vec<String>>::new());
    }
}

#[test]
fn restarted_process_writes_nothing() {
    let mut cluster = Cluster::new(20);
    cluster.take(Kind::EndpointSlice, slice(1, &[3, 9]));
    cluster.sync();
    let host = Box::new(FakeHost::default());
    cluster.backend = Nftables::new(IpFamily::V4, objects::config(), Box::new(cluster.kernel.clone()), host);
    cluster.tracker.request_full_sync();
    assert_eq!(shape(&cluster.sync()), Vec::<Vec<String>>::new());
}

#[test]
fn a_refused_service_port_does_not_affect_others() {
    let mut cluster = Cluster::new(3);
    let moved = |number: u32| format!(" : {} . ", objects::address(number * 16 + 9));
    cluster.kernel.refuse(Some((&moved(1), libc::ENOSPC)));
    for number in 0..3 {
        cluster.take(Kind::EndpointSlice, slice(number, &[1, 9, 3]));
    }
    let scope = cluster.tracker.take_scope();
    let snapshot = cluster.tracker.snapshot(IpFamily::V4.localhost());
    let stats = cluster.backend.sync(&snapshot, &scope, Instant::now()).expect("the others are taken");
    assert_eq!(stats.failed_writes, 2, "the change, and all anew");
    let [rejected] = &stats.rejected[..] else { panic!("{:?}", stats.rejected) };
    assert_eq!(rejected.port.to_string(), "ns/svc-1:http");
    let named = ["add element ip kube-proxy endpoints { ", "No space left on device"];
    assert!(named.iter().all(|part| rejected.reason.contains(part)), "{}", rejected.reason);
    let text = cluster.kernel.text();
    assert!(text.contains(&moved(0)) && text.contains(&moved(2)) && !text.contains(&moved(1)), "{text}");
    // And it comes when it can.
    cluster.kernel.refuse(None);
    cluster.tracker.request_sync_of([rejected.port.clone()]);
    cluster.sync();
    assert!(cluster.kernel.text().contains(&moved(1)));
}

/// So many endpoints that the way of choosing among them is not always there.
fn crowd(count: u32) -> Value {
    let endpoints: Vec<IpAddr> = (0..count).map(|n| objects::address(100_000 + n)).collect();
    objects::slice("ns", "svc-1", "svc-1-x", &endpoints)
}

#[test]
fn choice_chain_exists_from_its_first_user_to_its_last() {
    let mut cluster = Cluster::new(2);
    cluster.take(Kind::EndpointSlice, crowd(32));
    cluster.sync();
    cluster.take(Kind::EndpointSlice, crowd(33));
    let [grown] = &shape(&cluster.sync())[..] else { panic!("it takes more than one batch") };
    let rules = ["rule endpoints-48"; 16];
    let dispatch = ["add 1 endpoints", "delete 1 service-ips", "add 1 service-ips"];
    assert_eq!(*grown, [&["chain endpoints-48"][..], &rules, &dispatch].concat());
    cluster.take(Kind::EndpointSlice, crowd(32));
    assert_eq!(shape(&cluster.sync())[1..], [["delete 1 endpoints"], ["delete endpoints-48"]]);
}

#[test]
fn refused_chain_leaves_out_its_service_ports() {
    let mut cluster = Cluster::new(3);
    for part in ["add chain ip kube-proxy endpoints-48", "add rule ip kube-proxy endpoints-48 "] {
        cluster.kernel.refuse(Some((part, libc::ENOMEM)));
        cluster.take(Kind::EndpointSlice, crowd(40));
        cluster.take(Kind::EndpointSlice, slice(2, &[7]));
        let (scope, ip) = (cluster.tracker.take_scope(), IpFamily::V4.localhost());
        let stats =
            cluster.backend.sync(&cluster.tracker.snapshot(ip), &scope, Instant::now()).expect("others are taken");
        let [rejected] = &stats.rejected[..] else { panic!("{:?}", stats.rejected) };
        assert_eq!(rejected.port.to_string(), "ns/svc-1:http");
        assert!(rejected.reason.contains(part) && rejected.reason.contains("Cannot allocate"), "{}", rejected.reason);
        assert!(cluster.kernel.text().contains(&format!(" : {} . ", objects::address(39))));
        cluster.kernel.refuse(None);
        cluster.take(Kind::EndpointSlice, slice(1, &[1]));
        cluster.take(Kind::EndpointSlice, slice(2, &[8]));
        cluster.sync();
    }
}

#[test]
fn chain_in_use_is_counted_and_deleted_later() {
    let mut cluster = Cluster::new(2);
    let count = |cluster: &mut Cluster, endpoints: u32| {
        cluster.take(Kind::EndpointSlice, crowd(endpoints));
        let (scope, ip) = (cluster.tracker.take_scope(), IpFamily::V4.localhost());
        let stats = cluster.backend.sync(&cluster.tracker.snapshot(ip), &scope, Instant::now()).expect("all is taken");
        (stats.failed_writes, stats.failed_deletions, cluster.kernel.text().contains("chain endpoints-48 "))
    };
    assert_eq!(count(&mut cluster, 40), (0, 0, true));
    cluster.kernel.refuse(Some(("delete chain", libc::EBUSY)));
    assert_eq!(count(&mut cluster, 3), (0, 1, true));
    cluster.kernel.refuse(None);
    assert_eq!(count(&mut cluster, 2), (0, 0, false));
}

#[test]
fn sync_after_a_foreign_write_reads_again() {
    let mut cluster = Cluster::new(2);
    cluster.tracker.request_full_sync();
    cluster.take(Kind::EndpointSlice, slice(1, &[1]));
    cluster.kernel.overtake(0);
    let written = cluster.sync();
    assert!(written.len() >= 2, "it was not tried again: {written:?}");
    assert!(cluster.kernel.text().contains(&format!(": {} . ", objects::address(17))));
}

#[test]
fn foreign_change_in_another_table_is_checked_once() {
    let mut cluster = Cluster::new(3);
    let mut theirs = Transaction::on(Table { family: IpFamily::V4, name: "fence".into() });
    theirs.push(Operation::AddTable { comment: None });
    NftTables::apply(&mut cluster.kernel, &theirs, None).expect("a table");
    let (now, reads) = (Instant::now(), cluster.kernel.reads());
    for hours in 0..3 {
        let damage =
            cluster.backend.check_drift(now + Duration::from_secs(3600 * hours)).expect("the kernel can be read");
        assert_eq!(damage, None);
    }
    assert_eq!(cluster.kernel.reads(), reads + 1);
}

#[test]
fn undeletable_state_at_the_start_is_deleted_later() {
    let mut cluster = Cluster::new(3);
    let table = Table { family: IpFamily::V4, name: "kube-proxy".into() };
    let mut left = Transaction::on(table);
    left.push(Operation::AddChain(Chain::plain("endpoints-9")));
    NftTables::apply(&mut cluster.kernel, &left, None).expect("a chain that nothing uses");
    let host = Box::new(FakeHost::default());
    cluster.backend = Nftables::new(IpFamily::V4, objects::config(), Box::new(cluster.kernel.clone()), host);
    cluster.kernel.refuse(Some(("delete chain", libc::EBUSY)));
    cluster.tracker.request_full_sync();
    cluster.sync();
    assert!(cluster.kernel.text().contains("chain endpoints-9 "), "it was to be kept");
    cluster.kernel.refuse(None);
    let damage = cluster.backend.check_drift(Instant::now()).expect("the kernel can be read");
    assert!(damage.as_ref().is_some_and(|text| text.contains("endpoints-9")), "{damage:?}");
    cluster.tracker.request_full_sync();
    cluster.sync();
    assert!(!cluster.kernel.text().contains("chain endpoints-9 "), "it is still there");
}

#[test]
fn missing_kernel_features_are_named() {
    let mut kernel = FakeNftables::default();
    for family in IpFamily::ALL {
        for (part, name) in [
            ("type nat hook", "CONFIG_NFT_NAT, nft_chain_nat"),
            ("numgen random mod 2 vmap", "CONFIG_NFT_NUMGEN"),
            ("fib saddr", "CONFIG_NFT_FIB_IPV4"),
            ("masquerade", "CONFIG_NFT_MASQ"),
            ("add set", "nft_set_pipapo"),
        ] {
            kernel.refuse(Some((part, libc::ENOENT)));
            let error = nftables::check(&mut kernel, family).expect_err(part).to_string();
            assert!(error.starts_with("the kernel lacks ") && error.contains(name) && error.contains(part), "{error}");
        }
        // A process without permissions must not report missing kernel features.
        kernel.refuse(Some(("add table", libc::EPERM)));
        let error = nftables::check(&mut kernel, family).expect_err("not allowed").to_string();
        assert!(error.contains("Operation not permitted") && !error.contains("lacks"), "{error}");
        assert!(error.contains("CAP_NET_ADMIN"), "{error}");
        kernel.refuse(None);
        assert!(nftables::check(&mut kernel, family).is_ok());
    }
}

#[test]
fn a_table_that_another_process_owns_is_named_with_its_owner() {
    let mut cluster = Cluster::new(1);
    cluster.kernel.own(4711);
    cluster.tracker.request_full_sync();
    let (scope, snapshot) = (cluster.tracker.take_scope(), cluster.tracker.snapshot(IpFamily::V4.localhost()));
    let error = cluster.backend.sync(&snapshot, &scope, Instant::now()).expect_err("it cannot be changed").to_string();
    assert!(error.contains("table ip kube-proxy") && error.contains("another process"), "{error}");
    assert!(error.contains("port ID 4711"), "{error}");
}
