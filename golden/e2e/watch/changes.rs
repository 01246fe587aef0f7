//! Changes that arrive through watches, and changes without effect.

use golden::node::{NAME, Node};
use golden::sample::{node, service, slice};
use serde_json::json;

use super::{PODS, WEB, World};

#[test]
fn added_changed_and_deleted_services_and_endpoints_are_programmed() {
    let world = World::running();
    world.works("other");
    world.api.apply(slice("web-1", "web", &["10.244.2.6", "10.244.2.7"]));
    world.node.until_endpoints(WEB, &["10.244.2.6:8080", "10.244.2.7:8080"]);
    world.api.delete("Service", "default", "web");
    world.node.until_endpoints(WEB, &[]);
    assert!(!world.node.rules().contains("10.96.0.10"), "{}", world.node.rules());
    world.api.delete("EndpointSlice", "default", "other-1");
    world.node.until_endpoints("default/other:http", &[]);
    assert!(world.node.rules().contains("default/other:http has no endpoints"), "{}", world.node.rules());
}

#[test]
fn metadata_alone_causes_no_sync() {
    let world = World::running();
    let (syncs, service_changes) = (world.syncs(), "kubeproxy_sync_proxy_rules_service_changes_total");
    let seen = world.node.metric(service_changes);
    for round in 0..5 {
        for (kind, name) in [("Service", "web"), ("EndpointSlice", "web-1")] {
            let mut object = world.api.get(kind, "default", name).expect("it is there");
            object["metadata"]["annotations"] = json!({ "round": round.to_string() });
            object["metadata"]["managedFields"] = json!([{ "manager": "test", "time": round.to_string() }]);
            world.api.apply(object);
        }
        let mut own = world.api.get("Node", "", NAME).expect("it is there");
        own["status"]["conditions"] = json!([{ "type": "Ready", "lastHeartbeatTime": round.to_string() }]);
        world.api.apply(own);
    }
    world.node.until("the changes arrived", || world.node.metric(service_changes) >= seen + 5.0);
    // The one change after them that matters is the only one that is synced.
    world.api.apply(slice("web-1", "web", &["10.244.2.5"]));
    world.node.until_endpoints(WEB, &["10.244.2.5:8080"]);
    world.node.until("the sync is counted", || world.syncs() > syncs);
    assert!((world.syncs() - syncs - 1.0).abs() < 0.1, "{} syncs, not 1", world.syncs() - syncs);
}

#[test]
fn a_slice_that_gets_another_services_label_moves() {
    let world = World::running();
    world.api.apply(service("other", "10.96.0.11"));
    world.node.until("the other one is there", || world.node.rules().contains("10.96.0.11/32"));
    world.api.apply(slice("web-1", "other", &["10.244.2.5", "10.244.2.6"]));
    world.node.until_endpoints("default/other:http", &PODS);
    world.node.until_endpoints(WEB, &[]);
    let rules = world.node.rules();
    assert!(rules.contains("default/web:http has no endpoints"), "{rules}");
    assert!(!rules.contains("default/other:http has no endpoints"), "{rules}");
}

#[test]
fn the_nodes_zone_decides_about_hints_as_soon_as_it_changes() {
    let world = World::running();
    let mut hinted = slice("web-1", "web", &["10.244.2.5", "10.244.2.6"]);
    hinted["endpoints"][0]["hints"] = json!({ "forZones": [{ "name": "zone-a" }] });
    hinted["endpoints"][1]["hints"] = json!({ "forZones": [{ "name": "zone-b" }] });
    world.api.apply(hinted);
    world.node.until_endpoints(WEB, &PODS[..1]);
    world.api.apply(node(NAME, "zone-b"));
    world.node.until_endpoints(WEB, &PODS[1..]);
    let mut nowhere = node(NAME, "");
    nowhere["metadata"]["labels"] = json!({});
    world.api.apply(nowhere);
    world.node.until_endpoints(WEB, &PODS);
}

#[test]
fn node_being_deleted_fails_healthz_but_not_livez() {
    let world = World::running();
    let mut leaving = node(NAME, "zone-a");
    leaving["spec"]["taints"] = json!([{ "key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule" }]);
    world.api.apply(leaving);
    world.node.until_health("/healthz", 503);
    assert_eq!(status(&world.node, "/livez"), Some(200));
    world.api.apply(node(NAME, "zone-a"));
    world.node.until_health("/healthz", 200);
    // What was known of it holds until it is back.
    world.api.delete("Node", "", NAME);
    world.works("later");
    assert_eq!(status(&world.node, "/healthz"), Some(200));
}

fn status(node: &Node, path: &str) -> Option<u16> {
    node.health(path).map(|(code, _)| code)
}

#[test]
fn service_cidrs_are_watched_in_nftables_mode_and_count_at_once() {
    let mut node = Node::new(env!("CARGO_BIN_EXE_kube-proxy"));
    let api = node.api_server();
    api.apply(self::node(NAME, "zone-a"));
    api.apply(service("web", "10.96.0.10"));
    let cidr = |name: &str, cidrs: &[&str]| {
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
            "metadata": { "name": name }, "spec": { "cidrs": cidrs }
        })
    };
    api.apply(cidr("kubernetes", &["10.96.0.0/12"]));
    node.start(&["--master", &api.url(), "--proxy-mode=nftables", "--iptables-min-sync-period=0s"]);
    let drops = |net: &str| node.table().contains(&format!("ip daddr {net} drop"));
    node.until("unallocated cluster IPs are dropped", || drops("10.96.0.0/12"));
    api.apply(cidr("more", &["10.112.0.0/16", "10.96.0.0/12", "nonsense"]));
    node.until("another network counts", || drops("10.112.0.0/16"));
    // One of the two that name it is enough.
    api.delete("ServiceCIDR", "", "kubernetes");
    api.apply(cidr("more", &["10.96.0.0/12"]));
    node.until("a network that is gone does not", || !drops("10.112.0.0/16"));
    assert!(drops("10.96.0.0/12"), "{}", node.table());
    node.until_logged(&["ServiceCIDR more", "spec.cidrs[2]", "nonsense"]);
}
