//! Removing the mode removes what is ours and nothing else.

use netfilter::ipset::{Set, SetName, SetType};
use netfilter::iptables::Table;
use netfilter::ipvs::{Connections, Flags, Scheduler, VirtualServer};
use netfilter::kernel::{AddressOperation, IpSets, IpvsTable, Links, Operation, SetOperation};
use netfilter::{IpFamily, kernel};
use proxier::backend::SyncError;
use proxier::iptables;
use proxier::ipvs;
use proxier::model::config::ServiceMetrics;
use serde_json::json;

use super::fake::{DEVICE, tcp};
use super::world::{World, service_with, slice};
use crate::common::run::Kernel;

fn world() -> World {
    let mut world = World::new();
    let port = json!([{ "name": "http", "protocol": "TCP", "port": 80, "nodePort": 30080 }]);
    let fields = json!({ "type": "NodePort", "ports": port, "externalIPs": ["192.168.50.2"] });
    world.apply(service_with("web", "10.96.0.10", &fields));
    world.apply(slice("web", &["10.244.1.5"]));
    world.sync();
    world
}

#[test]
fn cleanup_keeps_objects_of_other_programs() {
    let mut world = world();
    let (key, scheduler) = (tcp("192.168.50.2:443"), Scheduler::new("wlc"));
    let others = VirtualServer { key, scheduler, flags: Flags::default(), persistence: None };
    let add = [Operation::AddVirtual(others)];
    world.fake.servers.clone().apply(&add, &mut |_, error| panic!("{error}")).expect("the fake works");
    let set = Set::new(SetName::new("KUBE-ROUTER-PODS"), SetType::HashIp, IpFamily::V4);
    let create = [SetOperation::Create(set)];
    world.fake.sets.clone().apply(&create, &mut |_, error| panic!("{error}")).expect("the fake works");
    world.fake.tables.apply("*nat\n:KUBE-ROUTER - [0:0]\n-A KUBE-ROUTER -j RETURN\nCOMMIT\n").expect("a chain");
    world.backend.cleanup().expect("all can be removed");
    assert_eq!(world.fake.keys(), [key]);
    assert_eq!(world.fake.sets.to_string().lines().count(), 1, "{}", world.fake.sets);
    assert_eq!(world.fake.links.addresses_on(DEVICE), None);
    let chains = |table| world.fake.tables.chains(table).into_keys().filter(|chain| chain.starts_with("KUBE-"));
    assert_eq!(chains(Table::Nat).collect::<Vec<_>>(), ["KUBE-ROUTER"]);
    assert_eq!(chains(Table::Filter).count(), 0);
}

#[test]
fn sets_that_count_are_destroyed_by_a_process_without_service_metrics() {
    let mut world = world();
    let counting = |world: &World| world.fake.sets.to_string().lines().filter(|line| line.contains("REFUSED")).count();
    let usual = world.fake.sets.to_string();
    assert_eq!(counting(&world), 0);
    world.restart_with_metrics(ServiceMetrics::Services);
    world.sync();
    assert!(counting(&world) >= 4, "{}", world.fake.sets);
    world.restart_with_metrics(ServiceMetrics::Off);
    world.sync();
    assert_eq!(world.fake.sets.to_string(), usual);
    let rules =
        world.fake.tables.chains(Table::Nat).into_values().chain(world.fake.tables.chains(Table::Filter).into_values());
    let left: Vec<String> = rules.flatten().filter(|rule| rule.contains("REFUSED")).collect();
    assert_eq!(left, Vec::<String>::new());
}

#[test]
fn cleanup_keeps_chains_shared_with_the_active_mode() {
    let world = world();
    let mut tool = world.fake.tool();
    // iptables mode runs now: its chains are there, and some have the same names.
    let text = "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-AAAAAAAAAAAAAAAA - [0:0]\n\
                -A KUBE-SERVICES -j KUBE-SVC-AAAAAAAAAAAAAAAA\nCOMMIT\n";
    world.fake.tables.apply(text).expect("chains");
    let running = iptables::mode_chains();
    assert!(ipvs::was_here(tool.as_mut()).expect("an answer"));
    ipvs::mode_chains().remove(tool.as_mut(), &Table::ALL, Some(&running)).expect("all can be removed");
    let nat = world.fake.tables.chains(Table::Nat);
    assert_eq!(nat["KUBE-SERVICES"], ["-j KUBE-SVC-AAAAAAAAAAAAAAAA"]);
    assert!(nat["PREROUTING"].iter().any(|rule| rule.ends_with("-j KUBE-SERVICES")), "{nat:?}");
    assert!(!nat.contains_key("KUBE-NODE-PORT") && !nat.contains_key("KUBE-LOAD-BALANCER"));
    let filter = world.fake.tables.chains(Table::Filter);
    assert!(!filter.contains_key("KUBE-IPVS-FILTER") && filter["INPUT"].is_empty(), "{filter:?}");
    assert!(!ipvs::was_here(tool.as_mut()).expect("an answer"));
}

