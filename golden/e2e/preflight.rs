//! `kube-proxy preflight` beside a running kube-proxy, in network namespaces.

use std::path::Path;
use std::process::Output;

use golden::cluster::{Cluster, FAR_5, POD_5, Service, ready};
use golden::flavour::Flavour;
use serde_json::{Value, json};

const BINARY: &str = env!("CARGO_BIN_EXE_kube-proxy");

fn preflight(cluster: &Cluster, arguments: &[&str]) -> Output {
    let mut command = cluster.node().command(BINARY);
    command.envs(cluster.environment()).arg("preflight").args(arguments).output().expect("it starts")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn web() -> Service {
    Service::new("web", 20).node_port(30080).endpoints([ready(POD_5), ready(FAR_5)])
}

#[test]
fn preflight_in_iptables_mode_lists_changes_by_service_and_changes_nothing() {
    let cluster = Cluster::new(Flavour::Nft, Path::new(BINARY)).running(&[web()]);
    for line in ["-P FORWARD DROP", "-t nat -N CNI-MINE", "-t nat -A CNI-MINE -j KUBE-MARK-MASQ"] {
        cluster.node().run(&format!("iptables-nft {line}"));
    }
    let before = cluster.on_node("nft list tables");
    let output = preflight(&cluster, &["nftables", "-o", "json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output)));
    assert_eq!(output.status.code(), Some(1), "{report:#}");
    assert_eq!((&report["from"], &report["to"]), (&json!("iptables"), &json!("nftables")));
    let find = |id: &str| {
        let all = report["differences"].as_array().expect("a list");
        all.iter().find(|found| found["id"] == id).unwrap_or_else(|| panic!("no {id}: {report:#}")).clone()
    };
    assert_eq!(find("localhost-node-ports")["services"], json!(["default/web:p 30080/tcp"]));
    assert_eq!(find("node-port-addresses")["services"], json!(["default/web:p 30080/tcp"]));
    assert_eq!(find("forward-drop")["severity"], "changes");
    assert!(find("foreign-jumps")["what"].as_str().is_some_and(|what| what.contains("-A CNI-MINE -j KUBE-MARK-MASQ")));
    assert_eq!(cluster.on_node("nft list tables"), before);
}

#[test]
fn preflight_on_a_prepared_node_exits_with_0() {
    let cluster = Cluster::new(Flavour::Nft, Path::new(BINARY));
    let cluster = cluster.configured("nodePortAddresses", json!(["192.168.50.0/24", "fd00:50::/64"])).running(&[web()]);
    let output = preflight(&cluster, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(text(&output).starts_with("Node node-a: from iptables mode to nftables mode\n"), "{}", text(&output));
}
