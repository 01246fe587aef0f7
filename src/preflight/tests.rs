//! The differences of nodes that are values.

use std::collections::{BTreeMap, BTreeSet};

use netfilter::IpFamily;
use proxier::model::{Mode, NodeInfo};
use proxier::testing::objects;
use proxier::track::{Kind, Tracker, Translator};
use serde_json::{Value, json};

use super::checks::{Difference, Severity, check};
use super::node::NodeState;
use super::{PreflightReport, SCHEMA};
use crate::config::gates::LOCALHOST_NODE_PORTS;
use crate::config::{GoDuration, KubeProxyConfiguration, validate};

/// A node of a mode with nothing remarkable, whose configuration `change` sets.
fn node(mode: Mode, change: impl FnOnce(&mut KubeProxyConfiguration)) -> NodeState {
    let mut file = KubeProxyConfiguration { mode: mode.to_string(), ..KubeProxyConfiguration::default() };
    change(&mut file);
    NodeState {
        mode,
        in_nftables_mode: Some(validate(file.clone().in_nftables_mode(), "node-a").expect("valid")),
        settings: validate(file.with_defaults(), "node-a").expect("valid"),
        node: NodeInfo { addresses: vec!["192.0.2.1".parse().expect("an address")], ..NodeInfo::default() },
        ports: Some(BTreeMap::new()),
        addresses: ["127.0.0.1", "192.0.2.1"].map(|ip| ip.parse().expect("an address")).to_vec(),
        lacking: BTreeMap::new(),
        forward_drops: Vec::new(),
        foreign_jumps: Vec::new(),
        iptables_users: BTreeSet::new(),
        localhost_packets: None,
        invalid_packets: None,
        liberal: false,
    }
}

/// A Service with TCP and UDP node ports and session affinity.
fn with_service(mut node: NodeState) -> NodeState {
    let mut service = objects::service("default", "web", objects::address(9));
    service["spec"]["type"] = json!("NodePort");
    service["spec"]["sessionAffinity"] = json!("ClientIP");
    let port = |name: &str, protocol: &str, port: u16| -> Value {
        json!({"name": name, "protocol": protocol, "port": port, "nodePort": 30_000 + port})
    };
    service["spec"]["ports"] = json!([port("http", "TCP", 80), port("dns", "UDP", 53)]);
    let (mut translator, mut tracker) = (Translator::new(objects::NODE, false), Tracker::default());
    let changes = translator.applied(objects::decoded(Kind::Service, service)).expect("a good Service").changes;
    for (_, change) in changes.into_iter().filter(|(family, _)| *family == IpFamily::V4) {
        tracker.apply(change);
    }
    let ports = tracker.snapshot(IpFamily::V4.localhost()).ports.clone();
    node.ports = Some([(IpFamily::V4, ports)].into());
    node
}

/// The differences as `severity id`.
fn found(node: &NodeState) -> Vec<String> {
    check(node).iter().map(|found| format!("{} {}", found.severity.word(), found.id)).collect()
}

fn the<'a>(all: &'a [Difference], id: &str) -> &'a Difference {
    all.iter().find(|found| found.id == id).unwrap_or_else(|| panic!("no {id} in {all:#?}"))
}

#[test]
fn a_node_without_differences_has_none_and_one_in_nftables_mode_never_has() {
    let plain = node(Mode::Iptables, |file| file.node_port_addresses = vec!["primary".to_owned()]);
    assert_eq!(found(&plain), Vec::<String>::new());
    let mut there = with_service(node(Mode::Nftables, |_| ()));
    there.foreign_jumps.push("IPv4 nat: -A CNI -j KUBE-MARK-MASQ".to_owned());
    assert_eq!(found(&there), Vec::<String>::new());
}

