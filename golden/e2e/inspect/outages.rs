//! Outages whose cause `diagnose` once missed, or named wrongly while a real connection said otherwise.

use std::path::Path;
use std::time::Duration;

use golden::apiserver::{Fault, Requests};
use golden::cluster::Protocol::Tcp;
use golden::cluster::{Cluster, Family, NODE, POD_5, Service, eventually, ready};
use golden::flavour::Flavour;
use golden::node::{NAME, Node};
use golden::sample::{service, slice};
use nix::sys::signal::Signal;
use serde_json::json;

use super::node::printed;

const BINARY: &str = env!("CARGO_BIN_EXE_kube-proxy");
const NODE_PORT: u16 = 30080;
const SOON: Duration = Duration::from_secs(30);

fn run(cluster: &Cluster, words: &str) -> (String, Option<i32>) {
    let mut command = cluster.node().command(BINARY);
    let output = command.envs(cluster.environment()).args(words.split_whitespace()).output().expect("it starts");
    (printed(&output), output.status.code())
}

#[test]
fn emptied_dispatch_of_nftables_mode_is_named_without_a_proxy() {
    let service = Service::new("web", 20).node_port(NODE_PORT).endpoints([ready(POD_5)]);
    let cluster_ip = service.address(Family::V4);
    let cluster = Cluster::new(Flavour::Nft, Path::new(BINARY)).configured("mode", json!("nftables"));
    let cluster = cluster.running(&[service]);
    let connect = || cluster.outside().attempt(Tcp, NODE.at(Family::V4, NODE_PORT)).map(|answer| answer.pod);
    assert_eq!(connect().as_deref(), Ok(POD_5.name));
    let words = "diagnose 192.168.50.2:30080 --from outside";
    assert_eq!(run(&cluster, words).1, Some(0));
    cluster.kill();
    let (said, status) = run(&cluster, words);
    assert!(status == Some(0) && said.contains("No running kube-proxy was found"), "{said}");
    let _ = cluster.on_node("nft flush chain ip kube-proxy services");
    assert!(connect().is_err(), "nothing sends packets to endpoints");
    // Packets for a node port meet no rule, those for a cluster IP the one that rejects what no Service has.
    let to_cluster_ip = format!("diagnose {} --from host", cluster_ip);
    for (target, cause) in [(words, "not-translated"), (&*to_cluster_ip, "rules-altered")] {
        let (said, status) = run(&cluster, target);
        assert!(status == Some(1) && said.contains(&format!("CAUSE {cause}")), "{target}: {said}");
    }
}

#[test]
fn name_of_no_node_is_named_where_no_endpoint_counts_as_local() {
    let mut node = Node::new(BINARY);
    let api = node.api_server_with_web(&["10.244.2.5"]);
    let mut web = service("web", "10.96.0.10");
    web["spec"]["type"] = json!("NodePort");
    web["spec"]["externalTrafficPolicy"] = json!("Local");
    web["spec"]["ports"][0]["nodePort"] = json!(NODE_PORT);
    api.apply(web);
    // The endpoint is on this node, and the proxy looks for another.
    let mut pods = slice("web-1", "web", &["10.244.2.5"]);
    pods["endpoints"][0]["nodeName"] = json!(NAME);
    api.apply(pods);
    node.start(&["--master", &api.url(), "--proxy-mode", "nftables", "--hostname-override", "elsewhere"]);
    let synced =
        || node.page("/metrics").is_some() && node.metric("kubeproxy_sync_proxy_rules_last_timestamp_seconds") > 0.0;
    eventually("it goes on without its Node", Duration::from_secs(60), synced);
    let output = node.netns().command(BINARY).args(["diagnose", "default/web"]).output().expect("it runs");
    let said = printed(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("CAUSE no-local-endpoints") && said.contains("there is no Node \"elsewhere\""), "{said}");
    assert!(said.contains("--hostname-override"), "{said}");
}