#[test]
fn cleanup_removes_both_iptables_based_modes_at_once() {
    let world = world();
    let text = "*nat\n:KUBE-SVC-AAAAAAAAAAAAAAAA - [0:0]\n-A KUBE-SERVICES -j KUBE-SVC-AAAAAAAAAAAAAAAA\nCOMMIT\n";
    world.fake.tables.apply(text).expect("chains");
    let both = iptables::mode_chains().and(ipvs::mode_chains());
    both.remove(world.fake.tool().as_mut(), &Table::ALL, None).expect("all can be removed");
    let left = |table| world.fake.tables.chains(table).into_keys().filter(|chain| chain.starts_with("KUBE-")).count();
    assert_eq!(Table::ALL.map(left), [0, 0, 0]);
    let mut links = world.fake.links.clone();
    assert!(ipvs::has_device(&mut links).expect("an answer"));
    let mut sets = world.fake.sets.clone();
    let mut table = world.fake.servers.clone();
    let table: Option<&mut dyn kernel::IpvsTable> = Some(&mut table);
    ipvs::IpvsCleanup { table, sets: &mut sets, links: &mut links }
        .remove(IpFamily::V4, false)
        .expect("all can be removed");
    assert!(world.fake.keys().is_empty() && world.fake.sets.to_string().is_empty());
    assert_eq!(world.fake.links.addresses_on(DEVICE), None);
}

/// What a start in another mode does.
fn remove_patiently(world: &World) -> Result<(), Vec<SyncError>> {
    let (mut table, mut sets, mut links) =
        (world.fake.servers.clone(), world.fake.sets.clone(), world.fake.links.clone());
    ipvs::IpvsCleanup { table: Some(&mut table), sets: &mut sets, links: &mut links }.remove(IpFamily::V4, true)
}

#[test]
fn cleanup_keeps_virtual_servers_with_open_connections() {
    let world = world();
    let (key, real) = (tcp("10.96.0.10:80"), "10.244.1.5:8080".parse().expect("an address"));
    assert!(world.fake.servers.set_connections(key, real, Connections { active: 1, ..Connections::default() }));
    let errors = remove_patiently(&world).expect_err("one stays");
    assert!(errors[0].0.contains("open connections"), "{errors:?}");
    assert_eq!((world.fake.keys(), world.fake.bound()), (vec![key], vec!["10.96.0.10/32".to_owned()]));
    assert!(world.fake.servers.set_connections(key, real, Connections { inactive: 1, ..Connections::default() }));
    remove_patiently(&world).expect("inactive connections keep no virtual server");
    assert!(world.fake.keys().is_empty() && world.fake.sets.to_string().is_empty());
    assert_eq!(world.fake.links.addresses_on(DEVICE), None);
}

#[test]
fn a_virtual_server_listed_twice_is_removed_once() {
    let mut world = world();
    world.fake.servers.list_twice();
    assert_eq!(world.backend.check_drift(world.now).expect("an answer"), None);
    world.restart();
    let _ = world.fake.servers.take_operations();
    assert_eq!(world.sync().rejected, []);
    assert_eq!(world.fake.servers.take_operations(), []);
    world.backend.cleanup().expect("all can be removed");
    assert!(world.fake.keys().is_empty() && world.fake.links.addresses_on(DEVICE).is_none());
}

#[test]
fn cleanup_deletes_the_device_with_foreign_addresses() {
    let mut world = world();
    let stray = [AddressOperation::Add("198.18.0.1/24".parse().expect("a network"))];
    world.fake.links.clone().apply(DEVICE, &stray, &mut |_, error| panic!("{error}")).expect("the fake works");
    world.backend.cleanup().expect("all can be removed");
    assert_eq!(world.fake.links.addresses_on(DEVICE), None);
}

#[test]
fn cleanup_after_a_failure_finds_what_is_left() {
    let mut world = world();
    let key = tcp("192.168.50.2:30080");
    world.fake.servers.refuse(Some(key.address));
    assert_eq!(world.backend.cleanup().expect_err("one stays").len(), 1);
    assert_eq!(world.fake.keys(), [key]);
    assert!(ipvs::has_device(&mut world.fake.links.clone()).expect("an answer"), "who looks finds that there is more");
    world.fake.servers.refuse(None);
    world.backend.cleanup().expect("all can be removed");
    assert!(world.fake.keys().is_empty() && world.fake.sets.to_string().is_empty());
    assert_eq!(world.fake.links.addresses_on(DEVICE), None);
}

#[test]
fn a_connection_to_a_node_port_is_waited_for_too() {
    let world = world();
    let (key, real) = (tcp("192.168.50.2:30080"), "10.244.1.5:8080".parse().expect("an address"));
    assert!(world.fake.servers.set_connections(key, real, Connections { active: 1, ..Connections::default() }));
    remove_patiently(&world).expect_err("one stays");
    assert_eq!(world.fake.bound(), [] as [&str; 0]);
    assert!(ipvs::has_device(&mut world.fake.links.clone()).expect("an answer"), "it marks what is left");
    assert!(world.fake.servers.set_connections(key, real, Connections::default()));
    remove_patiently(&world).expect("no connection is open");
    assert!(world.fake.keys().is_empty() && world.fake.links.addresses_on(DEVICE).is_none());
}
