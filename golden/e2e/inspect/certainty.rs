//! Obstacles that the rules themselves do not show: the commands name them, or say that they are not certain.

use std::io::Write;
use std::path::Path;
use std::process::{Child, Output, Stdio};
use std::time::Duration;

use golden::apiserver::End;
use golden::cluster::Protocol::Tcp;
use golden::cluster::{Cluster, Failure, Family, NODE, POD_5, POD_6, Service, eventually, ready};
use golden::flavour::Flavour;
use golden::netns::Netns;
use golden::node::Node;
use golden::sample::slice;
use golden::tools::{ToolFault, Tools};
use serde_json::{Value, json};

use super::node::{diagnosis, json as parsed, printed};

const BINARY: &str = env!("CARGO_BIN_EXE_kube-proxy");
const NODE_PORT: u16 = 30080;
const SOON: Duration = Duration::from_secs(30);

fn cluster(mode: &str) -> Cluster {
    let quick = json!({ "syncPeriod": "1s", "minSyncPeriod": "100ms" });
    Cluster::new(Flavour::Nft, Path::new(BINARY)).configured("mode", json!(mode)).configured(mode, quick)
}

fn web() -> Service {
    Service::new("web", 20).node_port(NODE_PORT).endpoints([ready(POD_5)])
}

fn run(cluster: &Cluster, words: &str) -> Output {
    let mut command = cluster.node().command(BINARY);
    command.envs(cluster.environment()).args(words.split_whitespace()).output().expect("it starts")
}

/// A connection from outside to the node port.
fn connect(cluster: &Cluster) -> Result<String, Failure> {
    cluster.outside().attempt(Tcp, NODE.at(Family::V4, NODE_PORT)).map(|answer| answer.pod)
}

const DIAGNOSE: &str = "diagnose 192.168.50.2:30080 --from outside";
const TRACE: &str = "trace --from outside --to 192.168.50.2:30080";

