//! nftables mode as of Kubernetes 1.37 in the real kernel: localhost node ports, and texts at their limits.
//!
//! Compares what nft lists. Needs root and nft.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use netfilter::IpFamily;
use netfilter::nft::COMMENT_MAX;
use netfilter::testing::FakeHost;
use proxier::backend::Backend;
use proxier::model::localhost_ports::{LocalhostPort, LocalhostPorts};
use proxier::model::{Config, NodePortAddresses, Scope};
use proxier::nftables::Nftables;
use proxier::testing::objects;
use proxier::track::{Kind, Tracker, Translator};
use serde_json::{Value, json};

use crate::nftables_engine::kernel::Real;

/// A cluster as the proxier of IPv4 tracks it.
struct Tracked {
    translator: Translator,
    tracker: Tracker,
}

impl Tracked {
    fn of(all: Vec<(Kind, Value)>) -> Self {
        let mut tracked = Self { translator: Translator::new(objects::NODE, false), tracker: Tracker::default() };
        all.into_iter().for_each(|(kind, object)| tracked.apply(kind, object));
        tracked
    }

    fn apply(&mut self, kind: Kind, object: Value) {
        let changes = self.translator.applied(objects::decoded(kind, object)).expect("a good object").changes;
        for (_, change) in changes.into_iter().filter(|(family, _)| *family == IpFamily::V4) {
            self.tracker.apply(change);
        }
    }

    /// What a new process of that configuration writes.
    fn restart(&self, real: &Real, config: &Config) -> String {
        let mut mode = Nftables::new(IpFamily::V4, config.clone(), real.engine(), Box::new(FakeHost::default()));
        let snapshot = self.tracker.snapshot(IpFamily::V4.localhost());
        mode.sync(&snapshot, &Scope::Full, Instant::now()).expect("the sync succeeds");
        // Kernels before 6.2 delete unused chains a little later.
        mode.check_drift(Instant::now() + Duration::from_secs(3600)).expect("the table can be read");
        real.nft("list table ip kube-proxy")
    }
}

/// A node port Service with a port of each protocol and one endpoint.
fn node_ports() -> Vec<(Kind, Value)> {
    let mut service = objects::service("ns", "web", objects::address(50_000));
    let ports = [("http", "TCP", 80), ("dns", "UDP", 53), ("diameter", "SCTP", 3868)];
    let port = |(name, protocol, port): (&str, &str, u16)| json!({"name": name, "protocol": protocol, "port": port, "nodePort": 30_000 + port});
    service["spec"]["type"] = json!("NodePort");
    service["spec"]["ports"] = ports.map(port).to_vec().into();
    let mut slice = objects::slice("ns", "web", "web-x", &[objects::address(1)]);
    slice["ports"] =
        ports.map(|(name, protocol, port)| json!({"name": name, "protocol": protocol, "port": port})).to_vec().into();
    vec![(Kind::Service, service), (Kind::EndpointSlice, slice)]
}

fn config(gate: bool, networks: &[&str]) -> Config {
    let networks: Vec<IpNet> = networks.iter().map(|net| net.parse().expect("a network")).collect();
    Config {
        nftables_localhost_node_ports: gate,
        node_port_addresses: NodePortAddresses { primary: true, networks },
        ..objects::config()
    }
}

/// The rejected node ports of a table, as `protocol . port : verdict`.
fn rejected(text: &str) -> Vec<String> {
    let map = text.split("map localhost-nodeports {").nth(1).expect("the map is always there");
    let map = map.split("\n\t}").next().unwrap_or_default();
    let Some((_, elements)) = map.split_once("elements = {") else { return Vec::new() };
    let elements = elements.trim_end_matches([' ', '}', '\n', '\t']).split(',');
    let mut rejected: Vec<String> = elements
        .map(|element| {
            let (key, rest) = element.split_once(" comment ").unwrap_or((element, ""));
            format!("{} : {}", key.trim(), rest.rsplit(" : ").next().unwrap_or_default().trim())
        })
        .collect();
    rejected.sort();
    rejected
}

/// The lines and elements of a table, sorted: nft lists them in the order of their creation.
fn parts(text: &str) -> Vec<String> {
    let parts = text.split([',', '\n', '{', '}']).map(|part| part.trim().to_owned());
    let mut parts: Vec<String> = parts.filter(|part| !part.is_empty()).collect();
    parts.sort();
    parts
}