#[test]
fn localhost_and_other_addresses_of_node_ports_are_named_service_by_service() {
    let mut of = with_service(node(Mode::Iptables, |_| ()));
    of.addresses.push("198.51.100.7".parse().expect("an address"));
    let all = check(&of);
    let addresses = the(&all, "node-port-addresses");
    assert!(addresses.what.ends_with("not at 198.51.100.7"), "{addresses:?}");
    assert_eq!(addresses.services, ["default/web:dns 30053/udp", "default/web:http 30080/tcp"]);
    let tcp = the(&all, "localhost-node-ports");
    assert_eq!((tcp.severity, &tcp.services[..]), (Severity::Changes, &["default/web:http 30080/tcp".to_owned()][..]));
    assert!(tcp.set.as_ref().is_some_and(|set| set.contains("[primary, localhost]")), "{tcp:?}");
    assert_eq!(the(&all, "localhost-udp").services, ["default/web:dns 30053/udp"]);
    assert_eq!(the(&all, "affinity").services.len(), 2);

    of.localhost_packets = Some(0);
    assert_eq!(the(&check(&of), "localhost-node-ports").severity, Severity::Note, "nothing uses it");
    let off = with_service(node(Mode::Iptables, |file| file.iptables.localhost_node_ports = Some(false)));
    assert!(check(&off).iter().all(|found| !found.id.starts_with("localhost")), "{:?}", found(&off));
    let ipvs = with_service(node(Mode::Ipvs, |_| ()));
    assert!(check(&ipvs).iter().all(|found| !found.id.starts_with("localhost")), "IPVS mode serves none");
}

#[test]
fn settings_of_ipvs_mode_without_a_counterpart_are_named() {
    let of = |scheduler: &str| {
        let node = node(Mode::Ipvs, |file| file.ipvs.scheduler = scheduler.to_owned());
        the(&check(&node), "scheduler").clone()
    };
    assert_eq!(["", "rr", "wrr"].map(|scheduler| of(scheduler).severity), [Severity::Note; 3]);
    assert!(of("sh").set.is_some_and(|set| set.contains("sessionAffinity")));
    assert_eq!(of("lc").severity, Severity::Changes);
    let all = check(&node(Mode::Ipvs, |file| {
        file.ipvs.exclude_cidrs = vec!["10.9.0.0/16".to_owned()];
        file.ipvs.strict_arp = true;
        file.ipvs.tcp_timeout = crate::config::GoDuration::from_secs(900);
    }));
    for id in ["exclude-cidrs", "strict-arp", "ipvs-timeouts", "no-dummy-device"] {
        the(&all, id);
    }
}

#[test]
fn firewalls_other_programs_kernels_and_sections_are_named_the_worst_first() {
    let mut of = node(Mode::Iptables, |file| {
        file.node_port_addresses = vec!["primary".to_owned()];
        file.iptables.masquerade_all = true;
        file.iptables.masquerade_bit = Some(15);
    });
    of.forward_drops.push("IPv4: packets (policy of filter FORWARD)".to_owned());
    of.foreign_jumps.push("IPv4 nat: -A CNI-HOSTPORT -j KUBE-MARK-MASQ".to_owned());
    of.lacking.insert(IpFamily::V6, "the kernel lacks sets".to_owned());
    of.iptables_users.insert("Docker");
    of.invalid_packets = Some(7);
    let expected = [
        "BLOCKS kernel",
        "BLOCKS foreign-jumps",
        "CHANGES forward-drop",
        "CHANGES section",
        "CHANGES section",
        "CHANGES conntrack-invalid",
        "NOTE iptables-users",
    ];
    assert_eq!(found(&of), expected);
    of.liberal = true;
    assert!(!found(&of).contains(&"CHANGES conntrack-invalid".to_owned()));
}

