//! What the kernel refuses is left out alone, named, and tried again; what it lacks is said.

use std::time::Duration;

use netfilter::ipset::SetName;
use netfilter::kernel::{IpSets, IpvsError, SetOperation};
use proxier::model::IpvsConfig;
use serde_json::json;

use super::fake::{DEVICE, Fake};
use super::world::{World, over, service, service_with, slice};

fn world() -> World {
    let mut world = World::new();
    for (name, ip) in [("good", "10.96.0.10"), ("bad", "10.96.0.11")] {
        world.apply(service(name, ip));
        world.apply(slice(name, &["10.244.1.5"]));
    }
    world
}

#[track_caller]
fn error(world: &mut World) -> String {
    world.try_sync().expect_err("it cannot work").0
}

#[test]
fn a_refused_virtual_server_does_not_affect_others() {
    let mut world = world();
    world.fake.servers.refuse(Some("10.96.0.11:80".parse().expect("an address")));
    let stats = world.sync();
    let [rejected] = &stats.rejected[..] else { panic!("{stats:?}") };
    assert_eq!(rejected.port.to_string(), "default/bad:http");
    assert!(rejected.reason.contains("10.96.0.11:80"), "{}", rejected.reason);
    assert_eq!(world.fake.reals("10.96.0.10:80").len(), 1);
    assert_eq!(world.backend.check_drift(world.now).expect("an answer"), None, "what was never there is not gone");
    assert_eq!(world.sync().rejected.len(), 1, "it is tried again");
    world.fake.servers.refuse(None);
    assert_eq!(world.sync().rejected, []);
    assert_eq!(world.fake.reals("10.96.0.11:80").len(), 1);
}

#[test]
fn a_refused_endpoint_does_not_affect_others() {
    let mut world = world();
    world.sync();
    world.fake.servers.refuse(Some("10.244.1.7:8080".parse().expect("an address")));
    world.apply(slice("bad", &["10.244.1.5", "10.244.1.6", "10.244.1.7"]));
    assert_eq!(world.sync().rejected.len(), 1);
    assert_eq!(world.fake.reals("10.96.0.11:80").len(), 2);
    assert_eq!(world.backend.check_drift(world.now).expect("an answer"), None, "what was never there is not gone");
    assert_eq!(world.sync().rejected.len(), 1, "it is tried again");
    assert_eq!(world.fake.reals("10.96.0.11:80").len(), 2);
    world.fake.servers.refuse(None);
    assert_eq!(world.sync().rejected, []);
    assert_eq!(world.fake.reals("10.96.0.11:80").len(), 3);
}

#[test]
fn a_refused_address_rejects_only_its_service_port() {
    let mut world = world();
    world.fake.links.refuse(Some("10.96.0.11/32".parse().expect("a network")));
    let stats = world.sync();
    assert_eq!(stats.rejected.len(), 1);
    assert_eq!(world.fake.bound(), ["10.96.0.10/32"]);
    world.fake.links.refuse(None);
    assert_eq!(world.sync().rejected, []);
    assert_eq!(world.fake.bound().len(), 2);
}

#[test]
fn a_failed_sync_is_followed_by_a_full_sync() {
    let mut world = world();
    world.fake.servers.fail(Some(|| IpvsError::NotPermitted));
    assert!(error(&mut world).contains("CAP_NET_ADMIN"));
    world.fake.servers.fail(None);
    assert!(world.sync().full);
    assert_eq!(world.fake.keys().len(), 2);
}

#[test]
fn missing_kernel_features_and_conflicting_objects_are_named() {
    let mut world = world();
    world.fake.servers.lose_scheduler("rr");
    let said = error(&mut world);
    assert!(said.contains("ip_vs_rr"), "{said}");

    let mut world = self::world();
    world.fake.servers.fail(Some(|| IpvsError::Missing { tried: String::new() }));
    let said = error(&mut world);
    assert!(said.contains("modprobe ip_vs"), "{said}");

    let mut world = self::world();
    world.fake.sets.add_foreign(SetName::new("KUBE-CLUSTER-IP"), "list:set size 8");
    let said: Vec<String> = world.sync().rejected.into_iter().map(|rejected| rejected.reason).collect();
    assert!(said.len() == 2 && said.iter().all(|said| said.contains("KUBE-CLUSTER-IP") && said.contains("destroy")));

    let mut world = self::world();
    world.fake.links.add_device(DEVICE, Some("veth"));
    let said = error(&mut world);
    assert!(said.contains("kube-ipvs0") && said.contains("veth"), "{said}");
}

#[test]
fn a_missing_scheduler_is_detected_at_startup() {
    let fake = Fake::default();
    let with = |name: &str| IpvsConfig { scheduler: name.to_owned(), ..IpvsConfig::default() };
    let check = |config: &IpvsConfig| proxier::ipvs::check(&mut fake.servers.clone(), config);
    assert!(check(&with("")).is_ok() && check(&with("sh")).is_ok());
    assert!(fake.keys().is_empty(), "nothing is left of the trial");
    fake.servers.lose_scheduler("lblc");
    let said = check(&with("lblc")).expect_err("there is none").0;
    assert!(said.contains("ip_vs_lblc"), "{said}");
}

#[test]
fn a_set_of_another_type_stops_only_what_needs_it_until_it_is_gone() {
    let mut world = world();
    let name = SetName::new("KUBE-NODE-PORT-SCTP-HASH");
    world.fake.sets.add_foreign(name, "bitmap:port range 0-65535");
    let port = json!([{ "name": "http", "protocol": "SCTP", "port": 80, "nodePort": 30080 }]);
    let fields = json!({ "type": "NodePort", "ports": port });
    world.apply(service_with("sctp", "10.96.0.12", &fields));
    world.apply(over("SCTP", slice("sctp", &["10.244.1.6"])));
    for _ in 0..2 {
        let stats = world.sync();
        let [rejected] = &stats.rejected[..] else { panic!("{stats:?}") };
        assert_eq!(rejected.port.to_string(), "default/sctp:http");
        assert!(rejected.reason.contains(name.as_str()) && rejected.reason.contains("bitmap:port"), "{rejected:?}");
        assert_eq!(world.fake.reals("10.96.0.10:80").len(), 1);
        let cluster_ips = world.fake.sets.entries_in(SetName::new("KUBE-CLUSTER-IP")).expect("the set");
        assert_eq!(cluster_ips.len(), 3, "its cluster IP works");
        let rules = world.fake.tables.to_string();
        assert!(rules.contains("KUBE-CLUSTER-IP") && !rules.contains(name.as_str()), "{rules}");
        world.request_full_sync();
    }
    assert_eq!(world.backend.check_drift(world.now).expect("an answer"), None);
    let destroy = [SetOperation::Destroy(name)];
    world.fake.sets.clone().apply(&destroy, &mut |_, error| panic!("{error}")).expect("the fake works");
    world.pass(Duration::from_secs(10_000));
    let damage = world.backend.check_drift(world.now).expect("an answer").expect("it can be made now");
    assert!(damage.contains(name.as_str()), "{damage}");
    world.request_full_sync();
    assert_eq!(world.sync().rejected, []);
    assert_eq!(world.fake.sets.entries_in(name).expect("the set").len(), 1);
}
