//! Causes in routes to pods of other nodes and in the configuration, and addresses that are none of a Service.

use std::path::Path;

use golden::cluster::Protocol::Tcp;
use golden::cluster::{Cluster, FAR_5, Family, NODE_ETH1, POD_5, POD_9, Service, ready};
use golden::flavour::Flavour;
use golden::node::Node;
use golden::sample::slice;
use serde_json::{Value, json};

use super::node::{diagnosis, json as parsed, printed};

const BINARY: &str = env!("CARGO_BIN_EXE_kube-proxy");
const NODE_PORT: u16 = 30080;
const MODES: [(&str, Flavour); 3] =
    [("iptables", Flavour::Nft), ("iptables", Flavour::Legacy), ("nftables", Flavour::Nft)];

fn cluster((mode, flavour): (&str, Flavour)) -> Cluster {
    Cluster::new(flavour, Path::new(BINARY)).configured("mode", json!(mode))
}

/// The causes that `diagnose` finds, its exit status, and the text it prints.
pub(super) fn diagnose(cluster: &Cluster, words: &str) -> (Vec<String>, i32, String) {
    let run = |more: &str| {
        let mut command = cluster.node().command(BINARY);
        let words = format!("diagnose {words} {more}");
        command.envs(cluster.environment()).args(words.split_whitespace()).output().expect("it starts")
    };
    let (causes, status) = diagnosis(&run("-o json"));
    (causes, status, printed(&run("-o wide")))
}

#[test]
fn pod_of_another_node_without_a_route_is_a_suspect_where_others_have_one() {
    let service = Service::new("web", 20).endpoints([ready(FAR_5)]);
    let cluster = cluster(MODES[0]).running(std::slice::from_ref(&service));
    for (family, flag, net, other, gateway) in [
        (Family::V4, "-4", "10.244.2.0/24", "10.244.3.0/24", "192.168.50.3"),
        (Family::V6, "-6", "fd00:10:244:2::/64", "fd00:10:244:3::/64", "fd00:50::3"),
    ] {
        let ask = format!("{} --from host", service.address(family));
        assert!(cluster.host().attempt(Tcp, service.address(family)).is_ok());
        assert_eq!(diagnose(&cluster, &ask).1, 0);
        let _ = cluster.on_node(&format!("ip {flag} route del {net}"));
        assert!(cluster.host().attempt(Tcp, service.address(family)).is_err());
        // The gateway may know pods, as in the networks of clouds.
        let (causes, status, said) = diagnose(&cluster, &ask);
        assert_eq!((causes, status), (vec![], 0), "{said}");
        assert!(said.contains("Assumed: routing: the gateway on eth0 has a route to"), "{said}");
        let _ = cluster.on_node(&format!("ip {flag} route add {other} via {gateway}"));
        let (causes, status, said) = diagnose(&cluster, &ask);
        assert_eq!((&*causes, status), (&["no-route?".to_owned()][..], 2), "{said}");
        assert!(said.contains("default route on eth0") && said.contains(&format!("{other} on eth0")), "{said}");
    }
}

#[test]
fn cluster_cidr_without_the_nodes_pods_is_a_suspect() {
    let service = Service::new("web", 20).endpoints([ready(POD_5)]);
    let run =
        |cidrs: &str| cluster(MODES[2]).configured("clusterCIDR", json!(cidrs)).running(std::slice::from_ref(&service));
    let cluster = run("10.99.0.0/16,fd00:10:99::/56");
    for family in Family::BOTH {
        let answer = cluster.pod(POD_9).reach(Tcp, service.address(family));
        assert_ne!(answer.client, POD_9.address.of(family), "it counts as a client outside");
        let (causes, status, said) = diagnose(&cluster, &service.address(family).to_string());
        assert_eq!((&*causes, status), (&["wrong-cluster-cidr?".to_owned()][..], 2), "{said}");
        assert!(said.contains("--cluster-cidr"), "{said}");
    }
    let cluster = run("10.244.0.0/16,fd00:10:244::/56");
    let answer = cluster.pod(POD_9).reach(Tcp, service.address(Family::V4));
    assert_eq!(answer.client, POD_9.address.of(Family::V4));
    assert_eq!(diagnose(&cluster, "default/web").1, 0);
}

#[test]
fn forwarding_of_a_family_without_an_address_is_no_cause() {
    let service = Service::new("web", 20).endpoints([ready(POD_5)]);
    let cluster = cluster(MODES[0]).running(&[service]);
    let _ = cluster.on_node("sysctl -q -w net.ipv6.conf.all.forwarding=0");
    let (causes, _, said) = diagnose(&cluster, "default/web");
    assert!(causes.contains(&"ip-forward-off".to_owned()) && said.contains("IPv6: net/ipv6"), "{said}");
    let _ = cluster.on_node("ip -6 addr flush scope global");
    let (causes, _, said) = diagnose(&cluster, "default/web");
    assert!(!causes.contains(&"ip-forward-off".to_owned()), "{said}");
}

