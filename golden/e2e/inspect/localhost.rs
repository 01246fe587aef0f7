//! `diagnose` of node ports at loopback addresses in nftables mode (KEP-6032), beside real connections.

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use golden::cluster::Protocol::{Tcp, Udp};
use golden::cluster::{Cluster, Family, LOOPBACK, POD_5, Service, eventually, ready};
use golden::flavour::Flavour;
use serde_json::{Value, json};

use super::node::{diagnosis, json as parsed};

const BINARY: &str = env!("CARGO_BIN_EXE_kube-proxy");
const NODE_PORT: u16 = 30080;
const GATE: &str = "KubeProxyNFTablesLocalhostNodePorts";

/// A node in nftables mode with a TCP and a UDP Service at the same node port.
fn node(gate: bool, addresses: &[&str]) -> Cluster {
    let of = |name, number, protocol| {
        Service::new(name, number).protocol(protocol).node_port(NODE_PORT).endpoints([ready(POD_5)])
    };
    Cluster::new(Flavour::Nft, Path::new(BINARY))
        .configured("mode", json!("nftables"))
        .configured("featureGates", json!({ GATE: gate }))
        .configured("nodePortAddresses", json!(addresses))
        .running(&[of("web", 20, "TCP"), of("dns", 21, "UDP")])
}

fn run(cluster: &Cluster, words: &str) -> Output {
    let mut command = cluster.node().command(BINARY);
    command.envs(cluster.environment()).args(words.split_whitespace()).output().expect("it starts")
}