/// Has nft read lines.
fn nft(netns: &Netns, text: &str) {
    let mut tool = netns.command("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().expect("nft");
    tool.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("it reads");
    assert!(tool.wait().expect("it ends").success(), "{text}");
}

#[test]
fn dormant_nat_table_of_iptables_is_named_and_logged() {
    let cluster = cluster("iptables").running(&[web()]);
    assert_eq!(connect(&cluster).as_deref(), Ok(POD_5.name));
    nft(cluster.node(), "add table ip nat { flags dormant; }\n");
    assert!(connect(&cluster).is_err(), "the kernel runs chains of a dormant table");
    let (causes, status) = diagnosis(&run(&cluster, &format!("{DIAGNOSE} -o json")));
    assert_eq!((&*causes[0], status), ("rules-altered", 1), "{causes:?}");
    let said = printed(&run(&cluster, DIAGNOSE));
    assert!(said.contains("table ip nat is dormant") && said.contains("nft add table ip nat"), "{said}");
    let traced = parsed(&run(&cluster, &format!("{TRACE} -o json")));
    assert_eq!(traced["branches"][0]["verdict"], "untouched", "{traced:#}");
    assert_eq!(traced["dormant_tables"], json!(["ip nat"]), "{traced:#}");
    let said = printed(&run(&cluster, TRACE));
    assert!(said.contains("table ip nat is dormant: the kernel runs none of its chains"), "{said}");
    let logged = |words: &str| cluster.log().lines().any(|line| line.contains(words));
    eventually("the log names the table", SOON, || logged("nf_tables table ip nat is dormant"));
    nft(cluster.node(), "add table ip nat\n");
    assert_eq!(connect(&cluster).as_deref(), Ok(POD_5.name));
    eventually("the log says that it is over", SOON, || logged("nf_tables table ip nat is no longer dormant"));
    assert_eq!(diagnosis(&run(&cluster, &format!("{DIAGNOSE} -o json"))).1, 0);
}

#[test]
fn dormant_table_of_nftables_mode_is_activated_again() {
    let cluster = cluster("nftables").running(&[web()]);
    nft(cluster.node(), "add table ip kube-proxy { flags dormant; }\n");
    eventually("the log names the table", SOON, || cluster.log().contains("the table is dormant"));
    eventually("packets meet the rules", SOON, || connect(&cluster).as_deref() == Ok(POD_5.name));
}

/// A table of that name that belongs to the returned process.
fn owned_table(netns: &Netns, table: &str) -> Child {
    let mut owner = netns.command("nft").arg("-i").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("nft");
    let mut input = owner.stdin.take().expect("a pipe");
    writeln!(input, "add table {table} {{ flags owner; }}").expect("it reads");
    owner.stdin = Some(input);
    let is_there = || netns.try_run(&format!("nft list table {table}")).status.success();
    eventually("the table is there", SOON, is_there);
    owner
}

#[test]
fn nat_table_that_another_process_owns_is_named_and_retried() {
    for backend in ["native", "programs"] {
        let mut node = Node::new(BINARY);
        let api = node.api_server_with_web(&["10.244.2.5"]);
        let mut owner = owned_table(node.netns(), "ip nat");
        let url = api.url();
        node.start(&["--master", &url, "--proxy-mode", "iptables", "--iptables-backend", backend, "-v=2"]);
        node.until_logged(&["IPv4: sync failed", "nf_tables table ip nat belongs to another process"]);
        assert!(!node.log().contains("CONFIG_NF_TABLES"), "{}", node.log());
        let output = node.netns().command(BINARY).args(["diagnose", "default/web"]).output().expect("it runs");
        let said = printed(&output);
        assert!(said.contains("table ip nat belongs to another process"), "{said}");
        assert_eq!(output.status.code(), Some(1), "{said}");
        owner.kill().expect("killed");
        owner.wait().expect("ended");
        node.until_endpoints("default/web:http", &["10.244.2.5:8080"]);
    }
}

#[test]
fn syncs_that_fail_for_another_reason_are_found_by_the_metrics() {
    let mut node = Node::new(BINARY);
    let api = node.api_server_with_web(&["10.244.2.5"]);
    let (tools, url) = (Tools::new(node.dir()), api.url());
    let path = format!("PATH={}", tools.path());
    let arguments =
        ["--master", &url, "--proxy-mode", "iptables", "--iptables-backend=programs", "--iptables-min-sync-period=0s"];
    node.start_by(&["env", &path], &arguments);
    node.until_endpoints("default/web:http", &["10.244.2.5:8080"]);
    let diagnose = || {
        let output =
            node.netns().command(BINARY).args(["diagnose", "default/web", "-o", "json"]).output().expect("it runs");
        diagnosis(&output).0
    };
    assert!(!diagnose().contains(&"sync-fails".to_owned()));
    tools.fault("tables-restore", ToolFault::Fail);
    api.apply(slice("web-1", "web", &["10.244.2.6"]));
    node.until_logged(&["sync failed"]);
    node.until("diagnose says so", || diagnose().contains(&"sync-fails".to_owned()));
}

#[test]
fn rules_of_older_objects_are_not_called_altered_while_the_proxy_cannot_read_new_ones() {
    let mut node = Node::new(BINARY);
    let api = node.api_server_with_web(&["10.244.2.5"]);
    node.start(&["--master", &api.url(), "--proxy-mode", "iptables"]);
    node.until_endpoints("default/web:http", &["10.244.2.5:8080"]);
    // As after the rotation of a token that the proxy does not take: 401 from now on, and the objects change.
    api.require_token(Some("new"));
    for kind in ["Node", "Service", "EndpointSlice"] {
        api.end_watches_of(kind, End::Clean);
    }
    node.until_logged(&["Failed to watch EndpointSlices", "401"]);
    api.apply(slice("web-1", "web", &["10.244.2.6"]));
    let kubeconfig = api.kubeconfig(node.dir());
    let diagnose = || {
        let mut command = node.netns().command(BINARY);
        command
            .args(["diagnose", "default/web", "-o", "wide", "--kubeconfig"])
            .arg(&kubeconfig)
            .output()
            .expect("it runs")
    };
    node.until("diagnose says so", || printed(&diagnose()).contains("CAUSE watch-fails: the running kube-proxy"));
    let said = printed(&diagnose());
    assert!(said.contains("EndpointSlices") && !said.contains("CAUSE rules-altered"), "{said}");
    assert!(said.contains("10.244.2.6"), "the difference is shown: {said}");
    api.require_token(None);
    node.until_endpoints("default/web:http", &["10.244.2.6:8080"]);
    node.until("it is over", || !printed(&diagnose()).contains("watch-fails"));
}

#[test]
fn proxy_that_has_written_nothing_yet_is_not_taken_for_one_that_does_not_run() {
    let mut node = Node::new(BINARY);
    let api = node.api_server_with_web(&["10.244.2.5"]);
    let url = api.url();
    // It waits for a Node of this name.
    node.start(&["--master", &url, "--proxy-mode", "iptables", "--hostname-override", "elsewhere", "-v=2"]);
    node.until_logged(&["Waiting up to", "elsewhere"]);
    let output = node.netns().command(BINARY).args(["diagnose", "default/web"]).output().expect("it runs");
    let said = printed(&output);
    assert!(said.contains("CAUSE no-rules: kube-proxy runs on this node (process"), "{said}");
    assert!(!said.contains("no-proxy") && !said.contains("sync-fails"), "{said}");
    assert_eq!(output.status.code(), Some(1), "{said}");
}

/// The endpoints that a trace says packets may end at: those of its branches, and those of its doubts.
fn ends(traced: &Value) -> Vec<String> {
    let to = |value: &Value| value["to"].as_str().unwrap_or_default().to_owned();
    let branches = traced["branches"].as_array().expect("branches");
    let doubts = branches.iter().flat_map(|branch| branch["doubts"].as_array().into_iter().flatten());
    let otherwise = doubts.flat_map(|doubt| doubt["otherwise"].as_array().into_iter().flatten());
    branches.iter().chain(otherwise).map(to).collect()
}

#[test]
fn order_of_legacy_and_nf_tables_rules_is_a_doubt_where_it_decides() {
    let rule = "iptables-legacy -t nat -A PREROUTING -p tcp --dport 30080 -j DNAT --to-destination 10.244.1.6:8080";
    for mode in ["iptables", "nftables"] {
        let mut reached = Vec::new();
        for legacy_first in [true, false] {
            let cluster = cluster(mode);
            if legacy_first {
                let _ = cluster.on_node(rule);
            }
            let cluster = cluster.running(&[web()]);
            if !legacy_first {
                let _ = cluster.on_node(rule);
            }
            let pod = connect(&cluster).expect("an answer");
            let traced = parsed(&run(&cluster, &format!("{TRACE} -o json")));
            assert_eq!(traced["certain"], false, "{traced:#}");
            let address = if pod == POD_6.name { "10.244.1.6:8080" } else { "10.244.1.5:8080" };
            assert!(ends(&traced).iter().any(|end| end == address), "packets reach {pod}: {traced:#}");
            assert_eq!(run(&cluster, TRACE).status.code(), Some(2));
            let (causes, status) = diagnosis(&run(&cluster, &format!("{DIAGNOSE} -o json")));
            assert_eq!(status, 2, "{causes:?}");
            let said = printed(&run(&cluster, DIAGNOSE));
            assert!(said.contains("if legacy iptables runs before nf_tables"), "{said}");
            // What neither rule decides is certain.
            let other = run(&cluster, &format!("trace --from host --to {}", web().address(Family::V4)));
            assert_eq!(other.status.code(), Some(0), "{}", printed(&other));
            reached.push(pod);
        }
        // The kernel runs the chain that was registered last first.
        assert_eq!(reached, [POD_5.name, POD_6.name], "{mode}");
    }
}

/// Holds a trace against where packets end: it is right and certain, or says that the order of tables decides and has that
/// end among the others. Returns whether it is certain.
fn is_certain_of(cluster: &Cluster, reached: Option<&str>) -> bool {
    let output = run(cluster, &format!("{TRACE} -o json"));
    let traced = parsed(&output);
    let certain = traced["certain"].as_bool().expect("certain");
    let mut ends = ends(&traced);
    if certain {
        ends.truncate(1);
    }
    let address = reached.map_or("", |pod| if pod == POD_6.name { "10.244.1.6:8080" } else { "10.244.1.5:8080" });
    assert!(ends.iter().any(|end| end == address), "packets reach {reached:?}: {traced:#}");
    assert_eq!(output.status.code(), Some(if certain { 0 } else { 2 }), "{traced:#}");
    if !certain {
        let said = printed(&run(cluster, DIAGNOSE));
        assert!(said.contains("runs before others at equal priority"), "{said}");
    }
    certain
}

#[test]
fn order_of_nat_chains_of_several_tables_is_a_doubt_where_it_decides() {
    let chain = "add chain ip early pre { type nat hook prerouting priority -100; }\n\
                 add rule ip early pre tcp dport 30080 dnat to 10.244.1.6:8080\n";
    for mode in ["iptables", "nftables"] {
        let mut reached = Vec::new();
        // The table is the older one both times: its handle does not tell when the chain was registered.
        for chain_first in [true, false] {
            let cluster = cluster(mode);
            nft(cluster.node(), "add table ip early\n");
            if chain_first {
                nft(cluster.node(), chain);
            }
            let cluster = cluster.running(&[web()]);
            if !chain_first {
                nft(cluster.node(), chain);
            }
            let pod = connect(&cluster).expect("an answer");
            is_certain_of(&cluster, Some(&pod));
            // What neither chain decides is certain.
            let other = run(&cluster, &format!("trace --from host --to {}", web().address(Family::V4)));
            assert_eq!(other.status.code(), Some(0), "{}", printed(&other));
            reached.push(pod);
        }
        // The kernel runs the chain that was registered last first.
        assert_eq!(reached, [POD_5.name, POD_6.name], "{mode}");
    }
}

#[test]
fn order_of_filter_chains_of_several_tables_is_read_from_the_kernel_or_a_doubt() {
    let chain = |table, rule| {
        format!(
            "add chain ip {table} forward {{ type filter hook forward priority 10; }}\nadd rule ip {table} forward {rule}\n"
        )
    };
    let (sets, drops) = (chain("marker", "meta mark set 7"), chain("dropper", "meta mark 7 drop"));
    let mut certain = Vec::new();
    for (first, second, is_dropped) in [(&drops, &sets, true), (&sets, &drops, false)] {
        let cluster = cluster("nftables").running(&[web()]);
        nft(cluster.node(), "add table ip marker\nadd table ip dropper\n");
        nft(cluster.node(), first);
        nft(cluster.node(), second);
        let reached = connect(&cluster);
        assert_eq!(reached.is_err(), is_dropped, "the chain that was registered last runs first: {reached:?}");
        certain.push(is_certain_of(&cluster, reached.as_deref().ok()));
    }
    // A kernel that lists its hooks leaves no doubt.
    assert_eq!(certain[0], certain[1]);
    if let Ok(wanted) = std::env::var("KERNEL_LISTS_HOOKS") {
        assert_eq!(certain[0], wanted == "1", "what the kernel lists");
    }
}

#[test]
fn chain_at_the_endpoints_interface_is_a_doubt() {
    let cluster = cluster("nftables").running(&[web()]);
    assert_eq!(run(&cluster, TRACE).status.code(), Some(0));
    let route = cluster.on_node("ip -o route get 10.244.1.5");
    let device = route.split(" dev ").nth(1).and_then(|rest| rest.split(' ').next()).expect("a device");
    for hook in ["egress", "ingress"] {
        let guard = format!(
            "table netdev guard {{\nchain {hook} {{\ntype filter hook {hook} device \"{device}\" priority 0\n\
             tcp dport 8080 drop\ntcp sport 8080 drop\n}}\n}}\n"
        );
        nft(cluster.node(), &guard);
        assert_eq!(connect(&cluster), Err(Failure::Dropped), "{hook}");
        let traced = run(&cluster, TRACE);
        let said = printed(&traced);
        assert_eq!(traced.status.code(), Some(2), "{said}");
        assert!(said.contains(&format!("unless chain netdev guard {hook} decides otherwise")), "{said}");
        let said = printed(&run(&cluster, DIAGNOSE));
        assert!(said.contains(&format!("meets chain netdev guard {hook}")), "{said}");
        assert_eq!(diagnosis(&run(&cluster, &format!("{DIAGNOSE} -o json"))).1, 2);
        nft(cluster.node(), "delete table netdev guard\n");
    }
}

#[test]
fn rules_that_drop_replies_are_named_and_those_that_accept_them_are_not() {
    for mode in ["iptables", "nftables"] {
        let cluster = cluster(mode).running(&[web()]);
        let healthy = || {
            assert_eq!(connect(&cluster).as_deref(), Ok(POD_5.name));
            let output = run(&cluster, DIAGNOSE);
            let said = printed(&output);
            assert!(output.status.code() == Some(0) && !said.contains("Replies are not checked"), "{said}");
            assert_eq!(parsed(&run(&cluster, &format!("{DIAGNOSE} -o json")))["replies_checked"], true);
        };
        healthy();
        // As a firewall that accepts what is established.
        cluster.iptables(Family::V4, "-P FORWARD DROP");
        cluster.iptables(Family::V4, "-I FORWARD -p tcp --dport 8080 -j ACCEPT");
        let established = "FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT";
        cluster.iptables(Family::V4, &format!("-I {established}"));
        healthy();
        let is_dropped = |words: &str| {
            assert_eq!(connect(&cluster), Err(Failure::Dropped));
            let (causes, status) = diagnosis(&run(&cluster, &format!("{DIAGNOSE} -o json")));
            assert_eq!((&*causes, status), (&["reply-refused".to_owned()][..], 1), "{mode}");
            let said = printed(&run(&cluster, DIAGNOSE));
            assert!(said.contains("this is a reply") && said.contains(words), "{said}");
        };
        // kube-proxy's own rules accept replies in iptables mode.
        if mode == "nftables" {
            cluster.iptables(Family::V4, &format!("-D {established}"));
            is_dropped("policy of a built-in chain");
            cluster.iptables(Family::V4, &format!("-I {established}"));
        }
        cluster.iptables(Family::V4, "-I FORWARD -p tcp --sport 8080 -j DROP");
        is_dropped("--sport 8080");
        // A trace follows the first packet alone.
        let traced = run(&cluster, TRACE);
        assert!(printed(&traced).contains("Replies are not checked"));
        assert_eq!(parsed(&run(&cluster, &format!("{TRACE} -o json")))["replies_checked"], false);
        cluster.iptables(Family::V4, "-D FORWARD -p tcp --sport 8080 -j DROP");
        healthy();
        // What conntrack does not see is not translated back.
        cluster.iptables(Family::V4, "-t raw -I PREROUTING -p tcp --sport 8080 -j NOTRACK");
        assert_eq!(connect(&cluster), Err(Failure::Dropped));
        assert_eq!(parsed(&run(&cluster, &format!("{DIAGNOSE} -o json")))["replies_checked"], false);
    }
}

#[test]
fn missing_rights_are_named() {
    let cluster = cluster("iptables").running(&[web()]);
    for words in ["diagnose default/web", TRACE] {
        let line = format!("setpriv --reuid 65534 --regid 65534 --clear-groups {BINARY} {words}");
        let output = cluster.node().try_run(&line);
        let said = printed(&output) + &String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("CAP_NET_ADMIN") && !said.contains("nf_tables changed"), "{said}");
        if words.starts_with("diagnose") {
            assert_eq!(output.status.code(), Some(2), "{said}");
            assert!(!said.contains("CAUSE"), "{said}");
        }
    }
}