#[test]
fn address_of_an_endpoint_is_called_one_and_followed() {
    for mode in MODES {
        let services = [
            Service::new("web", 20).endpoints([ready(POD_5), ready(FAR_5)]),
            Service::new("closed", 21).target_port(9090).endpoints([ready(POD_5)]),
        ];
        let cluster = cluster(mode).running(&services);
        for family in Family::BOTH {
            for pod in [POD_5, FAR_5] {
                let to = pod.address.at(family, 8080);
                assert!(cluster.host().attempt(Tcp, to).is_ok());
                let (causes, status, said) = diagnose(&cluster, &to.to_string());
                assert_eq!((causes, status), (vec![], 0), "{said}");
                assert!(
                    said.starts_with(&format!("{to}/tcp, an endpoint of default/web:p and no address of")),
                    "{said}"
                );
                assert!(said.contains(&format!("host -> {to}/tcp")), "{said}");
            }
            let closed = POD_5.address.at(family, 9090);
            let (causes, status, said) = diagnose(&cluster, &format!("{closed} --from host"));
            assert_eq!((&*causes, status), (&["not-listening".to_owned()][..], 1), "{said}");
        }
        cluster.iptables(Family::V4, "-I FORWARD -p tcp --dport 8080 -j DROP");
        let (to, from) = (POD_5.address.at(Family::V4, 8080), POD_9.address.of(Family::V4));
        assert!(cluster.pod(POD_9).attempt(Tcp, to).is_err());
        let (causes, status, said) = diagnose(&cluster, &format!("{to} --from {from}"));
        assert_eq!((&*causes, status), (&["refused-by-others".to_owned()][..], 1), "{said}");
        assert_eq!(diagnose(&cluster, "10.244.1.77:8080").0, ["no-such-service"]);
    }
}

#[test]
fn services_without_a_virtual_ip_are_called_that() {
    let headless = Service::new("db", 20)
        .field("clusterIP", json!("None"))
        .field("clusterIPs", json!(["None"]))
        .endpoints([ready(POD_5)]);
    let named = Service::new("mail", 21)
        .field("type", json!("ExternalName"))
        .field("externalName", json!("mail.example.org"))
        .field("clusterIP", json!(""))
        .field("clusterIPs", json!([]));
    let cluster = cluster(MODES[2]).running(&[headless, named, Service::new("web", 22).endpoints([ready(POD_5)])]);
    for name in ["db", "mail"] {
        let (causes, status, said) = diagnose(&cluster, &format!("default/{name}"));
        assert_eq!((&*causes, status), (&["no-virtual-ip?".to_owned()][..], 2), "{said}");
        assert!(
            said.contains("kube-proxy has no rules for it") && said.contains(&format!("{name}.default.svc")),
            "{said}"
        );
    }
    assert_eq!(diagnose(&cluster, "default/gone").0, ["no-such-service"]);
}

#[test]
fn node_port_addresses_that_leave_an_address_out_are_named() {
    let service = Service::new("web", 20).node_port(NODE_PORT).endpoints([ready(POD_5)]);
    for mode in MODES {
        let addresses = json!(["192.168.50.0/24", "fd00:50::/64"]);
        let cluster = cluster(mode).configured("nodePortAddresses", addresses).running(std::slice::from_ref(&service));
        for family in Family::BOTH {
            let served = golden::cluster::NODE.at(family, NODE_PORT);
            assert!(cluster.outside().attempt(Tcp, served).is_ok());
            assert_eq!(diagnose(&cluster, &served.to_string()).1, 0, "{mode:?}");
            let left_out = NODE_ETH1.at(family, NODE_PORT);
            assert!(cluster.host().attempt(Tcp, left_out).is_err());
            let (causes, status, said) = diagnose(&cluster, &left_out.to_string());
            assert_eq!((&*causes, status), (&["not-translated".to_owned()][..], 1), "{mode:?}: {said}");
            assert!(said.contains("nodePortAddresses") && said.contains("leaves that address out"), "{said}");
        }
    }
}

#[test]
fn dump_during_a_change_lists_no_difference_or_says_that_rules_changed() {
    let mut node = Node::new(BINARY);
    let api = node.api_server_with_web(&["10.244.2.5"]);
    node.start(&["--master", &api.url(), "--proxy-mode", "iptables", "--iptables-min-sync-period", "1s"]);
    node.until_endpoints("default/web:http", &["10.244.2.5:8080"]);
    let dump = || {
        let mut command = node.netns().command(BINARY);
        parsed(&command.args(["dump", "--service", "default/web", "-o", "json"]).output().expect("it runs"))
    };
    for number in 6..10 {
        api.apply(slice("web-1", "web", &[&format!("10.244.2.{number}")]));
        api.apply(slice("web-1", "web", &[&format!("10.244.3.{number}")]));
        let dumped = dump();
        assert_eq!(dumped["differences"], json!([]), "{:#}", dumped["differences"]);
    }
    node.send(nix::sys::signal::Signal::SIGSTOP);
    node.netns().run("iptables -w -t nat -F KUBE-SERVICES");
    let dumped = dump();
    node.send(nix::sys::signal::Signal::SIGCONT);
    assert!(dumped["differences"].as_array().is_some_and(|all: &Vec<Value>| !all.is_empty()), "what stays is one");
}