/// The causes, and what to do about the first one.
fn diagnose(cluster: &Cluster, target: &str) -> (Vec<String>, String) {
    let output = run(cluster, &format!("diagnose -o json {target}"));
    let (causes, status) = diagnosis(&output);
    assert_eq!(status, i32::from(!causes.is_empty()), "{causes:?}");
    (causes, parsed(&output)["findings"][0]["next"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn node_port_that_the_proxy_serves_on_localhost_has_no_cause() {
    let cluster = node(true, &["primary", "localhost"]);
    for family in Family::BOTH {
        let at = LOOPBACK.at(family, NODE_PORT);
        eventually("the proxy listens", Duration::from_secs(5), || cluster.host().attempt(Tcp, at).is_ok());
        assert_eq!(diagnose(&cluster, &at.to_string()).0, [""; 0], "{at}");
        // The rejected packet leaves a flow, which is not that of an endpoint.
        for _ in 0..2 {
            let (causes, next) = diagnose(&cluster, &format!("{at}/udp"));
            assert_eq!(causes, ["not-translated"], "{at}");
            assert!(next.contains("never serves UDP"), "{next}");
            cluster.host().refused(Udp, at);
        }
    }
}

#[test]
fn node_port_that_is_rejected_on_localhost_is_found() {
    let cluster = node(true, &["primary"]);
    let at = LOOPBACK.at(Family::V4, NODE_PORT);
    cluster.host().refused(Tcp, at);
    let (causes, next) = diagnose(&cluster, &at.to_string());
    assert_eq!(causes, ["not-translated"]);
    assert!(next.contains("add localhost to nodePortAddresses:"), "{next}");
}

#[test]
fn node_port_that_nothing_serves_on_localhost_is_found_and_the_feature_gate_is_named() {
    let cluster = node(false, &["primary", "localhost"]);
    let at = LOOPBACK.at(Family::V4, NODE_PORT);
    cluster.host().refused(Tcp, at);
    let (causes, next) = diagnose(&cluster, &at.to_string());
    assert_eq!(causes, ["not-translated"]);
    assert!(next.contains(&format!("localhost to nodePortAddresses and enable the feature gate {GATE}")), "{next}");
    // Upstream's chains have other names. A running proxy would repair the table.
    cluster.kill();
    cluster.node().run("nft add chain ip kube-proxy localhost-nodeport-reject-tcp");
    cluster.node().run("nft add rule ip kube-proxy localhost-nodeport-reject-tcp counter reject");
    cluster.node().run(&format!(
        "nft insert rule ip kube-proxy filter-output ip daddr 127.0.0.0/8 tcp dport {NODE_PORT} goto \
         localhost-nodeport-reject-tcp"
    ));
    let files = cluster.directory().display();
    let sources = format!("--config {files}/config.yaml --objects {files}/objects");
    let output = run(&cluster, &format!("diagnose -o json {at} {sources}"));
    let findings = parsed(&output)["findings"].as_array().cloned().unwrap_or_default();
    let rejected =
        |finding: &&Value| finding["evidence"].as_str().is_some_and(|text| text.contains("-nodeport-reject-tcp"));
    let found = findings.iter().find(rejected).unwrap_or_else(|| panic!("{findings:#?}"));
    assert_eq!((&found["cause"], &found["certain"]), (&json!("not-translated"), &json!(true)));
}

#[test]
fn obstacles_of_a_node_port_that_the_proxy_serves_on_localhost_are_named() {
    let cluster = node(true, &["primary", "localhost"]);
    let at = LOOPBACK.at(Family::V4, NODE_PORT);
    eventually("the proxy listens", Duration::from_secs(5), || cluster.host().attempt(Tcp, at).is_ok());
    // The proxy's own connections to endpoints leave by OUTPUT.
    let rule = "-p tcp -d 10.244.1.5 --dport 8080 -j REJECT";
    cluster.iptables(Family::V4, &format!("-I OUTPUT {rule}"));
    // The proxy takes the connection, and closes it without an endpoint.
    let answer = cluster.node().enter(|| {
        let (mut stream, mut answer) = (TcpStream::connect(at).expect("the proxy listens"), Vec::new());
        stream.read_to_end(&mut answer).map(|_| answer)
    });
    assert!(answer.as_ref().map_or(true, Vec::is_empty), "{answer:?}");
    assert_eq!(diagnose(&cluster, &at.to_string()).0, ["refused-by-others"]);
    cluster.iptables(Family::V4, &format!("-D OUTPUT {rule}"));
    assert_eq!(diagnose(&cluster, &at.to_string()).0, [""; 0]);
    cluster.kill();
    let files = cluster.directory().display();
    let stopped = format!("{at} --config {files}/config.yaml --objects {files}/objects");
    let (causes, next) = diagnose(&cluster, &stopped);
    assert_eq!(causes, ["not-translated"]);
    assert!(next.contains("no kube-proxy runs on this node"), "{next}");
    // What listens there now is no kube-proxy.
    let listener = cluster.node().enter(|| TcpListener::bind(at).expect("the port is free"));
    let (causes, _) = diagnose(&cluster, &stopped);
    assert_eq!(causes, ["diverted-by-others"]);
    let said = run(&cluster, &format!("diagnose {stopped}"));
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains(&format!("process {} (", std::process::id())), "{said}");
    drop(listener);
}

#[test]
fn family_without_services_has_no_unused_chains_and_no_emptied_map() {
    let cluster = node(true, &["primary"]);
    // The cluster's own Services are dual-stack.
    let objects = "kind: Service\nmetadata: {namespace: default, name: web}\nspec:\n  type: NodePort\n  clusterIP: \
                   10.96.0.20\n  clusterIPs: [10.96.0.20]\n  ipFamilies: [IPv4]\n  ports: [{name: p, port: 80, nodePort: \
                   30080, protocol: TCP}]\n---\nkind: EndpointSlice\nmetadata: {namespace: default, name: web-a, labels: \
                   {kubernetes.io/service-name: web}}\naddressType: IPv4\nports: [{name: p, port: 8080, protocol: TCP}]\n\
                   endpoints: [{addresses: [10.244.1.5]}]\n";
    let file = cluster.directory().join("objects/cluster.yaml");
    std::fs::write(cluster.directory().join("draft.yaml"), objects).expect("written");
    std::fs::rename(cluster.directory().join("draft.yaml"), file).expect("replaced");
    let has_service = || cluster.on_node("nft list map ip6 kube-proxy service-ips").contains("elements");
    eventually("IPv6 has no Service", Duration::from_secs(20), || !has_service());
    let listed = cluster.table(Family::V6);
    assert!(listed.contains("chain localhost-reject-tcp"), "{listed}");
    assert_eq!(diagnose(&cluster, "default/web").0, [""; 0]);
    let dump = parsed(&run(&cluster, "dump -o json"));
    assert_eq!(dump["unused_chains"], json!([]));
}
