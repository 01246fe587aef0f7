//! The node in IPVS mode: its addresses, sysctls, and virtual servers of other programs.

use std::time::Duration;

use ipnet::IpNet;
use netfilter::iptables::Table;
use netfilter::ipvs::{Flags, Persistence, Scheduler, VirtualServer};
use netfilter::kernel::{AddressOperation, Host, IpvsTable, Links, Operation};
use proxier::model::{IpvsConfig, NodePortAddresses};
use proxier::testing::objects;
use serde_json::json;

use super::fake::{DEVICE, Fake, tcp};
use super::world::{World, ip, service, service_with, slice};

fn node_port() -> serde_json::Value {
    let port = json!([{ "name": "http", "protocol": "TCP", "port": 80, "nodePort": 30080 }]);
    service_with("web", "10.96.0.10", &json!({ "type": "NodePort", "ports": port }))
}

fn at_node_ports(fake: &Fake) -> Vec<String> {
    fake.keys().iter().filter(|key| key.address.port() == 30080).map(|key| key.address.ip().to_string()).collect()
}

fn server(address: &str) -> VirtualServer {
    VirtualServer { key: tcp(address), scheduler: Scheduler::new("wlc"), flags: Flags::default(), persistence: None }
}

#[test]
fn node_ports_follow_the_nodes_addresses() {
    let mut world = World::new();
    world.apply(node_port());
    world.sync();
    assert_eq!(at_node_ports(&world.fake), ["192.168.50.2"], "no loopback");
    world.fake.host.set_addresses(["192.168.50.2", "192.168.60.2", "10.96.0.10"].map(ip));
    assert!(world.host_changed(), "there is one more");
    world.request_full_sync();
    world.sync();
    assert_eq!(at_node_ports(&world.fake), ["192.168.50.2", "192.168.60.2"], "those of our own device do not count");
}

#[test]
fn addresses_that_cannot_be_read_are_the_last_known_ones() {
    let mut world = World::new();
    world.apply(node_port());
    world.sync();
    world.fake.host.refuse_addresses(Some(std::io::ErrorKind::OutOfMemory));
    assert!(!world.host_changed());
    world.request_full_sync();
    world.sync();
    assert_eq!(at_node_ports(&world.fake), ["192.168.50.2"]);
    world.fake.host.set_addresses(["192.168.60.2"].map(ip));
    world.fake.host.refuse_addresses(None);
    assert!(world.host_changed());
    world.request_full_sync();
    world.sync();
    assert_eq!(at_node_ports(&world.fake), ["192.168.60.2"]);
}

#[test]
fn a_process_that_never_read_addresses_serves_those_of_the_node_object() {
    let mut world = World::new();
    world.fake.host.refuse_addresses(Some(std::io::ErrorKind::OutOfMemory));
    world.apply(objects::node(&[ip("192.168.50.2")]));
    world.apply(node_port());
    world.sync();
    assert_eq!(at_node_ports(&world.fake), ["192.168.50.2"]);
}

#[test]
fn flushed_rules_are_seen_without_reading_them() {
    for legacy in [false, true] {
        let mut world = World::new();
        let rules = world.fake.tables.clone();
        if legacy {
            rules.be_legacy();
        }
        world.apply(node_port());
        world.sync();
        let look = |world: &mut World| world.backend.check_drift_quickly(world.now).expect("an answer");
        assert_eq!(look(&mut world), None);
        rules.apply("*nat\n:OTHERS - [0:0]\nCOMMIT\n").expect("valid");
        assert_eq!(look(&mut world), None, "a foreign change is not drift");
        rules.flush(Table::Nat);
        assert!(look(&mut world).is_some(), "legacy: {legacy}");
        assert_eq!(look(&mut world), None, "once is enough");
        world.request_full_sync();
        world.sync();
        assert_eq!(look(&mut world), None, "mended");
    }
}

#[test]
fn node_ports_keep_to_their_networks() {
    let mut config = objects::config();
    config.node_port_addresses = NodePortAddresses::within(vec!["192.168.60.0/24".parse().expect("a network")]);
    let mut world = World::with(Fake::default(), config, IpvsConfig::default());
    world.apply(node_port());
    world.sync();
    assert!(at_node_ports(&world.fake).is_empty());
    assert!(world.fake.entries("KUBE-NODE-PORT-TCP").is_empty());
}

#[test]
fn an_address_of_the_node_is_not_bound_again() {
    let mut world = World::new();
    world.apply(service_with("web", "10.96.0.10", &json!({ "externalIPs": ["192.168.50.2", "192.0.2.1"] })));
    world.sync();
    assert_eq!(world.fake.bound(), ["10.96.0.10/32", "192.0.2.1/32"]);
    assert!(world.fake.servers.server(tcp("192.168.50.2:80")).is_some());
}

#[test]
fn virtual_servers_in_excluded_networks_are_kept() {
    let fake = Fake::default();
    let others = [server("198.51.100.1:80"), server("203.0.113.1:80")].map(Operation::AddVirtual);
    fake.servers.clone().apply(&others, &mut |_, error| panic!("{error}")).expect("the fake works");
    let exclude: Vec<IpNet> = vec!["198.51.100.0/24".parse().expect("a network")];
    let ipvs = IpvsConfig { exclude_cidrs: exclude, ..IpvsConfig::default() };
    let mut world = World::with(fake, objects::config(), ipvs);
    world.sync();
    assert_eq!(world.fake.keys(), [tcp("198.51.100.1:80")]);
    assert_eq!(world.backend.check_drift(world.now).expect("an answer"), None);
}

