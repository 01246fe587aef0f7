//! Localhost node ports of nftables mode (KEP-6032): who serves them, and who rejects them.

use std::net::SocketAddr;

use golden::cluster::Protocol::{Tcp, Udp};
use golden::cluster::{
    Client, Cluster, FAR_5, Family, LOOPBACK, NODE, NODE_ETH1, POD_5, POD_9, Service, eventually, is_node, ready,
};
use golden::node::METRICS;
use serde_json::json;

use super::{PROMPT, SOON, pods};

const NODE_PORT: u16 = 30080;
const GATE: &str = "KubeProxyNFTablesLocalhostNodePorts";

fn web() -> Service {
    Service::new("web", 20).node_port(NODE_PORT).endpoints([ready(POD_5), ready(FAR_5)])
}

fn dns() -> Service {
    Service::new("dns", 21).protocol("UDP").node_port(NODE_PORT).endpoints([ready(POD_5), ready(FAR_5)])
}

/// An endpoint answers, and has seen an address of the node.
#[track_caller]
fn reaches(client: &Client<'_>, at: SocketAddr) {
    let answer = client.reach(Tcp, at);
    assert!(is_node(answer.client), "{answer:?}");
}

fn with(cluster: Cluster, gate: bool, addresses: &[&str]) -> Cluster {
    cluster.configured("featureGates", json!({ GATE: gate })).configured("nodePortAddresses", json!(addresses))
}

/// The value of a metric with its labels.
fn metric(cluster: &Cluster, name: &str) -> Option<f64> {
    let (_, text) = cluster.node().enter(|| golden::node::get(METRICS, "/metrics")).expect("/metrics answers");
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

/// `primary,localhost`: other addresses of the node are not served.
pub(super) fn localhost_node_ports_are_served_in_both_families(cluster: Cluster) {
    // Source ranges do not apply, and pods and outside clients reach node ports as always.
    let ranged = web().source_ranges(&["203.0.113.0/24"]);
    let cluster = with(cluster, true, &["primary", "localhost"]).running(&[ranged]);
    for family in Family::BOTH {
        let answers = cluster.host().reach_times(Tcp, LOOPBACK.at(family, NODE_PORT), 20);
        assert_eq!(pods(&answers).len(), 2, "{answers:?}");
        assert!(answers.iter().all(|answer| is_node(answer.client)), "{answers:?}");
        for client in [cluster.outside(), cluster.host(), cluster.pod(POD_9)] {
            reaches(&client, NODE.at(family, NODE_PORT));
            client.refused(Tcp, NODE_ETH1.at(family, NODE_PORT));
        }
    }
    let listeners = "kubeproxy_nftables_localhost_nodeport_listeners";
    for family in ["IPv4", "IPv6"] {
        let shown = metric(&cluster, &format!("{listeners}{{ip_family=\"{family}\"}}"));
        assert!(shown.is_some_and(|count| count >= 1.0), "{shown:?}");
    }
    cluster.write(&[web().endpoints([])]);
    for family in Family::BOTH {
        let closed = || cluster.host().attempt(Tcp, LOOPBACK.at(family, NODE_PORT)).is_err();
        eventually("the port is closed with the last endpoint", PROMPT, closed);
        cluster.host().refused(Tcp, LOOPBACK.at(family, NODE_PORT));
    }
}

pub(super) fn localhost_node_ports_are_served_in_the_families_that_name_localhost(cluster: Cluster) {
    let cluster = with(cluster, true, &["all", "127.0.0.1/32"]).running(&[web()]);
    reaches(&cluster.host(), LOOPBACK.at(Family::V4, NODE_PORT));
    cluster.host().refused(Tcp, LOOPBACK.at(Family::V6, NODE_PORT));
    for family in Family::BOTH {
        reaches(&cluster.host(), NODE_ETH1.at(family, NODE_PORT));
    }
}

pub(super) fn localhost_node_ports_follow_local_endpoints(cluster: Cluster) {
    let cluster = with(cluster, true, &["primary", "localhost"]).running(&[web().external_local()]);
    for family in Family::BOTH {
        let answers = cluster.host().reach_times(Tcp, LOOPBACK.at(family, NODE_PORT), 20);
        assert_eq!(pods(&answers).len(), 1, "{answers:?}");
    }
    cluster.write(&[web().external_local().endpoints([ready(FAR_5)])]);
    for family in Family::BOTH {
        let closed = || cluster.host().attempt(Tcp, LOOPBACK.at(family, NODE_PORT)).is_err();
        eventually("the port is closed with the last local endpoint", PROMPT, closed);
    }
}

/// Where the proxy runs UDP is rejected; with the gate alone TCP too; without it the kernel answers.
pub(super) fn localhost_node_ports_without_a_proxy_are_rejected_and_counted(cluster: Cluster) {
    let rejected = |cluster: &Cluster, protocol: &str| {
        let name = "kubeproxy_nftables_localhost_nodeport_rejected_packets_total";
        metric(cluster, &format!("{name}{{ip_family=\"IPv4\",protocol=\"{protocol}\"}}"))
    };
    let at = LOOPBACK.at(Family::V4, NODE_PORT);
    let cluster = with(cluster, true, &["primary", "localhost"]).running(&[web(), dns()]);
    cluster.host().refused(Udp, at);
    reaches(&cluster.host(), at);
    assert!(rejected(&cluster, "udp").is_some_and(|count| count >= 1.0), "{:?}", rejected(&cluster, "udp"));
    assert_eq!(rejected(&cluster, "tcp"), None);

    let cluster = restarted(cluster, true, &["primary"]);
    for protocol in [Tcp, Udp] {
        cluster.host().refused(protocol, at);
        cluster.host().refused(protocol, LOOPBACK.at(Family::V6, NODE_PORT));
    }
    assert!(rejected(&cluster, "tcp").is_some_and(|count| count >= 1.0), "{:?}", rejected(&cluster, "tcp"));

    // Upstream leaves the rejection of TCP in place here (142183).
    let cluster = restarted(cluster, true, &["primary", "localhost"]);
    eventually("the proxy listens", PROMPT, || cluster.host().attempt(Tcp, at).is_ok());
    reaches(&cluster.host(), at);
    cluster.host().refused(Udp, at);
    let cluster = restarted(cluster, false, &["primary"]);
    assert_eq!((rejected(&cluster, "tcp"), rejected(&cluster, "udp")), (None, None));
    for family in Family::BOTH {
        assert!(!cluster.table(family).contains("localhost-reject"), "{}", cluster.table(family));
    }
}

/// The same node with another configuration.
fn restarted(cluster: Cluster, gate: bool, addresses: &[&str]) -> Cluster {
    cluster.kill();
    let mut cluster = with(cluster, gate, addresses);
    cluster.set_mode(golden::case::Mode::Nftables);
    cluster.start();
    let synced = |family: &str| cluster.log().contains(&format!("{family}: synced all Service ports"));
    eventually("the new process has synced", SOON, || synced("IPv4") && synced("IPv6"));
    cluster
}
