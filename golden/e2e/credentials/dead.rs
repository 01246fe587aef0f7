//! Connections that die silently: no FIN, no RST, no answer. kube-proxy notices within 45 s.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use golden::cluster::eventually;
use golden::sample::slice;

use super::http2::ProxyRecord;
use super::{WEB, World};

/// 20 s until a PING or 15 s until a probe, 15 s for the answer, and a margin for a busy machine.
const LIMIT: Duration = Duration::from_secs(45);

/// Asserts that another pod appears behind `web` in time.
fn noticed(world: &World) {
    let begun = Instant::now();
    world.api.apply(slice("web-1", "web", &["10.244.2.6"]));
    let leads = || world.node.endpoints(WEB).contains("10.244.2.6:8080");
    eventually("the change arrives by a new connection", LIMIT, leads);
    // Otherwise the old connection was not dead.
    assert!(begun.elapsed() > Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[test]
fn an_http2_server_that_answers_no_ping_is_left_within_45_seconds() {
    let mut world = World::new();
    let seen = Arc::new(ProxyRecord::default());
    let url = world.http2(&seen);
    world.start(&url, "certificate-authority: ca.crt", "");
    world.node.until_endpoints(WEB, &["10.244.2.5:8080"]);
    seen.freeze();
    noticed(&world);
    assert_eq!(seen.connections.load(Ordering::SeqCst), 2);
}

#[test]
fn an_http1_connection_whose_packets_are_dropped_is_left_within_45_seconds() {
    let mut world = World::new();
    let front = world.front(None);
    world.start(&front.url(), "certificate-authority: ca.crt", "");
    world.node.until_endpoints(WEB, &["10.244.2.5:8080"]);
    for client in front.peers() {
        world.node.netns().run(&format!("iptables -w -I INPUT -p tcp --sport {} -j DROP", client.port()));
        world.node.netns().run(&format!("iptables -w -I INPUT -p tcp --dport {} -j DROP", client.port()));
    }
    noticed(&world);
}
