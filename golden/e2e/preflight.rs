//! `kube-proxy preflight` beside a running kube-proxy, in network namespaces.

use std::path::Path;
use std::process::Output;
use std::time::Duration;

use golden::case::Mode;
use golden::cluster::Protocol::Tcp;
use golden::cluster::{Cluster, FAR_5, Family, NODE, POD_5, Service, eventually, is_node, ready};
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
    let foreign = "-t nat -A PREROUTING -i tun0 -j KUBE-MARK-MASQ";
    for line in ["-P FORWARD DROP", "-t nat -N CNI-MINE", "-t nat -A CNI-MINE -j KUBE-MARK-MASQ", foreign] {
        cluster.node().run(&format!("iptables-nft {line}"));
    }
    cluster.node().run("nft add chain ip nat mine { type nat hook prerouting priority -90 ; }");
    cluster.node().run("nft add rule ip nat mine iifname tun1 jump KUBE-SERVICES");
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
    let jumps = find("foreign-jumps")["what"].as_str().unwrap_or_default().to_owned();
    assert!(jumps.starts_with("3 rules of other programs"), "{jumps}");
    assert_eq!(cluster.on_node("nft list tables"), before);
}

#[test]
fn preflight_on_a_prepared_node_exits_with_0() {
    let cluster = Cluster::new(Flavour::Nft, Path::new(BINARY));
    let cluster = cluster.configured("nodePortAddresses", json!(["192.168.50.0/24", "fd00:50::/64"])).running(&[web()]);
    let output = preflight(&cluster, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert_eq!(text(&output), "Node node-a: from iptables mode to nftables mode\nNothing will behave otherwise.\n");
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn preflight_beside_ipvs_mode_names_what_only_virtual_servers_do_and_changes_nothing() {
    let ipvs =
        json!({ "scheduler": "sh", "strictARP": true, "excludeCIDRs": ["198.51.100.0/24"], "tcpTimeout": "900s" });
    let mut cluster = Cluster::new(Flavour::Nft, Path::new(BINARY)).configured("ipvs", ipvs);
    cluster.set_mode(Mode::Ipvs);
    let cluster = cluster.running(&[web()]);
    let state = || ["ipvsadm -S -n", "ipset list -n", "nft list tables"].map(|command| cluster.on_node(command));
    let before = state();
    assert!(before[0].contains("-s sh"), "{}", before[0]);
    let output = preflight(&cluster, &["nftables", "-o", "json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output)));
    assert_eq!(output.status.code(), Some(1), "{report:#}");
    assert_eq!((&report["from"], &report["to"]), (&json!("ipvs"), &json!("nftables")));
    let differences = report["differences"].as_array().expect("a list");
    for (id, word) in [
        ("scheduler", "scheduler sh"),
        ("exclude-cidrs", "198.51.100.0/24"),
        ("strict-arp", "ARP"),
        ("ipvs-timeouts", "conntrack"),
        ("node-port-addresses", ""),
    ] {
        let found = differences.iter().find(|found| found["id"] == id).unwrap_or_else(|| panic!("no {id}: {report:#}"));
        assert!(found["what"].as_str().is_some_and(|what| what.contains(word)), "{found:#}");
    }
    assert_eq!(state(), before);
}

#[test]
fn what_cannot_be_read_is_unknown_and_blocks_nothing() {
    let cluster = Cluster::new(Flavour::Nft, Path::new(BINARY));
    let cluster = cluster.configured("nodePortAddresses", json!(["192.168.50.0/24", "fd00:50::/64"])).running(&[web()]);
    // Root without CAP_NET_ADMIN still sees the files of the proxy.
    let denied = format!("setpriv --bounding-set -net_admin --inh-caps -net_admin {BINARY} preflight");
    let output = cluster.node().try_run(&denied);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(!said.contains("BLOCKS") && !said.contains("Nothing"), "{said}");
    for unread in ["the kernel's support of nftables mode for IPv4", "packets that nfacct counted"] {
        assert!(said.replace("\n  ", " ").contains(&format!("UNREAD {unread}: ")), "{said}");
    }
}

#[test]
fn settings_of_the_section_nftables_are_read_from_the_file_of_the_running_proxy() {
    let periods = |section: &str| {
        let cluster = Cluster::new(Flavour::Nft, Path::new(BINARY))
            .configured("nodePortAddresses", json!(["192.168.50.0/24", "fd00:50::/64"]))
            .configured("nftables", json!({ "syncPeriod": section, "minSyncPeriod": "100ms" }))
            .running(&[web()]);
        text(&preflight(&cluster, &[]))
    };
    assert!(!periods("5m").contains("section"), "{}", periods("5m"));
    let text = periods("1m");
    assert!(text.contains("Set: nftables.syncPeriod: 5m0s"), "{text}");
}

/// `preflight` beside what packets meet: the policy with and without the rule that it advises, and other tables.
#[test]
fn firewall_that_forwards_connections_of_services_in_nftables_mode_is_no_difference() {
    let cluster = Cluster::new(Flavour::Nft, Path::new(BINARY));
    let mut cluster =
        cluster.configured("nodePortAddresses", json!(["192.168.50.0/24", "fd00:50::/64"])).running(&[web()]);
    let found = |cluster: &Cluster| {
        let output = preflight(cluster, &["-o", "json"]);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output)));
        let differences = report["differences"].as_array().expect("a list").iter();
        differences.map(|found| found["id"].as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    let at = NODE.at(Family::V4, 30080);
    let iptables = |cluster: &Cluster, line: &str| cluster.iptables(Family::V4, line);
    // A table of nf_tables counts in every mode alike.
    cluster.node().run("nft add table inet fence");
    cluster.node().run("nft add chain inet fence forward { type filter hook forward priority 10 ; policy drop ; }");
    assert_eq!(found(&cluster), [""; 0]);
    cluster.outside().dropped(Tcp, at);
    cluster.node().run("nft delete table inet fence");
    for (add, delete) in [("-P FORWARD DROP", "-P FORWARD ACCEPT"), ("-A FORWARD -j REJECT", "-D FORWARD -j REJECT")] {
        iptables(&cluster, add);
        assert!(is_node(cluster.outside().reach(Tcp, at).client));
        assert_eq!(found(&cluster), ["forward-drop"], "{add}");
        iptables(&cluster, delete);
    }
    iptables(&cluster, "-A FORWARD -m conntrack --ctstate DNAT,RELATED,ESTABLISHED -j ACCEPT");
    iptables(&cluster, "-P FORWARD DROP");
    assert_eq!(found(&cluster), [""; 0]);
    // In nftables mode it is as was said.
    cluster.kill();
    cluster.set_mode(Mode::Nftables);
    cluster.start();
    eventually("iptables mode's rules are gone", Duration::from_secs(20), || {
        !cluster.rules(Family::V4, "filter").has_chain("KUBE-FORWARD")
    });
    assert!(is_node(cluster.outside().reach(Tcp, at).client));
    iptables(&cluster, "-D FORWARD -m conntrack --ctstate DNAT,RELATED,ESTABLISHED -j ACCEPT");
    cluster.outside().dropped(Tcp, at);
}
