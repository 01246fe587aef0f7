//! Changes on the node itself: addresses, unreadable facts, flushed rules.

use golden::sample::service;
use nix::sys::signal::Signal;
use serde_json::json;

use super::World;

const NODE_PORT: &str = "30080";
const MODES: [&str; 2] = ["iptables", "nftables"];

/// A proxy whose node has 192.168.50.2, in a mode, with node ports in that network. Nothing is looked at by the clock
/// within `period`.
fn running(mode: &str, period: &str) -> World {
    let mut world = World::new();
    world.node.netns().run("ip addr add 192.168.50.2/24 dev lo");
    let mut web = service("web", "10.96.0.10");
    web["spec"]["type"] = json!("NodePort");
    web["spec"]["ports"][0]["nodePort"] = json!(30_080);
    world.api.apply(web);
    let (mode, period) = (format!("--proxy-mode={mode}"), format!("--iptables-sync-period={period}"));
    world.start(&[&mode, &period, "--nodeport-addresses=192.168.50.0/24"]);
    let node = &world.node;
    node.until("node ports are served", || at_node_ports(&world, "192.168.50.2") && state(&world).contains(NODE_PORT));
    world
}

/// The rules of either mode.
fn state(world: &World) -> String {
    world.node.rules() + &world.node.table()
}

/// Whether an address serves node ports.
fn at_node_ports(world: &World, ip: &str) -> bool {
    let table = world.node.table();
    let elements = table.split("nodeport-ips").nth(1).and_then(|set| set.split('}').next()).unwrap_or_default();
    let jump = |line: &str| line.ends_with("-j KUBE-NODEPORTS") && line.contains(&format!("-d {ip}/32"));
    elements.contains(ip) || world.node.rules().lines().any(jump)
}

#[test]
fn new_and_removed_addresses_change_node_ports_whatever_the_sync_period() {
    for mode in MODES {
        let world = running(mode, "1h");
        world.node.netns().run("ip addr add 192.168.50.9/32 dev lo");
        world.node.until("the new address is served", || at_node_ports(&world, "192.168.50.9"));
        world.node.netns().run("ip addr del 192.168.50.9/32 dev lo");
        world.node.until("the old address is not served", || !at_node_ports(&world, "192.168.50.9"));
        assert!(at_node_ports(&world, "192.168.50.2"), "{mode}");
    }
}

#[test]
fn node_ports_are_unchanged_without_descriptors_and_follow_later() {
    for mode in MODES {
        let world = running(mode, "2s");
        let before = state(&world);
        let pid = world.node.pid().expect("it runs");
        let limit = |to: &str| _ = world.node.netns().run(&format!("prlimit --pid {pid} --nofile={to}:"));
        limit("1");
        world.node.netns().run("ip addr add 192.168.50.9/32 dev lo");
        world.node.until_logged(&["IPv4", "cannot read node addresses", "last known", "os error 24"]);
        assert_eq!(state(&world), before, "{mode}");
        limit("1024");
        world.node.until_logged(&["IPv4", "read node addresses again"]);
        world.node.until("the new address is served", || at_node_ports(&world, "192.168.50.9"));
        let said = world.node.log().lines().filter(|line| line.contains("cannot read node addresses")).count();
        assert!(said <= 3, "once for each family and reader: {}", world.node.log());
    }
}

#[test]
fn flushed_rules_come_back_whatever_the_sync_period() {
    for (mode, damages) in [
        ("iptables", &["nft flush ruleset", "iptables -t nat -F", "iptables -t filter -F"][..]),
        ("nftables", &["nft flush ruleset", "nft delete table ip kube-proxy", "nft flush table ip kube-proxy"]),
    ] {
        let world = running(mode, "1h");
        if mode == "iptables" {
            world.settled();
        }
        let before = state(&world);
        for damage in damages {
            // The repair may be quicker than a look at the damage.
            world.node.send(Signal::SIGSTOP);
            world.node.netns().run(damage);
            assert_ne!(state(&world), before, "{damage}");
            world.node.send(Signal::SIGCONT);
            world.node.until(&format!("{mode} mode mends {damage:?}"), || state(&world) == before);
        }
    }
}
