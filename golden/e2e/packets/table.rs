//! Behaviour of nftables mode only: one table, which other programs may change, under continuous traffic.

use golden::case::Mode;
use golden::cluster::Protocol::Tcp;
use golden::cluster::{Cluster, FAR_5, FAR_6, Family, NODE, POD_5, POD_6, POD_9, PORT, Service, eventually, ready};
use serde_json::json;

use super::SOON;
use super::restart::unnoticed;

const NODE_PORT: u16 = 30080;

fn web() -> Service {
    Service::new("web", 60).node_port(NODE_PORT)
}

/// With some changes a Service goes from one chain that chooses to another, and back; with others it stays.
pub(super) fn endpoint_changes_do_not_affect_other_connections(cluster: Cluster) {
    let five = vec![FAR_6, POD_6, POD_9, FAR_5, POD_5];
    let counts = [vec![POD_5, POD_6, FAR_5], vec![FAR_5], five, vec![POD_6, FAR_6, POD_9, FAR_5]];
    let with = |pods: &[golden::cluster::Pod]| web().endpoints(pods.iter().map(|pod| ready(*pod)).collect::<Vec<_>>());
    let cluster = cluster.running(&[with(&counts[0])]);
    unnoticed(&cluster, &web(), NODE_PORT, || {
        for pods in counts.iter().cycle().take(12) {
            cluster.write(&[with(pods)]);
            // A single endpoint has no number.
            let (chain, number) = match pods.len() {
                1 => ("goto endpoints-1", ": "),
                3..=4 => ("goto endpoints-4", ". "),
                _ => ("goto endpoints-6", ". "),
            };
            eventually("the change is in the table", SOON, || {
                Family::BOTH.iter().all(|family| {
                    let (table, numbered) =
                        (cluster.table(*family), format!("{} . tcp . {PORT} {number}", web().address(*family).ip()));
                    table.contains(chain) && table.matches(&numbered).count() == pods.len()
                })
            });
        }
    });
}

pub(super) fn a_node_moves_between_iptables_and_nftables(cluster: Cluster) {
    let web = web().endpoints([ready(POD_5), ready(FAR_5)]);
    let periods = json!({ "syncPeriod": "2s", "minSyncPeriod": "100ms" });
    let mut cluster = cluster.configured("iptables", periods.clone()).configured("nftables", periods);
    cluster.set_mode(Mode::Iptables);
    let mut cluster = cluster.running(std::slice::from_ref(&web));
    for mode in [Mode::Nftables, Mode::Iptables] {
        cluster.set_mode(mode);
        let moving = &cluster;
        unnoticed(moving, &web, NODE_PORT, || {
            moving.kill();
            moving.start();
            eventually("the other mode's rules are gone", SOON, || {
                Family::BOTH.iter().all(|family| match mode {
                    Mode::Nftables => !moving.rules(*family, "nat").text().contains("KUBE-SVC-"),
                    _ => moving.table(*family).is_empty(),
                })
            });
        });
    }
}

/// A new process reads the table and writes what changed while there was none.
pub(super) fn restarted_process_does_not_affect_connections(cluster: Cluster) {
    let web = web().endpoints([ready(POD_5), ready(FAR_5)]);
    let cluster = cluster.running(std::slice::from_ref(&web));
    let table = |family| cluster.table_parts(family);
    let before = Family::BOTH.map(table);
    assert!(before.iter().flatten().any(|part| part.contains(&web.full_name())), "{before:?}");
    unnoticed(&cluster, &web, NODE_PORT, || {
        for name in ["one", "two", "three"] {
            cluster.kill();
            let other = Service::new(name, 94).endpoints([ready(POD_6)]);
            cluster.write(&[web.clone(), other.clone()]);
            cluster.start();
            eventually("the new process has caught up", SOON, || {
                Family::BOTH.iter().all(|family| cluster.table(*family).contains(&other.full_name()))
            });
        }
        cluster.write(std::slice::from_ref(&web));
        eventually("the table is as before", SOON, || Family::BOTH.map(table) == before);
    });
}

pub(super) fn damaged_table_is_repaired(cluster: Cluster) {
    let web = web().endpoints([ready(POD_5), ready(FAR_5)]);
    let quick = json!({ "syncPeriod": "1s", "minSyncPeriod": "100ms" });
    let cluster = cluster.configured("nftables", quick).running(std::slice::from_ref(&web));
    for damage in
        ["flush chain ip kube-proxy services", "flush map ip kube-proxy endpoints", "delete table ip kube-proxy"]
    {
        let damage = format!("nft {damage}");
        let _ = cluster.on_node(&damage);
        eventually("the table is whole again", SOON * 3, || {
            let reached = cluster.pod(POD_9).attempt(Tcp, web.address(Family::V4));
            reached.is_ok() && cluster.outside().attempt(Tcp, NODE.at(Family::V4, NODE_PORT)).is_ok()
        });
        assert!(cluster.log().contains("repairing drift"), "{damage}: {}", cluster.log());
    }
}
