//! The Node that the proxy runs on, and its changes.

use golden::node::NAME;
use golden::sample::{node, service};
use serde_json::{Value, json};

use super::World;

/// The own Node with these addresses and networks.
fn own(addresses: &[&str], pod_cidrs: &[&str]) -> Value {
    let mut own = node(NAME, "zone-a");
    own["status"]["addresses"] = addresses.iter().map(|ip| json!({"type": "InternalIP", "address": ip})).collect();
    own["spec"]["podCIDRs"] = json!(pod_cidrs);
    own
}

/// The destinations whose packets are dispatched to node ports.
fn dispatched(world: &World) -> Vec<String> {
    let rules = world.node.rules();
    let jumps =
        rules.lines().filter(|line| line.starts_with("-A KUBE-SERVICES") && line.ends_with("-j KUBE-NODEPORTS"));
    jumps
        .map(|line| line.split(" -d ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or("any").to_owned())
        .collect()
}

#[test]
fn primary_and_health_checks_follow_the_nodes_address_and_are_closed_without_one() {
    let mut world = World::new();
    for ip in ["192.168.50.2", "192.168.50.3"] {
        world.node.netns().run(&format!("ip addr add {ip}/24 dev lo"));
    }
    let mut balanced = service("web", "10.96.0.10");
    balanced["spec"]["type"] = json!("LoadBalancer");
    balanced["spec"]["externalTrafficPolicy"] = json!("Local");
    balanced["spec"]["healthCheckNodePort"] = json!(32_000);
    balanced["spec"]["ports"][0]["nodePort"] = json!(30_080);
    world.api.apply(balanced);
    world.start(&["--nodeport-addresses=primary"]);
    for ip in ["192.168.50.2", "192.168.50.3"] {
        world.api.apply(own(&[ip], &[]));
        // IPv6 has no address, so no rule jumps to the node ports.
        world.node.until(&format!("node ports are at {ip}"), || dispatched(&world) == [format!("{ip}/32")]);
        world.node.until(&format!("health checks are at {ip}"), || {
            let sockets = world.node.netns().run("ss -Hltn sport = :32000");
            sockets.lines().filter_map(|line| line.split_whitespace().nth(3)).eq([&*format!("{ip}:32000")])
        });
    }
    world.node.until_logged(&["addresses changed from [192.168.50.2] to [192.168.50.3]"]);
    world.node.netns().run("ip addr add fd00:50::2/64 dev lo nodad");
    world.api.apply(own(&["192.168.50.3", "fd00:50::2"], &[]));
    world.node.until("IPv6 is open too", || dispatched(&world) == ["192.168.50.3/32", "fd00:50::2/128"]);
}

#[test]
fn changed_pod_cidrs_end_only_a_proxy_that_uses_them() {
    for (arguments, ends) in [(&["--detect-local-mode=NodeCIDR"][..], true), (&[], false)] {
        let mut world = World::new();
        world.api.apply(own(&["192.168.50.2"], &["10.244.1.0/24"]));
        world.start(arguments);
        world.settled();
        let rules = world.node.rules();
        assert_eq!(rules.contains("! -s 10.244.1.0/24"), ends, "{rules}");
        world.api.apply(own(&["192.168.50.2"], &["10.244.7.0/24"]));
        if ends {
            assert_eq!(world.node.wait().code(), Some(1), "{}", world.node.log());
            world.node.until_logged(&["spec.podCIDRs changed from [10.244.1.0/24] to [10.244.7.0/24]"]);
            assert_eq!(world.node.rules(), rules, "its rules stay until it is started again");
        } else {
            world.api.apply(golden::sample::slice("web-1", "web", &["10.244.2.9"]));
            world.node.until_endpoints(super::WEB, &["10.244.2.9:8080"]);
        }
    }
}

#[test]
fn proxy_logs_what_the_first_sync_waits_for() {
    let mut world = World::new();
    world.api.apply(own(&[], &[]));
    world.start(&[]);
    world.node.until_logged(&["Waiting up to 30s for Node", NAME]);
    assert!(!world.node.rules().contains("KUBE-"), "{}", world.node.rules());
    world.api.apply(own(&["192.168.50.2"], &[]));
    world.settled();
}

#[test]
fn node_cidr_waits_for_networks_with_its_ports_open() {
    let mut world = World::new();
    world.api.apply(own(&["192.168.50.2"], &[]));
    world.start(&["--detect-local-mode=NodeCIDR"]);
    world.node.until_logged(&["for spec.podCIDRs of Node"]);
    world.node.until_health("/livez", 200);
    assert!(!world.node.rules().contains("KUBE-"), "{}", world.node.rules());
    world.api.apply(own(&["192.168.50.2"], &["10.244.1.0/24"]));
    world.settled();
    assert!(world.node.rules().contains("! -s 10.244.1.0/24"), "{}", world.node.rules());
}

#[test]
fn forbidden_node_is_named_with_the_next_step_until_it_can_be_read() {
    let mut world = World::new();
    world.api.apply(own(&["192.168.50.2"], &["10.244.1.0/24"]));
    world.api.fail_next_of("Node", usize::MAX, 403);
    world.start(&["--detect-local-mode=NodeCIDR"]);
    world.node.until_logged(&["no rules yet", "needs its spec.podCIDRs", "403 Forbidden", "system:node-proxier"]);
    assert!(!world.node.rules().contains("KUBE-"), "{}", world.node.rules());
    world.api.fail_no_more();
    world.settled();
    assert!(world.node.rules().contains("! -s 10.244.1.0/24"), "{}", world.node.rules());
}

#[test]
fn a_node_whose_first_address_is_of_a_family_that_the_host_lacks_is_fatal() {
    let mut world = World::new();
    world.node.netns().enter(|| std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1")).expect("a sysctl");
    world.api.apply(own(&["fd00:50::2", "192.168.50.2"], &[]));
    world.start(&[]);
    assert_eq!(world.node.wait().code(), Some(1), "{}", world.node.log());
    world.node.until_logged(&["no support for primary IP family", "IPv6"]);
    world.node.until_logged(&["single-stack"]);
    assert!(!world.node.rules().contains("KUBE-"), "{}", world.node.rules());
    // bindAddress makes its family the primary one.
    world.start(&["--bind-address=192.168.50.2"]);
    world.settled();
}
