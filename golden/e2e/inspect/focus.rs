//! One Service among many: its output equals its part of the whole output, and no more is read.

use std::net::TcpListener;

use golden::apiserver::{ApiServer, Request};
use golden::flavour::Flavour;
use serde_json::Value;

use super::node::{Node, json};

const CASE: &str = "402-both-local";
const SERVICE: &str = "default/with-local";

fn differences(dump: &Value) -> Vec<Value> {
    dump["differences"].as_array().unwrap_or_else(|| panic!("no differences: {dump:#}")).clone()
}

/// The entries of a Service, and the entries of all Services.
fn of(service: &str, all: &[Value]) -> Vec<Value> {
    let port = format!("{service}:");
    let is_of = |one: &&Value| one["service"].as_str().is_none_or(|name| name.starts_with(&port));
    all.iter().filter(is_of).cloned().collect()
}

/// Damages what the Service has, what another has, and what all have.
fn damage(node: &Node, flavour: Flavour) {
    let rules = node.lab.node().run(&format!("iptables-{flavour}-save -t nat"));
    let chain = |what: &str| {
        let rule = rules.lines().find(|line| line.starts_with("-A") && line.contains(what));
        rule.and_then(|rule| rule.split(' ').nth(1)).unwrap_or_else(|| panic!("no {what}")).to_owned()
    };
    node.iptables(&format!("-t nat -D {} 2", chain("--to-destination 10.244.2.5:8080")));
    node.iptables("-t nat -I KUBE-SERVICES -d 10.96.10.11/32 -p tcp -m tcp --dport 80 -j RETURN");
    node.iptables("-t nat -A KUBE-POSTROUTING -s 203.0.113.1 -j RETURN");
    node.iptables("-F KUBE-FORWARD");
    // Comments have blanks, so the rules go by their numbers.
    for what in ["default/no-local:http", "default/with-local:http loadbalancer IP"] {
        let listed = node.lab.node().run(&format!("iptables-{flavour} -w 5 -t nat -S KUBE-SERVICES"));
        let at = listed.lines().filter(|line| line.starts_with("-A")).position(|line| line.contains(what));
        let at = at.unwrap_or_else(|| panic!("no {what}: {listed}"));
        node.iptables(&format!("-t nat -D KUBE-SERVICES {}", at + 1));
    }
}

#[test]
fn dump_of_one_service_equals_its_part_of_the_whole_dump() {
    for flavour in [Flavour::Nft, Flavour::Legacy] {
        let node = Node::recorded(CASE, flavour);
        damage(&node, flavour);
        let all = differences(&node.dump());
        let alone = |words: &str| json(&node.run_with_objects(&format!("dump -o json {words}")));
        let one = alone(&format!("--service {SERVICE}"));
        assert_eq!(differences(&one), of(SERVICE, &all), "{flavour}");
        let named = |name: &str| differences(&one).iter().any(|d| d["service"] == name);
        assert!(named("default/with-local:http") && !named("default/no-local:http"), "{flavour}: {one:#}");
        assert!(all.iter().any(|d| d["service"] == "default/no-local:http"), "{flavour}: {all:#?}");
        assert!(differences(&one).iter().any(|d| d["chain"] == "KUBE-FORWARD"), "{flavour}: {one:#}");
        // The same by one of its endpoints, which no other Service has.
        assert_eq!(differences(&alone("--endpoint 10.244.1.5")), of(SERVICE, &all), "{flavour}");
        let whole = node.dump();
        let services = whole["services"].as_array().expect("services").iter();
        let ours: Vec<&Value> =
            services.filter(|s| s["name"].as_str().is_some_and(|n| n.starts_with("default/with-local:"))).collect();
        assert_eq!(one["services"].as_array().expect("services").iter().collect::<Vec<_>>(), ours, "{flavour}");
    }
}

fn asked(api: &ApiServer) -> Vec<String> {
    let param = |request: &Request, name: &str| request.param(name).unwrap_or_default();
    let mut asked: Vec<String> = api
        .requests()
        .iter()
        .map(|r| format!("{} {} {}", r.path, param(r, "labelSelector"), param(r, "fieldSelector")))
        .collect();
    asked.sort();
    api.clear_requests();
    asked
}

