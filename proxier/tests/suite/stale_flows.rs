//! Which flows are stale, as a table: what changed, where a flow goes and where it was sent.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use netfilter::conntrack::UDP;
use netfilter::{Flow, Tuple};
use proxier::conntrack::StaleFlows;
use proxier::model::endpoint::NodeHint;
use proxier::model::{
    Destination, Endpoints, NamespacedName, NodeInfo, Protocol, Scope, ServiceExtensions, ServicePort, ServicePortName,
    Slice, SliceEndpoint, SlicePort, Snapshot,
};

#[derive(Default)]
struct Cluster {
    ports: BTreeMap<ServicePortName, ServicePort>,
    endpoints: Endpoints,
    node: NodeInfo,
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
}

fn name(name: &str) -> ServicePortName {
    let protocol = if name == "web" { Protocol::Tcp } else { Protocol::Udp };
    ServicePortName { service: NamespacedName::new("ns", name), port: "p".into(), protocol }
}

impl Cluster {
    /// A Service port `53/UDP`, with endpoints at port 8053: `+` ready, `-` not serving, `~` terminating but serving.
    fn add(&mut self, service: &str, cluster_ip: &str, node_port: u16, outer: [&str; 2], endpoints: &str) {
        let list = |text: &str| text.split_whitespace().map(ip).collect();
        let port = ServicePort {
            cluster_ip: ip(cluster_ip),
            port: 53,
            node_port,
            external_ips: list(outer[0]),
            load_balancer_vips: list(outer[1]),
            source_ranges: Box::default(),
            affinity_seconds: None,
            // Policies must not matter.
            internal_local: true,
            external_local: true,
            health_check_node_port: 0,
            hidden_external_ips: false,
            extensions: ServiceExtensions::default(),
        };
        let name = name(service);
        let endpoint = |text: &str| SliceEndpoint {
            ip: ip(&text[1..]),
            ready: text.starts_with('+'),
            serving: !text.starts_with('-'),
            terminating: text.starts_with('~'),
            local: false,
            node_hint: NodeHint::Elsewhere,
            zone_hints: None,
        };
        let slice = Slice {
            ports: [SlicePort { name: name.port.clone(), protocol: name.protocol, port: 8053 }].into(),
            endpoints: endpoints.split_whitespace().map(endpoint).collect(),
        };
        self.endpoints.insert(name.service.clone(), "slice".into(), slice);
        self.ports.insert(name, port);
    }

    fn snapshot(&self) -> Snapshot<'_> {
        let node_ip = ip("192.168.0.1");
        Snapshot { ports: &self.ports, endpoints: &self.endpoints, node: &self.node, node_ip, service_cidrs: &[] }
    }

    fn stale(&self, scope: &str, gone: &str) -> StaleFlows {
        let scope = match scope {
            "all" => Scope::Full,
            names => Scope::Changed(names.split_whitespace().map(name).collect()),
        };
        let destination = |text: &str| match text.parse() {
            Ok(port) => Destination::NodePort(port),
            Err(_) => Destination::Address(text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))),
        };
        let gone: BTreeSet<_> = gone.split_whitespace().map(destination).collect();
        StaleFlows::of(&self.snapshot(), &scope, &gone)
    }
}

fn cluster() -> Cluster {
    let mut cluster = Cluster::default();
    cluster.add("dns", "10.96.0.10", 30_053, ["198.51.100.7", "203.0.113.10"], "+10.0.0.5 ~10.0.0.6 -10.0.0.7");
    cluster.add("empty", "10.96.0.11", 30_054, ["198.51.100.7", "203.0.113.11"], "-10.0.0.8");
    cluster.add("drained", "10.96.0.14", 0, ["", ""], "~10.0.0.11 -10.0.0.12");
    cluster.add("web", "10.96.0.12", 30_055, ["", ""], "+10.0.0.9");
    cluster.add("shared", "10.96.0.13", 0, ["198.51.100.7", ""], "+10.0.0.10");
    cluster
}

/// A flow to the first address that is sent on to the second.
fn flow(to: &str, sent_to: &str) -> Flow {
    let [client, to, sent_to] = ["10.0.0.1:40000", to, sent_to].map(|text| {
        let address: SocketAddr = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
        address
    });
    let original = Tuple { source: client, destination: to };
    Flow { protocol: UDP, original, reply: Tuple { source: sent_to, destination: client } }
}

