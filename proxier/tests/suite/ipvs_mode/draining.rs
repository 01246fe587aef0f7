//! Connections live on when their endpoint or their Service goes, or the proxy starts anew.

use std::time::Duration;

use netfilter::ipvs::{Connections, ServerKey, UDP};
use netfilter::kernel::IpvsError;

use super::fake::tcp;
use super::world::{World, over, service, slice};

const WEB: &str = "10.96.0.10:80";
const A: &str = "10.244.1.5:8080";
const B: &str = "10.244.1.6:8080";
const MINUTE: Duration = Duration::from_mins(1);

fn world() -> World {
    let mut world = World::new();
    world.apply(service("web", "10.96.0.10"));
    world.apply(slice("web", &["10.244.1.5", "10.244.1.6"]));
    world.sync();
    world
}

fn use_by(world: &World, active: u32) {
    let connections = Connections { active, ..Connections::default() };
    assert!(world.fake.servers.set_connections(tcp(WEB), A.parse().expect("an address"), connections));
}

fn reals(world: &World) -> Vec<(String, u32)> {
    world.fake.reals(WEB)
}

fn with_weights(list: &[(&str, u32)]) -> Vec<(String, u32)> {
    list.iter().map(|(address, weight)| ((*address).to_owned(), *weight)).collect()
}

#[test]
fn a_terminating_endpoint_is_deleted_with_its_last_connection() {
    let mut world = world();
    use_by(&world, 3);
    world.apply(slice("web", &["10.244.1.6"]));
    world.sync();
    assert_eq!(reals(&world), with_weights(&[(A, 0), (B, 1)]));
    world.pass(MINUTE);
    assert_eq!(reals(&world), with_weights(&[(A, 0), (B, 1)]), "it has connections");
    use_by(&world, 0);
    world.pass(MINUTE);
    assert_eq!(reals(&world), with_weights(&[(B, 1)]));
    assert_eq!(world.backend.next_event(), None, "no real server is terminating");
}

#[test]
fn a_terminating_endpoint_is_deleted_after_fifteen_minutes() {
    let mut world = world();
    use_by(&world, 1);
    world.apply(slice("web", &["10.244.1.6"]));
    world.sync();
    world.pass(14 * MINUTE);
    // Neither changes nor looks at everything begin it anew.
    world.request_full_sync();
    world.sync();
    assert_eq!(reals(&world).len(), 2);
    world.pass(2 * MINUTE);
    assert_eq!(reals(&world), with_weights(&[(B, 1)]));
}

#[test]
fn an_endpoint_that_returns_while_terminating_keeps_its_connections() {
    let mut world = world();
    use_by(&world, 1);
    world.apply(slice("web", &["10.244.1.6"]));
    world.sync();
    let _ = world.fake.servers.take_operations();
    world.apply(slice("web", &["10.244.1.5", "10.244.1.6"]));
    world.sync();
    assert_eq!(reals(&world), with_weights(&[(A, 1), (B, 1)]));
    assert_eq!(world.fake.servers.take_operations().len(), 1, "it was changed, not made anew");
}

#[test]
fn a_deleted_service_with_connections_terminates_gracefully() {
    let mut world = world();
    use_by(&world, 1);
    world.delete(&service("web", "10.96.0.10"));
    world.sync();
    assert_eq!(reals(&world), with_weights(&[(A, 0)]), "the idle one goes at once");
    assert_eq!(world.fake.bound(), ["10.96.0.10/32"], "packets have to come in here");
    assert_eq!(world.fake.entries("KUBE-IPVS-IPS"), ["10.96.0.10"], "new connections are refused");
    assert!(world.fake.entries("KUBE-CLUSTER-IP").is_empty());
    assert_eq!(world.backend.check_drift(world.now).expect("an answer"), None, "that is no damage");
    use_by(&world, 0);
    world.pass(MINUTE);
    assert!(world.fake.keys().is_empty() && world.fake.bound().is_empty());
    assert!(world.fake.entries("KUBE-IPVS-IPS").is_empty());
}

#[test]
fn a_service_that_returns_while_terminating_reuses_its_virtual_server() {
    let mut world = world();
    use_by(&world, 1);
    world.delete(&service("web", "10.96.0.10"));
    world.sync();
    world.apply(service("web", "10.96.0.10"));
    world.sync();
    assert_eq!(reals(&world), with_weights(&[(A, 1), (B, 1)]));
    world.pass(20 * MINUTE);
    assert_eq!(world.fake.bound(), ["10.96.0.10/32"]);
    world.delete(&service("web", "10.96.0.10"));
    use_by(&world, 0);
    world.sync();
    assert!(world.fake.bound().is_empty(), "its reference is dropped once");
}

#[test]
fn a_restarted_process_continues_graceful_termination() {
    let mut world = world();
    use_by(&world, 1);
    world.apply(slice("web", &["10.244.1.6"]));
    world.sync();
    world.delete(&service("web", "10.96.0.10"));
    world.restart();
    world.sync();
    assert_eq!(reals(&world), with_weights(&[(A, 0)]));
    assert_eq!(world.fake.bound(), ["10.96.0.10/32"]);
    use_by(&world, 0);
    world.pass(MINUTE);
    assert!(world.fake.keys().is_empty() && world.fake.bound().is_empty());
}

#[test]
fn a_failed_sync_suspends_checks_of_terminating_endpoints() {
    let mut world = world();
    use_by(&world, 1);
    world.apply(slice("web", &["10.244.1.6"]));
    world.sync();
    world.fake.servers.fail(Some(|| IpvsError::NotPermitted));
    world.now += MINUTE;
    world.request_full_sync();
    assert!(world.try_sync().is_err());
    // A look that is due and does nothing would be due again at once, and so keep a CPU busy until the next try.
    assert_eq!(world.backend.next_event(), None);
    world.fake.servers.fail(None);
    world.sync();
    use_by(&world, 0);
    world.pass(MINUTE);
    assert_eq!(reals(&world), with_weights(&[(B, 1)]));
}

#[test]
fn a_virtual_server_missing_from_one_listing_is_not_deleted() {
    let mut world = world();
    world.fake.servers.miss_once(tcp(WEB));
    assert_eq!(world.backend.check_drift(world.now).expect("an answer"), None);
    use_by(&world, 1);
    world.delete(&service("web", "10.96.0.10"));
    world.sync();
    world.fake.servers.miss_once(tcp(WEB));
    world.request_full_sync();
    world.sync();
    assert_eq!((world.fake.bound().len(), reals(&world)), (1, with_weights(&[(A, 0)])), "connections live on");
    world.apply(service("web", "10.96.0.10"));
    world.restart();
    world.fake.servers.miss_once(tcp(WEB));
    assert_eq!(world.sync().rejected, [], "nothing is made that is there");
    assert_eq!(reals(&world), with_weights(&[(A, 1), (B, 1)]));
}

#[test]
fn a_udp_endpoint_is_deleted_at_once() {
    let mut world = World::new();
    world.apply(over("UDP", service("dns", "10.96.0.10")));
    world.apply(over("UDP", slice("dns", &["10.244.1.5"])));
    world.sync();
    let key = ServerKey { protocol: UDP, ..tcp(WEB) };
    let used = Connections { inactive: 5, ..Connections::default() };
    assert!(world.fake.servers.set_connections(key, A.parse().expect("an address"), used));
    world.apply(over("UDP", slice("dns", &[])));
    world.sync();
    assert_eq!(world.fake.servers.server(key).expect("it is there").1, []);
}
