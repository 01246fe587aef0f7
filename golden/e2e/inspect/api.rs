//! `dump` and `diagnose` with an API server that answers, refuses, hangs or dies half-way.
//!
//! The output must equal that with files; without an answer, the missing part must be reported in time with the rest.

use std::net::TcpListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use golden::apiserver::{ApiServer, Pace};
use golden::flavour::Flavour;
use serde_json::Value;

use super::node::{Node, diagnosis, json};

/// The time that a busy machine may take beyond the requested timeout.
const SLACK: Duration = Duration::from_secs(30);

/// A node and an API server on it that has the same objects as the file.
fn with_server(case: &str) -> (Node, ApiServer, PathBuf) {
    let node = Node::recorded(case, Flavour::Nft);
    let listener = node.lab.node().enter(|| TcpListener::bind("127.0.0.1:0").expect("a port"));
    let server = ApiServer::start_on(listener);
    server.load_yaml(&node.objects);
    let kubeconfig = server.kubeconfig(node.lab.dir());
    (node, server, kubeconfig)
}

/// The words for a server instead of files.
fn from(node: &Node, kubeconfig: &std::path::Path, timeout: &str) -> String {
    format!("--config {} --kubeconfig {} --timeout {timeout}", node.config.display(), kubeconfig.display())
}

#[test]
fn objects_of_a_server_and_of_files_give_the_same_dump() {
    let (node, _server, kubeconfig) = with_server("402-both-local");
    let source = from(&node, &kubeconfig, "60s");
    let same = |words: &str| {
        let [by_server, by_files] =
            [node.run(&format!("{words} {source}")), node.run_with_objects(words)].map(|output| {
                let mut shown = json(&output);
                // Asking a server makes connections of its own.
                shown["facts"]["conntrack"] = Value::Null;
                shown["facts"]["sysctls"]["net/netfilter/nf_conntrack_count"] = Value::Null;
                (shown, output.status.code())
            });
        assert_eq!(by_server, by_files, "{words}");
        by_server.0
    };
    let dump = same("dump -o json");
    assert_eq!((&dump["differences"], &dump["unread"]), (&Value::Array(vec![]), &Value::Array(vec![])));
    assert!(dump["services"].as_array().is_some_and(|all| all.iter().all(|service| service["known"] == true)));
    same("diagnose -o json default/with-local");
    same("diagnose -o json default/no-local");
    node.iptables("-t nat -F KUBE-SVL-3FNP6KDT3RDA4WFJ");
    assert!(same("dump -o json")["differences"].as_array().is_some_and(|all| !all.is_empty()));
    same("diagnose -o json default/with-local");
}

/// Whether what is unread says all of this; the Service ports that rules tell of are there all the same, in time.
fn says(node: &Node, source: &str, words: &[&str]) {
    let started = Instant::now();
    let output = node.run(&format!("dump -o json {source}"));
    assert!(started.elapsed() < SLACK, "{words:?}: {:?}", started.elapsed());
    let dump = json(&output);
    assert!(output.status.success());
    let why = dump["unread"][0]["why"].as_str().unwrap_or_default();
    assert!(dump["unread"][0]["what"] == "objects" && words.iter().all(|word| why.contains(word)), "{words:?}: {why}");
    assert_eq!(dump["differences"], Value::Null);
    let services = dump["services"].as_array().expect("services");
    assert!(services.iter().any(|service| service["name"] == "default/local:http"), "{services:?}");
    assert_eq!(dump["facts"]["mode"], "iptables");
}

#[test]
fn unresponsive_server_is_reported_and_the_rest_is_shown() {
    let (node, server, kubeconfig) = with_server("003-clusterip-1-endpoint");
    let source = from(&node, &kubeconfig, "1s");
    let all = "no complete list of Services, EndpointSlices, Nodes within 1s";
    server.set_pace(Pace::Silent);
    says(&node, &source, &[all]);
    // The rules show no cause, but one may lie in the objects: status 2.
    let output = node.run(&format!("diagnose -o json default/local {source}"));
    assert_eq!(diagnosis(&output), (vec![], 2));
    assert!(json(&output)["unread"][0]["why"].as_str().is_some_and(|why| why.contains(all)));
    server.set_pace(Pace::HalfBody);
    says(&node, &source, &[all]);
    server.set_pace(Pace::Normal);
    server.require_token(Some("secret"));
    says(&node, &source, &[all, ": 401 Unauthorized"]);
    server.down();
    says(&node, &source, &[all, "connection refused"]);
    server.up();
    server.require_token(None);
    server.fail_next_of("EndpointSlice", usize::MAX, 403);
    let source = from(&node, &kubeconfig, "5s");
    says(&node, &source, &["no complete list of EndpointSlices within 5s: http://", ": 403 Forbidden"]);
}

#[test]
fn server_that_dies_during_a_list_is_reported_and_the_rest_is_shown() {
    let (node, server, kubeconfig) = with_server("003-clusterip-1-endpoint");
    server.set_pace(Pace::HalfBody);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            server.wait_for_requests("lists of all kinds", |requests| {
                ["/services", "/endpointslices", "/nodes"]
                    .iter()
                    .all(|end| requests.iter().any(|request| request.path.ends_with(end)))
            });
            server.down();
        });
        says(
            &node,
            &from(&node, &kubeconfig, "3s"),
            &["no complete list of Services, EndpointSlices, Nodes within 3s: "],
        );
    });
}
