//! Services with real packets in IPVS mode: what users see is the same as in iptables mode, where it can be.
//!
//! In: the `kube-proxy` binary (`KUBE_PROXY=PATH` for another one), root, and a kernel that has IPVS (`make test-ipvs`).
//! Out: what users of Services see. Left out of iptables mode's tests are those that look at its rules, and what IPVS
//! does otherwise: node ports on localhost, drops for want of local endpoints, one memory for all entrances.

#[path = "packets/affinity.rs"]
#[allow(dead_code)] // shared with packets.rs
mod affinity;
#[path = "packets/changes.rs"]
#[allow(dead_code)] // shared with packets.rs
mod changes;
#[path = "packets/cluster_ip.rs"]
#[allow(dead_code)] // shared with packets.rs
mod cluster_ip;
#[path = "packets/ipvs.rs"]
mod ipvs;
#[path = "packets/load_balancer.rs"]
#[allow(dead_code)] // shared with packets.rs
mod load_balancer;
#[path = "packets/node_port.rs"]
#[allow(dead_code)] // shared with packets.rs
mod node_port;
#[path = "packets/policy.rs"]
#[allow(dead_code)] // shared with packets.rs
mod policy;
#[path = "packets/protocols.rs"]
#[allow(dead_code)] // shared with packets.rs
mod protocols;
#[path = "packets/restart.rs"]
#[allow(dead_code)] // shared with packets.rs
mod restart;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use golden::cluster::{Answer, Cluster};
use golden::flavour::Flavour;
use serde_json::json;

/// How soon a change of the objects must show in the traffic. The kernel may be a slow one.
const PROMPT: Duration = Duration::from_secs(5);
/// How long things may take that have no promise of speed, on a busy machine.
const SOON: Duration = Duration::from_secs(20);

macro_rules! in_ipvs_mode {
    ($($group:ident: $($test:ident),+;)+) => {
        $($(#[test] fn $test() { run($group::$test); })+)+
    };
}

in_ipvs_mode! {
    cluster_ip: cluster_ip_from_a_pod_keeps_the_source, cluster_ip_from_the_host,
        cluster_ip_from_outside_is_masqueraded,
        connections_spread_over_the_endpoints, a_pod_reaches_itself_through_its_service;
    node_port: node_port_on_every_node_address, node_port_addresses_restrict_node_ports;
    load_balancer: load_balancer_and_external_ip_from_outside, source_ranges_drop_other_clients;
    affinity: client_ip_affinity_of_a_cluster_ip;
    policy: external_local_keeps_the_client_and_stays_on_the_node, internal_local_stays_on_the_node,
        no_endpoints_refuse_at_once;
    protocols: udp_flow_leaves_a_gone_endpoint;
    changes: readiness_moves_traffic;
    ipvs: a_connection_outlives_its_endpoint, a_connection_outlives_its_service, a_connection_outlives_the_proxy,
        round_robin_is_even, source_hashing_keeps_clients, a_node_moves_between_modes,
        what_somebody_flushed_comes_back, servers_of_others_stay,
        local_policies_bind_pods_and_fall_back, addresses_of_services_have_no_other_ports;
}

fn run(test: fn(Cluster)) {
    let built = || PathBuf::from(env!("CARGO_BIN_EXE_kube-proxy"));
    let binary = std::env::var_os("KUBE_PROXY").map_or_else(built, PathBuf::from);
    test(Cluster::new(Flavour::Nft, &binary).configured("mode", json!("ipvs")));
}

/// The names of those that answered.
fn pods(answers: &[Answer]) -> BTreeSet<&str> {
    answers.iter().map(|answer| answer.pod.as_str()).collect()
}