/// Upstream leaves the rejection of TCP in place where the proxy is switched off and on again (142183).
#[test]
fn localhost_node_ports_switched_on_and_off_leave_nothing() {
    const ALL: [&str; 3] = [
        "sctp . 33868 : goto localhost-reject-sctp",
        "tcp . 30080 : goto localhost-reject-tcp",
        "udp . 30053 : goto localhost-reject-udp",
    ];
    let (proxied, unproxied, off) =
        (config(true, &["127.0.0.0/8", "::1/128"]), config(true, &[]), config(false, &["127.0.0.0/8"]));
    let expected = |config: &Config| match (config.nftables_localhost_node_ports, config == &proxied) {
        (false, _) => Vec::new(),
        (true, false) => ALL.to_vec(),
        (true, true) => vec![ALL[0], ALL[2]],
    };
    let (tracked, real) = (Tracked::of(node_ports()), Real::new());
    let steps = [&off, &proxied, &unproxied, &proxied, &off, &unproxied, &off, &proxied];
    for (step, config) in steps.into_iter().enumerate() {
        let text = tracked.restart(&real, config);
        assert_eq!(rejected(&text), expected(config), "step {step}: {text}");
        assert_eq!(parts(&text), parts(&tracked.restart(&Real::new(), config)), "step {step} is not as a fresh start");
        let chains = text.matches("chain localhost-reject-").count();
        assert_eq!(chains, expected(config).len(), "step {step}: {text}");
    }
}

#[test]
fn localhost_node_ports_have_the_endpoints_of_their_policy() {
    let mut tracked = Tracked::of(node_ports());
    let (here, elsewhere): (IpAddr, IpAddr) = (objects::address(2), objects::address(1));
    let mut local = objects::slice("ns", "web", "web-y", &[here]);
    local["endpoints"][0]["nodeName"] = json!(objects::NODE);
    local["ports"] = json!([{"name": "http", "protocol": "TCP", "port": 80}]);
    tracked.apply(Kind::EndpointSlice, local);
    let of = |tracked: &Tracked| {
        let report = LocalhostPorts::of(&tracked.tracker.snapshot(IpFamily::V4.localhost()), &Scope::Full);
        assert!(report.all);
        let ports: Vec<(String, LocalhostPort)> =
            report.ports.into_iter().map(|(name, port)| (name.to_string(), port.expect("served"))).collect();
        ports
    };
    let [(name, port)] = &of(&tracked)[..] else { panic!("TCP alone") };
    assert_eq!((&**name, port.node_port, port.affinity), ("ns/web:http", 30_080, None));
    assert_eq!(port.endpoints.iter().map(|endpoint| endpoint.ip()).collect::<Vec<_>>(), [elsewhere, here]);

    let (_, mut service) = node_ports().swap_remove(0);
    service["spec"]["externalTrafficPolicy"] = json!("Local");
    service["spec"]["sessionAffinity"] = json!("ClientIP");
    service["spec"]["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": 600}});
    tracked.apply(Kind::Service, service);
    let [(_, port)] = &of(&tracked)[..] else { panic!("TCP alone") };
    assert_eq!(port.endpoints.iter().map(|endpoint| endpoint.ip()).collect::<Vec<_>>(), [here]);
    assert_eq!(port.affinity, Some(Duration::from_secs(600)));

    // Without a local endpoint nothing is served, though others have some.
    let mut gone = objects::slice("ns", "web", "web-y", &[]);
    gone["addressType"] = json!("IPv4");
    tracked.apply(Kind::EndpointSlice, gone);
    assert_eq!(of(&tracked), []);
    let changed = tracked.tracker.snapshot(IpFamily::V4.localhost());
    let names = changed.ports.keys().cloned().collect();
    let report = LocalhostPorts::of(&changed, &Scope::Changed(names));
    assert!(!report.all && report.ports.len() == 3 && report.ports.values().all(Option::is_none), "{report:?}");
}

/// A namespace, a Service and a port may have 63, 63 and 15 characters: 143 in a comment, which is cut.
#[test]
fn names_and_comments_at_every_limit_are_loaded_again_by_nft() {
    let text = |first: char, length: usize| format!("{first}{}", "x".repeat(length - 1));
    let mut all = Vec::new();
    for length in 40..=63_u32 {
        let (name, number) = (text('s', length as usize), length);
        let namespace = text('n', 63);
        let mut service = objects::service(&namespace, &name, objects::address(50_000 + number));
        service["spec"]["type"] = json!("NodePort");
        let port = text('p', 15);
        service["spec"]["ports"][0]["nodePort"] = json!(30_000 + number);
        service["spec"]["ports"][0]["name"] = json!(port);
        service["spec"]["sessionAffinity"] = json!(if length % 2 == 0 { "ClientIP" } else { "None" });
        let mut slice = objects::slice(&namespace, &name, &format!("{name}-x"), &[objects::address(number)]);
        slice["ports"][0]["name"] = json!(port);
        all.extend([(Kind::Service, service), (Kind::EndpointSlice, slice)]);
    }
    let (tracked, real, other) = (Tracked::of(all), Real::new(), Real::new());
    let listed = tracked.restart(&real, &config(true, &[]));
    let comments: Vec<usize> =
        listed.split("comment \"n").skip(1).map(|rest| rest.split('"').next().unwrap_or_default().len() + 1).collect();
    assert!(comments.contains(&COMMENT_MAX) && comments.iter().all(|length| *length <= COMMENT_MAX), "{comments:?}");
    other.nft_reads(&listed);
    assert_eq!(parts(&other.nft("list table ip kube-proxy")), parts(&listed));
    // nft encodes some rules otherwise, as loads of the first byte for 127.0.0.0/8, so these are written again.
    assert_eq!(parts(&tracked.restart(&other, &config(true, &[]))), parts(&listed));
}