#[test]
fn proxy_that_was_started_and_reads_nothing_is_not_said_to_fail_in_syncs() {
    let mut node = Node::new(BINARY);
    let api = node.api_server_with_web(&["10.244.2.5"]);
    let arguments = ["--master", &api.url(), "--proxy-mode", "iptables"];
    node.start(&arguments);
    node.until_endpoints("default/web:http", &["10.244.2.5:8080"]);
    node.end(Signal::SIGTERM);
    api.inject(Fault::NoAnswer.on(Requests::All));
    node.start(&arguments);
    let diagnose = || {
        let mut command = node.netns().command(BINARY);
        printed(&command.args(["diagnose", "default/web"]).output().expect("it runs"))
    };
    eventually("diagnose says so", SOON, || diagnose().contains("CAUSE no-rules: the running kube-proxy has written"));
    let said = diagnose();
    assert!(!said.contains("sync-fails") && !said.contains("CAUSE rules-altered"), "{said}");
    assert!(!said.contains("CAUSE no-such-service"), "objects could not be read: {said}");
}

#[test]
fn node_without_a_route_to_its_services_is_not_called_healthy() {
    let service = Service::new("web", 20).endpoints([ready(POD_5)]);
    let cluster = Cluster::new(Flavour::Nft, Path::new(BINARY)).configured("mode", json!("iptables"));
    let cluster = cluster.running(std::slice::from_ref(&service));
    assert_eq!(run(&cluster, "diagnose default/web").1, Some(0));
    for route in ["del 10.96.0.0/16", "del default"] {
        let _ = cluster.on_node(&format!("ip route {route}"));
    }
    assert!(cluster.host().attempt(Tcp, service.address(Family::V4)).is_err());
    let (said, status) = run(&cluster, "diagnose default/web");
    assert!(status == Some(2) && said.contains("Network is unreachable"), "{said}");
}

#[test]
fn rate_limit_that_is_assumed_not_to_be_exceeded_is_said() {
    let service = Service::new("web", 20).node_port(NODE_PORT).endpoints([ready(POD_5)]);
    let cluster = Cluster::new(Flavour::Nft, Path::new(BINARY)).configured("mode", json!("iptables"));
    let cluster = cluster.running(&[service]);
    let connect = || cluster.outside().attempt(Tcp, NODE.at(Family::V4, NODE_PORT)).map(|answer| answer.pod);
    assert_eq!(connect().as_deref(), Ok(POD_5.name));
    let limit = "-m hashlimit --hashlimit-above 1/hour --hashlimit-burst 1 --hashlimit-mode srcip --hashlimit-name web";
    cluster.iptables(Family::V4, &format!("-I FORWARD -p tcp --syn {limit} -j DROP"));
    assert!((0..3).any(|_| connect().is_err()), "the second connection exceeds the rate");
    let (said, _) = run(&cluster, "diagnose 192.168.50.2:30080 --from outside");
    assert!(said.contains("Assumed: filter FORWARD") && said.contains("--hashlimit-above 1/hour"), "{said}");
}

#[test]
fn change_that_is_under_way_is_not_called_an_altered_rule() {
    let mut node = Node::new(BINARY);
    let api = node.api_server_with_web(&["10.244.2.5"]);
    node.start(&["--master", &api.url(), "--proxy-mode", "iptables", "--iptables-min-sync-period", "1s"]);
    node.until_endpoints("default/web:http", &["10.244.2.5:8080"]);
    let diagnose = || {
        let mut command = node.netns().command(BINARY);
        printed(&command.args(["diagnose", "default/web"]).output().expect("it runs"))
    };
    // Syncs are a second apart, so the second change of each pair waits.
    for number in 6..12 {
        api.apply(slice("web-1", "web", &[&format!("10.244.2.{number}")]));
        api.apply(slice("web-1", "web", &[&format!("10.244.3.{number}")]));
        let said = diagnose();
        assert!(!said.contains("CAUSE rules-altered"), "{said}");
    }
    let altered = "iptables -w -t nat -F KUBE-SERVICES";
    node.send(Signal::SIGSTOP);
    node.netns().run(altered);
    let said = diagnose();
    node.send(Signal::SIGCONT);
    assert!(said.contains("CAUSE rules-altered"), "what stays is one: {said}");
}

#[test]
fn node_port_of_another_node_is_not_said_to_be_no_service() {
    let service = Service::new("web", 20).node_port(NODE_PORT).endpoints([ready(POD_5)]);
    let cluster = Cluster::new(Flavour::Nft, Path::new(BINARY)).configured("mode", json!("iptables"));
    let cluster = cluster.running(&[service]);
    let (said, status) = run(&cluster, "diagnose 192.168.50.99:30080 --from host");
    assert!(status == Some(2) && said.contains("is no address of this node"), "{said}");
}