/// The requests for the objects of [`SERVICE`] alone.
const NARROW: [&str; 3] = [
    "/api/v1/namespaces/default/services !service.kubernetes.io/service-proxy-name \
     spec.clusterIP!=None,metadata.name=with-local",
    "/api/v1/nodes  metadata.name=node-a",
    "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices \
     !service.kubernetes.io/headless,kubernetes.io/service-name=with-local ",
];

/// An API server on the node, with its objects.
fn serve(node: &Node) -> ApiServer {
    let listener = node.lab.node().enter(|| TcpListener::bind("127.0.0.1:0").expect("a port"));
    let api = ApiServer::start_on(listener);
    let text = std::fs::read_to_string(&node.objects).expect("objects");
    let objects: Vec<Value> = serde_saphyr::from_multiple(&text).expect("YAML");
    objects.into_iter().filter(|object| object.is_object()).for_each(|object| _ = api.apply(object));
    api
}

fn asked_for_all(api: &ApiServer) -> bool {
    let all = "/api/v1/services !service.kubernetes.io/service-proxy-name spec.clusterIP!=None";
    asked(api).iter().any(|request| request == all)
}

#[test]
fn dump_of_one_service_in_nftables_mode_requests_only_its_objects() {
    let node = Node::our_tables(CASE);
    let api = serve(&node);
    let words = format!("dump -o json --service {SERVICE}");
    let dump = || json(&node.run_with_api(&words, &api.url()));
    let shown = dump();
    assert_eq!(shown["facts"]["mode"], "nftables");
    assert_eq!((&shown["unread"], &shown["differences"]), (&Value::Array(vec![]), &Value::Array(vec![])), "{shown:#}");
    // Cluster IPs that no Service has are refused, so the mode needs their networks.
    let cidrs = ["/apis/networking.k8s.io/v1/servicecidrs  "];
    assert_eq!(asked(&api), [&NARROW[..], &cidrs].concat());
    let whole = node.dump();
    let services = whole["services"].as_array().expect("services").iter();
    let ours: Vec<&Value> =
        services.filter(|s| s["name"].as_str().is_some_and(|n| n.starts_with("default/with-local:"))).collect();
    assert_eq!(shown["services"].as_array().expect("services").iter().collect::<Vec<_>>(), ours);
    // Whether another Service has the address that is lost takes all objects to tell.
    node.nft("delete element ip kube-proxy service-ips { 10.96.10.11 . tcp . 80 }\n");
    let lost = dump();
    assert!(asked_for_all(&api));
    assert_eq!(differences(&lost), of(SERVICE, &differences(&node.dump())));
    assert!(differences(&lost).iter().any(|d| d["kind"] == "missing_element"), "{lost:#}");
}

#[test]
fn dump_of_one_service_requests_only_its_objects() {
    let node = Node::recorded(CASE, Flavour::Nft);
    let api = serve(&node);
    damage(&node, Flavour::Nft);
    let words = format!("dump -o json --service {SERVICE}");
    let dump = || json(&node.run_with_api(&words, &api.url()));
    let shown = dump();
    assert_eq!(shown["unread"], Value::Array(vec![]));
    assert_eq!(differences(&shown), of(SERVICE, &differences(&node.dump())));
    assert_eq!(asked(&api), NARROW);
    // Of what goes to an address that two have, it takes both to tell.
    node.iptables(
        "-t nat -A KUBE-SERVICES -d 10.96.10.11 -p tcp --dport 80 -m comment --comment default/other -j KUBE-MARK-MASQ",
    );
    let again = dump();
    assert_eq!(again["services"], shown["services"]);
    let all = ["/api/v1/services !service.kubernetes.io/service-proxy-name spec.clusterIP!=None"];
    let asked = asked(&api);
    assert!(all.iter().all(|request| asked.iter().any(|one| one == request)), "{asked:#?}");
    assert!(NARROW.iter().all(|request| asked.iter().any(|one| one == request)), "{asked:#?}");
}