#[test]
fn schedulers_flags_and_persistence_equal_those_of_kube_proxy() {
    for (name, flags) in [("mh", Flags::PORT), ("sh", Flags::default()), ("wrr", Flags::default())] {
        let ipvs = IpvsConfig { scheduler: name.to_owned(), ..IpvsConfig::default() };
        let mut world = World::with(Fake::default(), objects::config(), ipvs);
        let sticky =
            json!({ "sessionAffinity": "ClientIP", "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": 7 } } });
        world.apply(service_with("web", "10.96.0.10", &sticky));
        world.sync();
        let (server, _) = world.fake.servers.server(tcp("10.96.0.10:80")).expect("it is there");
        assert_eq!((server.scheduler.as_str(), server.flags), (name, flags));
        assert_eq!(server.persistence, Some(Persistence { seconds: 7, prefix: 32 }));
    }
}

#[test]
fn two_services_at_one_address_do_not_disturb_each_other() {
    let mut world = World::new();
    let shared = json!({ "externalIPs": ["192.0.2.1"] });
    let (a, b) = (service_with("a", "10.96.0.1", &shared), service_with("b", "10.96.0.2", &shared));
    for (object, name, pod) in [(&b, "b", "10.244.1.6"), (&a, "a", "10.244.1.5")] {
        world.apply(object.clone());
        world.apply(slice(name, &[pod]));
        world.sync();
    }
    let reals = |world: &World| world.fake.reals("192.0.2.1:80");
    assert_eq!(reals(&world), [("10.244.1.5:8080".to_owned(), 1)], "the first by name, as in iptables mode");
    world.delete(&a);
    world.sync();
    assert_eq!(reals(&world), [("10.244.1.6:8080".to_owned(), 1)]);
    assert_eq!(world.fake.entries("KUBE-EXTERNAL-IP"), ["192.0.2.1,tcp:80"]);
}

#[test]
fn sysctls_and_timeouts_of_ipvs_mode_are_set() {
    let ipvs = IpvsConfig { strict_arp: true, tcp_timeout: Duration::from_millis(1500), ..IpvsConfig::default() };
    let mut world = World::with(Fake::default(), objects::config(), ipvs);
    world.apply(service("web", "10.96.0.10"));
    world.sync();
    let mut host = world.fake.host.clone();
    for (name, value) in [
        ("net/ipv4/vs/conntrack", 1),
        ("net/ipv4/vs/expire_nodest_conn", 1),
        ("net/ipv4/vs/expire_quiescent_template", 1),
        ("net/ipv4/ip_forward", 1),
        ("net/ipv4/conf/all/arp_ignore", 1),
        ("net/ipv4/conf/all/arp_announce", 2),
    ] {
        assert_eq!(host.sysctl(name).expect(name), value, "{name}");
    }
    assert!(host.sysctl("net/ipv4/vs/conn_reuse_mode").is_err(), "a new kernel keeps its own");
    assert_eq!(world.fake.servers.clone().timeouts().expect("an answer").tcp, 2);
}

#[test]
fn a_sysctl_that_cannot_be_set_does_not_affect_others() {
    let ipvs = IpvsConfig { strict_arp: true, ..IpvsConfig::default() };
    let mut world = World::with(Fake::default(), objects::config(), ipvs);
    for name in ["net/ipv4/vs/conntrack", "net/ipv4/ip_forward"] {
        world.fake.host.refuse(name, std::io::ErrorKind::PermissionDenied);
    }
    let said = world.backend.prepare().expect_err("reported at startup").0;
    assert!(said.contains("vs/conntrack to 1 (permission denied), net/ipv4/ip_forward to 1 (perm"), "{said}");
    world.apply(service("web", "10.96.0.10"));
    world.sync();
    let mut host = world.fake.host.clone();
    assert_eq!(host.sysctl("net/ipv4/vs/expire_nodest_conn").expect("it is set"), 1);
    assert_eq!(host.sysctl("net/ipv4/conf/all/arp_ignore").expect("it is set"), 1);
    assert_eq!(world.fake.bound(), ["10.96.0.10/32"]);
}

#[test]
fn foreign_addresses_of_the_device_are_deleted_whatever_their_prefix() {
    let mut world = World::new();
    world.apply(service("web", "10.96.0.10"));
    world.sync();
    let stray = ["198.18.0.1/24", "198.18.1.1/32"].map(|net| AddressOperation::Add(net.parse().expect("a network")));
    world.fake.links.clone().apply(DEVICE, &stray, &mut |_, error| panic!("{error}")).expect("the fake works");
    assert!(
        world.backend.check_drift(world.now).expect("an answer").is_some_and(|damage| damage.contains("198.18.0.1"))
    );
    world.request_full_sync();
    world.sync();
    assert_eq!(world.fake.bound(), ["10.96.0.10/32"]);
    assert_eq!(world.backend.check_drift(world.now).expect("an answer"), None);
}
