//! More health-check Services than file descriptors.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpStream};
use std::time::{Duration, Instant};

use golden::node::NAME;
use golden::sample::{service, slice};
use serde_json::json;

use super::World;

const SERVICES: u16 = 1500;
const FIRST_PORT: u16 = 30_100;
/// How soon a change has to be in the kernel, in a debug build on a machine shared with other tests.
const PROMPT: Duration = Duration::from_secs(15);

/// Dual-stack Services with a health-check port each. The first one has an endpoint on this node, in IPv4 only.
fn crowded(starter: &'static [&'static str]) -> World {
    let mut world = World::new();
    for number in 0..SERVICES {
        let (high, low) = (number / 250, number % 250 + 1);
        let mut balanced = service(&format!("hc-{number}"), "");
        let addresses = [format!("10.97.{high}.{low}"), format!("fd00:97::{high:x}:{low:x}")];
        balanced["spec"]["clusterIP"] = json!(addresses[0]);
        balanced["spec"]["clusterIPs"] = json!(addresses);
        balanced["spec"]["ipFamilies"] = json!(["IPv4", "IPv6"]);
        balanced["spec"]["type"] = json!("LoadBalancer");
        balanced["spec"]["externalTrafficPolicy"] = json!("Local");
        balanced["spec"]["healthCheckNodePort"] = json!(FIRST_PORT + number);
        world.api.apply(balanced);
    }
    let mut local = slice("hc-0-1", "hc-0", &["10.244.1.20"]);
    local["endpoints"][0]["nodeName"] = json!(NAME);
    world.api.apply(local);
    world.starter = starter;
    world.start();
    world
}

/// The status and body of a health check at an address of the node.
fn ask(world: &World, address: IpAddr, port: u16) -> Option<(u16, String)> {
    let ask = || {
        let mut client = TcpStream::connect((address, port)).ok()?;
        client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        client.read_to_string(&mut answer).ok()?;
        Some((answer.split(' ').nth(1)?.parse().ok()?, answer))
    };
    world.node.netns().enter(ask)
}

/// The number of health-check ports that one socket serves in both families, `*:PORT` as ss(8) prints it.
fn dual_stack(world: &World) -> usize {
    let sockets = world.node.netns().run("ss -Hltn");
    let port = |socket: &str| socket.split_whitespace().nth(3)?.strip_prefix("*:")?.parse::<u16>().ok();
    let ports = sockets.lines().filter_map(port);
    ports.filter(|port| (FIRST_PORT..FIRST_PORT + SERVICES).contains(port)).count()
}

fn change_is_prompt(world: &World, pod: &str) {
    let begun = Instant::now();
    world.works(pod);
    assert!(begun.elapsed() < PROMPT, "a change took {:?}", begun.elapsed());
}

#[test]
fn soft_limit_of_1024_serves_1500_dual_stack_health_checks_and_a_change_is_prompt() {
    let world = crowded(&["sh", "-c", "ulimit -S -n 1024; exec \"$0\" \"$@\""]);
    let open = || world.node.metric("process_open_fds");
    world.node.until("all are served", || dual_stack(&world) == usize::from(SERVICES));
    world.node.until("each by one socket", || open() < f64::from(SERVICES) + 100.0);
    assert_eq!(world.node.metric("kubeproxy_unserved_health_check_services"), 0.0);
    change_is_prompt(&world, "10.244.2.6");
    // One socket, and each family's own answer.
    let (v4, v6) = (Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into());
    let (status, answer) = ask(&world, v4, FIRST_PORT).expect("an answer");
    assert!(status == 200 && answer.contains("\"localEndpoints\": 1"), "{answer}");
    let (status, answer) = ask(&world, v6, FIRST_PORT).expect("an answer");
    assert!(status == 503 && answer.contains("\"localEndpoints\": 0"), "{answer}");
    for address in [v4, v6] {
        assert_eq!(ask(&world, address, FIRST_PORT + SERVICES - 1).expect("an answer").0, 503);
    }
}

#[test]
fn hard_limit_of_1024_serves_what_fits_names_the_rest_and_a_change_is_prompt() {
    let world = crowded(&["sh", "-c", "ulimit -n 1024; exec \"$0\" \"$@\""]);
    let unserved = || world.node.metric("kubeproxy_unserved_health_check_services");
    world.node.until("some are not served", || unserved() > 1000.0);
    world.node.until_logged(&["Failed to serve health checks of Service default/hc-", "RLIMIT_NOFILE"]);
    change_is_prompt(&world, "10.244.2.6");
    world.node.until_health("/healthz", 200);
    let open = world.node.metric("process_open_fds");
    assert!((296.0..600.0).contains(&open), "{open} descriptors are open");
    assert!(!world.node.log().contains("Too many open files"), "{}", world.node.log());
}