#[test]
fn flows_are_stale_when_new_ones_would_go_elsewhere() {
    let node = || ["192.168.0.1", "127.0.0.1"].map(ip).to_vec();
    for (scope, gone, to, sent_to, expected, why) in [
        ("dns", "", "10.96.0.10:53", "10.0.0.5:8053", false, "a ready endpoint"),
        ("dns", "", "10.96.0.10:53", "10.0.0.6:8053", false, "one that terminates, but serves"),
        ("dns", "", "10.96.0.10:53", "10.0.0.7:8053", true, "one that does not serve"),
        ("dns", "", "10.96.0.10:53", "10.0.0.5:9000", true, "its port was another one"),
        ("dns", "", "10.96.0.10:53", "10.96.0.10:53", true, "of before the endpoints came"),
        ("dns", "", "10.96.0.10:54", "10.0.0.7:8053", false, "not a port of the Service"),
        ("dns", "", "203.0.113.10:53", "10.0.0.7:8053", true, "the load balancer's address"),
        ("dns", "", "203.0.113.10:53", "10.0.0.6:8053", false, "the same, to one that serves"),
        ("dns", "", "198.51.100.7:53", "10.0.0.7:8053", true, "an external IP"),
        ("dns", "", "198.51.100.7:53", "10.0.0.10:8053", false, "another Service has that external IP too"),
        ("shared", "", "198.51.100.7:53", "10.0.0.6:8053", false, "the other way round"),
        ("dns", "", "192.168.0.1:30053", "10.0.0.7:8053", true, "a node port"),
        ("dns", "", "192.168.0.1:30053", "192.168.0.1:30053", true, "a node port of before the endpoints"),
        ("dns", "", "192.168.0.1:30053", "10.0.0.5:8053", false, "a node port to one that serves"),
        ("dns", "", "127.0.0.9:30053", "10.0.0.7:8053", true, "all of the loopback network is local"),
        ("dns", "", "192.168.0.2:30053", "192.168.0.2:30053", false, "I10: another machine's port of that number"),
        ("shared", "", "10.96.0.10:53", "10.0.0.7:8053", false, "of a Service port that did not change"),
        ("all", "", "10.96.0.10:53", "10.0.0.7:8053", true, "everything is looked at"),
        ("empty", "", "10.96.0.11:53", "10.0.0.8:8053", true, "139628: no endpoint serves"),
        ("all", "", "10.96.0.11:53", "10.0.0.8:8053", true, "139628: at a restart"),
        ("empty", "", "192.168.0.1:30054", "10.0.0.8:8053", true, "139628: at a node port"),
        ("empty", "", "192.168.0.2:30054", "10.0.0.8:8053", false, "I10: another machine's port of that number"),
        ("empty", "", "203.0.113.11:53", "10.0.0.8:8053", true, "139628: at the load balancer's address"),
        ("empty", "", "198.51.100.7:53", "10.0.0.8:8053", true, "139628: at an external IP"),
        ("empty", "", "198.51.100.7:53", "10.0.0.10:8053", false, "another Service with that external IP serves"),
        ("dns", "", "10.96.0.11:53", "10.0.0.8:8053", false, "of a Service port that did not change"),
        ("drained", "", "10.96.0.14:53", "10.0.0.11:8053", false, "none is ready, but one terminates and serves"),
        ("drained", "", "10.96.0.14:53", "10.0.0.12:8053", true, "one that terminates and does not serve"),
        ("all", "10.96.0.11:53", "10.96.0.11:53", "10.0.0.8:8053", true, "given up and taken back without endpoints"),
        ("", "10.96.0.10:53", "10.96.0.10:53", "10.0.0.5:8053", false, "given up and taken back, or had twice"),
        ("", "10.96.0.10:53", "10.96.0.10:53", "10.0.0.7:8053", true, "taken back with other endpoints"),
        ("", "203.0.113.9:53", "203.0.113.9:53", "10.0.0.5:8053", true, "I11: no Service owns it any more"),
        ("", "203.0.113.9:53", "203.0.113.9:53", "203.0.113.9:53", false, "it goes there by itself"),
        ("", "203.0.113.9:53", "203.0.113.9:54", "10.0.0.5:8053", false, "another port of it"),
        ("", "30059", "192.168.0.1:30059", "10.0.0.5:8053", true, "I11: a node port that was given up"),
        ("", "30059", "192.168.0.1:30059", "192.168.0.1:30059", false, "a server of the node took it"),
        ("", "30059", "192.168.0.2:30059", "10.0.0.5:8053", false, "I10: not this node's"),
        ("dns", "", "192.168.0.9:30053", "10.0.0.5:8053", true, "the node gave the address up"),
        ("dns", "", "192.168.0.9:30053", "192.168.0.9:30053", false, "it goes to the new owner of that address"),
        ("dns", "", "192.168.0.9:30055", "10.0.0.5:8053", false, "no node port of UDP"),
    ] {
        let stale = cluster().stale(scope, gone).at_node(node()).left(vec![ip("192.168.0.9")]);
        let flow = flow(to, sent_to);
        assert_eq!(stale.is_stale(&flow), expected, "{scope:?} changed, {gone:?} gone, {flow}: {why}");
    }
}

#[test]
fn there_is_nothing_to_look_for_unless_udp_changed() {
    for (scope, gone, expected, node_ports) in [
        ("", "", true, false),
        ("web", "", true, false),
        ("empty", "", false, true),
        ("unknown", "", true, false),
        ("shared", "", false, false),
        ("dns", "", false, true),
        ("web dns", "", false, true),
        ("", "203.0.113.9:53", false, false),
        ("", "30059", false, true),
        ("", "30054", false, true),
        ("all", "", false, true),
    ] {
        let stale = cluster().stale(scope, gone);
        assert_eq!(stale.is_empty(), expected, "{scope:?} changed, {gone:?} gone");
        assert_eq!(stale.has_node_ports(), node_ports, "{scope:?} changed, {gone:?} gone");
    }
    let mut none = Cluster::default();
    none.add("web", "10.96.0.12", 30_055, ["", ""], "+10.0.0.9");
    assert!(none.stale("all", "").is_empty(), "a full sync without UDP");
}

#[test]
fn ipv6_is_no_different() {
    let mut cluster = Cluster::default();
    cluster.add("dns", "fd00:96::10", 0, ["", "2001:db8::1"], "+fd00::5");
    let stale = cluster.stale("dns", "");
    assert!(stale.is_stale(&flow("[2001:db8::1]:53", "[fd00::6]:8053")));
    assert!(!stale.is_stale(&flow("[fd00:96::10]:53", "[fd00::5]:8053")));
}
