//! Starts, stops and unreachable servers.

use std::time::{Duration, Instant};

use golden::node::endpoints;
use golden::sample::slice;
use nix::sys::signal::Signal;

use super::{PODS, WEB, World};

#[test]
fn nothing_is_programmed_before_both_lists_are_complete() {
    for (missing, other) in [("EndpointSlice", "Service"), ("Service", "EndpointSlice")] {
        let mut world = World::new();
        world.api.fail_next_of(missing, usize::MAX, 500);
        world.start();
        world.api.wait_for_watches(other, 1);
        world.api.wait_for_watches("Node", 1);
        world.node.until_logged(&["Failed to watch", missing]);
        world.node.until_logged(&["Failed to watch", missing, ": 500 "]);
        assert!(!world.node.rules().contains("KUBE-"), "{}", world.node.rules());
        assert!(world.syncs() < 1.0, "nothing was synced");
        assert_eq!(world.node.health("/livez").map(|(code, _)| code), Some(200));
        world.api.fail_no_more();
        world.settled();
    }
}

#[test]
fn server_that_is_down_at_the_start_is_retried() {
    let mut world = World::new();
    world.api.down();
    world.start();
    world.node.until_logged(&["Failed to watch Services", "connection refused", "rules left in place"]);
    assert_eq!(world.node.health("/livez").map(|(code, _)| code), Some(200), "there is nothing it should have done");
    assert_eq!(world.node.health("/healthz").map(|(code, _)| code), Some(503), "its Node is unknown");
    assert!(!world.node.rules().contains("KUBE-"), "{}", world.node.rules());
    world.api.up();
    world.settled();
}

#[test]
fn rules_stay_while_the_server_is_down_and_catch_up_when_it_is_back() {
    let world = World::running();
    let before = world.node.rules();
    world.api.down();
    world.node.until_logged(&["Failed to watch Services", "rules left in place"]);
    world.api.apply(slice("web-1", "web", &["10.244.2.8"]));
    assert_eq!(world.node.rules(), before);
    for path in ["/healthz", "/livez"] {
        assert_eq!(world.node.health(path).map(|(code, _)| code), Some(200), "{path}");
    }
    world.api.up();
    world.node.until_endpoints(WEB, &["10.244.2.8:8080"]);
    world.works("later");
}

#[test]
fn sigterm_ends_the_proxy_gracefully_and_leaves_the_rules() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut world = World::running();
        let before = world.node.rules();
        let status = world.node.end(signal);
        assert_eq!(status.code(), Some(0), "{status}\n{}", world.node.log());
        world.node.until_logged(&[signal.as_str(), "rules left in place"]);
        for family in ["IPv4", "IPv6"] {
            world.node.until_logged(&[&format!("{family}: stopped")]);
        }
        let log = world.node.log();
        assert!(log.find(": stopping") < log.find(": stopped"), "why comes first: {log}");
        assert_eq!(world.node.rules(), before);
    }
}

#[test]
fn sigterm_during_startup_ends_the_proxy() {
    let mut world = World::new();
    world.start();
    world.node.until_logged(&["Using iptables mode"]);
    let status = world.node.end(Signal::SIGTERM);
    assert_eq!(status.code(), Some(0), "{status}\n{}", world.node.log());
}

#[test]
fn sigterm_ends_the_proxy_while_the_server_is_down() {
    let mut world = World::new();
    world.api.down();
    world.start();
    world.node.until_logged(&["Failed to watch Services"]);
    let start = Instant::now();
    let status = world.node.end(Signal::SIGTERM);
    assert_eq!(status.code(), Some(0), "{status}\n{}", world.node.log());
    assert!(start.elapsed() < Duration::from_secs(20), "it took {:?}", start.elapsed());
}

#[test]
fn restart_after_sigkill_changes_no_rules() {
    let mut world = World::running();
    let before = world.node.rules();
    world.node.end(Signal::SIGKILL);
    assert_eq!(world.node.rules(), before);
    world.start();
    world.node.until_health("/healthz", 200);
    world.node.until("both families were synced", || {
        // All the while, what does not change is there.
        assert_eq!(endpoints(&world.node.rules(), WEB), PODS.map(str::to_owned).into());
        world.syncs() >= 2.0
    });
    assert_eq!(world.node.rules(), before);
    let written = world.node.metric("kubeproxy_sync_proxy_rules_iptables_last");
    assert!(written < 1.0, "{written} rules were written though all were there");
}

#[test]
fn restart_after_sigkill_at_any_moment_catches_up() {
    let mut world = World::running();
    for round in 0..8 {
        let name = format!("round-{round}");
        world.api.apply(golden::sample::service(&name, &format!("10.96.1.{round}")));
        world.api.apply(slice(&format!("{name}-1"), &name, &["10.244.2.30"]));
        world.api.apply(slice("web-1", "web", &["10.244.2.5", "10.244.2.6", &format!("10.244.3.{round}")]));
        // Not an order: some moment of the sync that is under way now.
        std::thread::sleep(Duration::from_millis(7 * round));
        world.node.end(Signal::SIGKILL);
        let left = world.node.endpoints(WEB);
        assert!(PODS.iter().all(|pod| left.contains(*pod)), "untouched endpoints were lost: {left:?}");
        world.start();
        world.node.until_endpoints(WEB, &[PODS[0], PODS[1], &format!("10.244.3.{round}:8080")]);
        world.node.until_endpoints(&format!("default/{name}:http"), &["10.244.2.30:8080"]);
    }
    // The same as on a node where nothing ever went wrong.
    let rules = sorted(&world.node.rules());
    let mut fresh = golden::node::Node::new(env!("CARGO_BIN_EXE_kube-proxy"));
    let api = fresh.api_server();
    for kind in ["Node", "Service", "EndpointSlice"] {
        for name in names(kind) {
            let namespace = if kind == "Node" { "" } else { "default" };
            api.apply(world.api.get(kind, namespace, &name).expect("it is there"));
        }
    }
    fresh.start(&["--master", &api.url()]);
    fresh.until("a fresh node has the same rules", || sorted(&fresh.rules()) == rules);
}

fn names(kind: &str) -> Vec<String> {
    let rounds = |suffix: &str| (0..8).map(|round| format!("round-{round}{suffix}")).collect::<Vec<_>>();
    match kind {
        "Node" => vec![golden::node::NAME.to_owned()],
        "Service" => [rounds(""), vec!["web".to_owned()]].concat(),
        _ => [rounds("-1"), vec!["web-1".to_owned()]].concat(),
    }
}

/// Chains stand in the order in which they were made; what is in each is in order.
fn sorted(rules: &str) -> String {
    let mut chains: Vec<(String, &str)> = Vec::new();
    let mut table = "";
    for line in rules.lines() {
        if line.starts_with('*') {
            table = line;
        }
        let chain = line.split(' ').nth(1).unwrap_or_default();
        chains.push((format!("{table} {chain}"), line));
    }
    chains.sort_by(|a, b| a.0.cmp(&b.0));
    chains.into_iter().flat_map(|(_, line)| [line, "\n"]).collect()
}
