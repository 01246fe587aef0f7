//! A table that does not exist is built in batches.

use std::time::Instant;

use netfilter::IpFamily;
use netfilter::nft::{Operation, Transaction};
use proxier::backend::Backend;
use proxier::testing::objects;

use super::work::Cluster;

/// Enough for several batches.
const SERVICES: u32 = 600;

fn elements(written: &Transaction) -> usize {
    let count = |operation: &Operation| match operation {
        Operation::AddElements(_, elements) => elements.len(),
        _ => 0,
    };
    written.operations().iter().map(count).sum()
}

fn has_base_chain(written: &Transaction) -> bool {
    written.operations().iter().any(|operation| matches!(operation, Operation::AddChain(chain) if chain.base.is_some()))
}

#[test]
fn a_new_table_gets_its_base_chains_after_all_elements() {
    let mut cluster = Cluster::unsynced(SERVICES);
    let written = cluster.sync();
    let (last, before) = written.split_last().expect("something is written");
    assert!(has_base_chain(last) && elements(last) == 0, "{last}");
    assert!(!before.iter().any(has_base_chain));
    // For each Service three endpoints, a verdict, and a cluster IP in two sets, as no ServiceCIDR is known.
    assert_eq!(before.iter().map(elements).sum::<usize>(), 6 * usize::try_from(SERVICES).expect("few"));
    assert!(before.len() > 3 && before.iter().all(|batch| elements(batch) < 2048), "{}", before.len());
}

#[test]
fn a_full_sync_after_the_build_writes_nothing() {
    let mut cluster = Cluster::unsynced(SERVICES);
    cluster.sync();
    let reads = cluster.kernel.reads();
    assert_eq!(cluster.backend.check_drift(Instant::now()).expect("a readable kernel"), None);
    assert_eq!(cluster.kernel.reads(), reads, "the generation ID is known");
    cluster.tracker.request_full_sync();
    assert_eq!(cluster.sync(), []);
}

#[test]
fn an_element_refused_in_a_later_batch_leaves_out_only_its_service_port() {
    let mut cluster = Cluster::unsynced(SERVICES);
    let refused = format!(" : {} . ", objects::address((SERVICES - 1) * 16 + 2));
    cluster.kernel.refuse(Some((&refused, libc::ENOSPC)));
    let scope = cluster.tracker.take_scope();
    let snapshot = cluster.tracker.snapshot(IpFamily::V4.localhost());
    let stats = cluster.backend.sync(&snapshot, &scope, Instant::now()).expect("the others are taken");
    let rejected: Vec<String> = stats.rejected.iter().map(|rejected| rejected.port.to_string()).collect();
    assert_eq!(rejected, [format!("ns/svc-{}:http", SERVICES - 1)]);
    let text = cluster.kernel.text();
    assert_eq!(text.matches("goto endpoints-4").count(), usize::try_from(SERVICES - 1).expect("few"));
    assert!(text.contains("hook prerouting") && !text.contains(&refused));
}

#[test]
fn a_change_by_another_process_during_the_build_makes_the_next_check_read_the_table() {
    let mut cluster = Cluster::unsynced(SERVICES);
    cluster.kernel.overtake(2);
    cluster.sync();
    let reads = cluster.kernel.reads();
    assert_eq!(cluster.backend.check_drift(Instant::now()).expect("a readable kernel"), None);
    assert_eq!(cluster.kernel.reads(), reads + 1);
}
