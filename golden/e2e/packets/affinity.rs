//! `sessionAffinity: ClientIP`: each client keeps its endpoint, and clients are distributed.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use golden::cluster::Protocol::Tcp;
use golden::cluster::{Client, Cluster, FAR_5, Family, NODE, OUTSIDE_OTHERS, POD_5, POD_6, POD_9, Service, ready};

use super::pods;

const NODE_PORT: u16 = 30080;

fn sticky() -> Service {
    Service::new("sticky", 40).node_port(NODE_PORT).affinity(10800).endpoints([
        ready(POD_5),
        ready(POD_6),
        ready(FAR_5),
    ])
}

/// The one endpoint this client is stuck to.
fn endpoint(client: Client<'_>, to: SocketAddr, times: usize) -> String {
    let answers = client.reach_times(Tcp, to, times);
    let pods = pods(&answers);
    assert_eq!(pods.len(), 1, "one client went to several endpoints: {pods:?}");
    answers[0].pod.clone()
}

/// Twelve clients: that all of them choose the same endpoint of three by chance happens once in 177147 runs.
fn many_clients_spread(cluster: &Cluster, to: SocketAddr) {
    let chosen: BTreeSet<String> =
        OUTSIDE_OTHERS.iter().map(|source| endpoint(cluster.outside_as(*source), to, 5)).collect();
    assert!(chosen.len() > 1, "every client is stuck to {chosen:?}");
}

pub(super) fn client_ip_affinity_of_a_cluster_ip(cluster: Cluster) {
    let sticky = sticky();
    let cluster = cluster.running(std::slice::from_ref(&sticky));
    for family in Family::BOTH {
        let to = sticky.address(family);
        endpoint(cluster.pod(POD_9), to, 100);
        endpoint(cluster.host(), to, 20);
        many_clients_spread(&cluster, to);
    }
}

/// No API server lets such an object in. Where no tool in between refuses it, nothing is ever forgotten, as with kube-proxy.
pub(super) fn affinity_of_no_seconds_never_ends(cluster: Cluster) {
    let (zero, other) = (sticky().affinity(0), Service::new("other", 41).endpoints([ready(POD_6)]));
    let cluster = cluster.running(&[zero.clone(), other.clone()]);
    for family in Family::BOTH {
        let first = endpoint(cluster.pod(POD_9), zero.address(family), 20);
        many_clients_spread(&cluster, zero.address(family));
        assert_eq!(endpoint(cluster.pod(POD_9), zero.address(family), 20), first);
        assert_eq!(
            endpoint(cluster.outside(), NODE.at(family, NODE_PORT), 20),
            endpoint(cluster.outside(), zero.address(family), 20)
        );
        assert_eq!(endpoint(cluster.pod(POD_9), other.address(family), 3), POD_6.name);
        let remembered = cluster.table(family);
        assert!(!remembered.contains(" expires "), "an affinity would expire: {remembered}");
    }
}

pub(super) fn client_ip_affinity_of_a_node_port(cluster: Cluster) {
    let sticky = sticky();
    let cluster = cluster.running(std::slice::from_ref(&sticky));
    for family in Family::BOTH {
        let to = NODE.at(family, NODE_PORT);
        let by_node_port = endpoint(cluster.outside(), to, 100);
        // One memory for all entrances of a Service.
        assert_eq!(endpoint(cluster.outside(), sticky.address(family), 20), by_node_port);
        many_clients_spread(&cluster, to);
    }
}
