//! Services that ask for a hash: a slot for each number, and work for the slots that change hands.

use std::net::{IpAddr, SocketAddr};

use netfilter::IpFamily;
use netfilter::nft::{Operation, Transaction};
use netfilter::testing::FakeHost;
use proxier::maglev::{MaglevTable, SLOTS};
use proxier::nftables::{self, Nftables};
use proxier::testing::objects;
use proxier::track::Kind;
use serde_json::{Value, json};

use super::work::Cluster;

const CHAIN: &str = "endpoints-16381-hash-client";

fn service(hash: Option<&str>) -> Value {
    let mut service = objects::service("ns", "hashed", objects::address(60_000));
    if let Some(hash) = hash {
        service["metadata"]["annotations"] = json!({ "kube-proxy-rust.internal/endpoint-hash": hash });
    }
    service
}

fn addresses(count: u32) -> Vec<IpAddr> {
    (1..=count).map(|number| objects::address(70_000 + number)).collect()
}

fn slice(endpoints: &[IpAddr]) -> Value {
    objects::slice("ns", "hashed", "hashed-x", endpoints)
}

fn table(endpoints: &[IpAddr]) -> Vec<SocketAddr> {
    MaglevTable::of(endpoints.iter().map(|ip| SocketAddr::new(*ip, 8080))).iter().collect()
}

fn hashed(endpoints: &[IpAddr]) -> Cluster {
    let mut cluster = Cluster::unsynced(2);
    cluster.take(Kind::Service, service(Some("client")));
    cluster.take(Kind::EndpointSlice, slice(endpoints));
    cluster.sync();
    cluster
}

/// How many elements are deleted from and added to the map of endpoints.
fn changes(written: &[Transaction]) -> (usize, usize) {
    let operations = || written.iter().flat_map(Transaction::operations);
    let of = |wanted: fn(&Operation) -> Option<usize>| operations().filter_map(wanted).sum();
    let deleted = of(|operation| match operation {
        Operation::DeleteElements(set, elements) if &*set.name == "endpoints" => Some(elements.len()),
        _ => None,
    });
    let added = of(|operation| match operation {
        Operation::AddElements(set, elements) if &*set.name == "endpoints" => Some(elements.len()),
        _ => None,
    });
    (deleted, added)
}

#[test]
fn every_slot_has_the_endpoint_of_the_table() {
    let endpoints = addresses(7);
    let cluster = hashed(&endpoints);
    let text = cluster.kernel.text();
    let chain = format!(
        "{}\n",
        "dnat ip to ip daddr . meta l4proto . th dport . jhash ip saddr mod 16381 seed 0x6d61676c map @endpoints"
    );
    assert!(text.contains(&chain) && text.contains(&format!("goto {CHAIN}")), "no chain that hashes");
    for (slot, endpoint) in table(&endpoints).iter().enumerate().step_by(97) {
        let element = format!("{} . tcp . 80 . {slot} : {} . 8080", objects::address(60_000), endpoint.ip());
        assert!(text.contains(&element), "{element}");
    }
}

#[test]
fn endpoint_that_comes_or_goes_costs_the_slots_that_change_hands() {
    let (hundred, more) = (addresses(100), addresses(101));
    let mut cluster = hashed(&hundred);
    let moved = table(&hundred).iter().zip(table(&more)).filter(|(old, new)| **old != *new).count();
    for endpoints in [&more, &hundred] {
        cluster.take(Kind::EndpointSlice, slice(endpoints));
        assert_eq!(changes(&cluster.sync()), (moved, moved));
    }
    assert!(moved * 100 < SLOTS as usize * 4, "{moved} of {SLOTS} slots changed hands");
    // The order of endpoints is no change.
    let turned: Vec<IpAddr> = hundred.iter().rev().copied().collect();
    cluster.take(Kind::EndpointSlice, slice(&turned));
    assert_eq!(cluster.sync(), []);
}

#[test]
fn restarted_process_writes_nothing() {
    let mut cluster = hashed(&addresses(9));
    let host = Box::new(FakeHost::default());
    cluster.backend = Nftables::new(IpFamily::V4, objects::config(), Box::new(cluster.kernel.clone()), host);
    cluster.tracker.request_full_sync();
    assert_eq!(cluster.sync(), []);
}

#[test]
fn service_that_no_longer_asks_leaves_the_table_of_one_that_never_did() {
    let mut cluster = hashed(&addresses(3));
    cluster.take(Kind::Service, service(None));
    cluster.sync();
    let mut never = Cluster::unsynced(2);
    never.take(Kind::Service, service(None));
    never.take(Kind::EndpointSlice, slice(&addresses(3)));
    never.sync();
    assert_eq!(sorted(&cluster.kernel.text()), sorted(&never.kernel.text()));
}

/// A listing without the order of elements.
fn sorted(text: &str) -> Vec<String> {
    let mut parts: Vec<String> = text.split([',', '\n']).map(|part| part.trim().to_owned()).collect();
    parts.sort_unstable();
    parts
}

#[test]
fn kernel_without_hashes_chooses_at_random() {
    let mut cluster = Cluster::unsynced(2);
    cluster.kernel.refuse(Some(("jhash", libc::ENOENT)));
    cluster.take(Kind::Service, service(Some("flow")));
    cluster.take(Kind::EndpointSlice, slice(&addresses(3)));
    cluster.sync();
    let text = cluster.kernel.text();
    let element = format!("{} . tcp . 80 . 2 : ", objects::address(60_000));
    assert!(text.contains(&element) && !text.contains("jhash"), "{text}");
    // Nor do inspection commands expect hashes there.
    let snapshot = cluster.tracker.snapshot(IpFamily::V4.localhost());
    let hashes = nftables::can_hash(&mut cluster.kernel.clone(), IpFamily::V4, &snapshot);
    let expected = |hashes| {
        let none = |_: &str, _: &[u8]| None;
        let expected = nftables::expected(IpFamily::V4, &objects::config(), &snapshot, &[], &none, hashes);
        expected.chains.keys().filter(|name| name.contains("hash")).count()
    };
    assert!(!hashes && expected(hashes) == 0 && expected(true) > 0);
    // Later changes do not try again.
    cluster.take(Kind::EndpointSlice, slice(&addresses(4)));
    assert_eq!(changes(&cluster.sync()), (0, 1));
}
