//! Clusters around 1000 endpoints, from which comments are omitted and deletions postponed.
//!
//! Compares the rules that packets can reach, without comments: the rest depends on the history, as in kube-proxy.

use std::collections::{BTreeMap, BTreeSet};

use netfilter::iptables::Table;
use proptest::prelude::*;
use proxier::track::Kind;
use serde_json::{Value, json};

use super::fake::{Fake, Tables};
use super::{configuration, jumps};
use crate::common::cluster::{Operation, operations};
use crate::common::run::Run;

/// The number of unchanging endpoints.
const MOST: u32 = 996;

proptest! {
    #![proptest_config(configuration(10))]

    #[test]
    fn partial_syncs_equal_a_fresh_start_in_reachable_chains(operations in operations(20, false)) {
        let mut run = Run::new(Fake::default());
        for object in many() {
            let kind = if object["spec"].is_null() { Kind::EndpointSlice } else { Kind::Service };
            run.apply(Operation::Apply(kind, object));
        }
        let ends = [Operation::Sync, Operation::Restart];
        for operation in std::iter::once(Operation::Sync).chain(operations).chain(ends) {
            if run.apply(operation).is_some() {
                let mut fresh = run.afresh();
                fresh.sync();
                let (run, fresh) = (met(&run.kernel.tables()), met(&fresh.kernel.tables()));
                let differ: BTreeSet<_> = run.keys().chain(fresh.keys()).filter(|c| run.get(c) != fresh.get(c)).collect();
                prop_assert!(differ.is_empty(), "{:?}", differ.iter().map(|c| (c, run.get(c), fresh.get(c))).collect::<Vec<_>>());
            }
        }
    }
}

/// A Service and its many endpoints.
fn many() -> [Value; 2] {
    let metadata =
        |name: &str| json!({ "namespace": "odd", "name": name, "labels": { "kubernetes.io/service-name": "many" } });
    let endpoint = |n: u32| json!({ "addresses": [format!("10.1.{}.{}", n / 250, n % 250)] });
    [
        json!({ "metadata": metadata("many"), "spec": { "clusterIP": "10.96.0.9", "ports": [{ "name": "a", "port": 80 }] } }),
        json!({
            "metadata": metadata("many-1"), "addressType": "IPv4", "ports": [{ "name": "a", "port": 80 }],
            "endpoints": (0..MOST).map(endpoint).collect::<Vec<_>>()
        }),
    ]
}

/// The chains that packets can reach, with their rules without comments.
fn met(tables: &Tables) -> BTreeMap<(Table, String), Vec<String>> {
    let mut met = BTreeMap::new();
    let mut next: Vec<(Table, String)> =
        tables.keys().filter(|(_, chain)| !chain.starts_with("KUBE-")).cloned().collect();
    while let Some(place) = next.pop() {
        if met.contains_key(&place) {
            continue;
        }
        let rules = tables.get(&place).unwrap_or_else(|| panic!("there is no chain {}", place.1));
        let targets = jumps(rules).filter(|target| target.starts_with("KUBE-"));
        next.extend(targets.map(|target| (place.0, target.to_owned())));
        met.insert(place, rules.iter().map(|rule| without_comment(rule)).collect());
    }
    met
}

fn without_comment(rule: &str) -> String {
    let Some((before, rest)) = rule.split_once("-m comment --comment \"") else { return rule.to_owned() };
    let (_, after) = rest.split_once('"').expect("comments end");
    format!("{before}{}", after.trim_start())
}