#[test]
fn localhost_node_ports_of_tcp_are_no_difference_where_nftables_mode_serves_them() {
    let of = |gate: bool, addresses: &[&str]| {
        let node = node(Mode::Iptables, |file| {
            file.feature_gates.insert(LOCALHOST_NODE_PORTS.to_owned(), gate);
            file.node_port_addresses = addresses.iter().map(|&address| address.to_owned()).collect();
        });
        check(&with_service(node))
    };
    let served = of(true, &["primary", "localhost"]);
    assert!(served.iter().all(|found| found.id != "localhost-node-ports"), "{served:#?}");
    assert_eq!(the(&served, "localhost-udp").services, ["default/web:dns 30053/udp"]);
    let set = |all: &[Difference]| the(all, "localhost-node-ports").set.clone().unwrap_or_default();
    let gate = format!("the feature gate {LOCALHOST_NODE_PORTS} (Kubernetes 1.37)");
    assert_eq!(set(&of(false, &["primary", "localhost"])), gate);
    assert_eq!(set(&of(true, &[])), "nodePortAddresses: [primary, localhost]");
    assert_eq!(
        set(&of(false, &["192.0.2.0/24", "127.0.0.1/8"])),
        gate,
        "a network that contains 127.0.0.1 names localhost"
    );
}

#[test]
fn settings_are_compared_with_those_of_the_section_nftables() {
    let sections = |mode: Mode, change: fn(&mut KubeProxyConfiguration)| -> Vec<String> {
        let node = node(mode, |file| {
            file.node_port_addresses = vec!["primary".to_owned()];
            change(file);
        });
        let all = check(&node).into_iter().filter(|found| found.id == "section");
        all.map(|found| found.set.unwrap_or_default()).collect()
    };
    let periods = sections(Mode::Ipvs, |file| {
        file.ipvs.sync_period = Some(GoDuration::from_secs(60));
        file.ipvs.min_sync_period = Some(GoDuration::from_secs(5));
        file.iptables.sync_period = Some(GoDuration::from_secs(7));
    });
    assert_eq!(periods, ["nftables.syncPeriod: 1m0s", "nftables.minSyncPeriod: 5s"]);
    let same = sections(Mode::Iptables, |file| {
        (file.iptables.sync_period, file.nftables.sync_period) =
            (Some(GoDuration::from_secs(60)), Some(GoDuration::from_secs(60)));
        (file.iptables.masquerade_all, file.nftables.masquerade_all) = (true, true);
    });
    assert_eq!(same, [""; 0]);
    let all = |here, there| {
        let node = node(Mode::Iptables, |file| {
            (file.iptables.masquerade_all, file.nftables.masquerade_all) = (here, there);
        });
        the(&check(&node), "section").set.clone()
    };
    assert_eq!(all(true, false).as_deref(), Some("nftables.masqueradeAll: true"));
    assert_eq!(all(false, true).as_deref(), Some("nftables.masqueradeAll: false"));
}

fn report(differences: Vec<Difference>, unread: &[&str]) -> PreflightReport {
    PreflightReport {
        schema: SCHEMA,
        node: "node-a".to_owned(),
        from: "ipvs".to_owned(),
        to: "nftables",
        differences,
        unread: unread.iter().map(|what| proxier_inspect::node::Unread::new(what, "a reason")).collect(),
    }
}

#[test]
fn the_exit_status_says_whether_anything_changes_or_is_unknown() {
    let notes: Vec<Difference> =
        check(&node(Mode::Ipvs, |_| ())).into_iter().filter(|found| found.severity == Severity::Note).collect();
    assert!(!notes.is_empty());
    assert_eq!(report(notes.clone(), &[]).status(), 0);
    let text = report(notes.clone(), &[]).text();
    assert!(text.ends_with("\nNothing needs to be set.\n"), "{text}");
    let none = report(Vec::new(), &[]).text();
    assert_eq!(none, "Node node-a: from ipvs mode to nftables mode\nNothing will behave otherwise.\n");
    assert_eq!(report(notes, &["rules of IPv4"]).status(), 2);
    let changes = check(&node(Mode::Ipvs, |file| file.ipvs.scheduler = "lc".to_owned()));
    let text = report(changes.clone(), &["rules of IPv4"]).text();
    assert_eq!(report(changes.clone(), &["rules of IPv4"]).status(), 2, "what was not read may differ too");
    assert_eq!(report(changes, &[]).status(), 1);
    assert!(text.starts_with("Node node-a: from ipvs mode to nftables mode\nCHANGES scheduler: "), "{text}");
    assert!(text.contains("UNREAD rules of IPv4: a reason"), "{text}");
}
