//! Events that the proxy sends, and an API server that refuses them.

use golden::node::NAME;
use golden::sample::{service, slice};
use serde_json::{Value, json};

use super::{WEB, World};

fn events(world: &World, reason: &str) -> Vec<Value> {
    world.api.all("Event").into_iter().filter(|event| event["reason"] == reason).collect()
}

#[test]
fn start_is_recorded_as_an_event() {
    let mut world = World::new();
    world.start(&[]);
    world.node.until("it tells that it starts", || events(&world, "Starting").len() == 1);
    let starting = &events(&world, "Starting")[0];
    assert_eq!(starting["regarding"], json!({"apiVersion": "v1", "kind": "Node", "name": NAME}));
    world.settled();
}

#[test]
fn server_that_refuses_events_does_not_affect_syncs() {
    let mut world = World::new();
    world.api.fail_next_of("Event", usize::MAX, 403);
    world.start(&[]);
    world.settled();
    world.node.until_logged(&["rejected event \"Starting\"", "not retrying"]);
    world.api.apply(slice("web-1", "web", &["10.244.2.7"]));
    world.node.until_endpoints(WEB, &["10.244.2.7:8080"]);
}

#[test]
fn health_check_port_in_use_is_an_event_of_its_service() {
    let mut world = World::new();
    let taken = world.node.netns().enter(|| std::net::TcpListener::bind("0.0.0.0:32001")).expect("a free port");
    let mut balanced = service("web", "10.96.0.10");
    balanced["spec"]["type"] = json!("LoadBalancer");
    balanced["spec"]["externalTrafficPolicy"] = json!("Local");
    balanced["spec"]["healthCheckNodePort"] = json!(32_001);
    world.api.apply(balanced);
    world.start(&[]);
    let reason = "FailedToStartServiceHealthcheck";
    world.node.until("it tells that the port is taken", || events(&world, reason).len() == 1);
    let event = &events(&world, reason)[0];
    assert_eq!((&event["type"], &event["metadata"]["namespace"]), (&json!("Warning"), &json!("default")));
    assert!(event["note"].as_str().is_some_and(|note| note.contains("32001")), "{event}");
    world.settled();
    // It is tried again.
    drop(taken);
    world.api.apply(slice("web-1", "web", &["10.244.2.7"]));
    world.node.until_logged(&["Serving health checks of Service", "0.0.0.0:32001"]);
}

#[test]
fn required_port_in_use_ends_the_proxy_after_an_event() {
    for (port, reason) in [(10249, "FailedToStartMetricServer"), (10256, "FailedToStartProxierHealthcheck")] {
        let mut world = World::new();
        let _taken = world.node.netns().enter(|| std::net::TcpListener::bind(("0.0.0.0", port))).expect("a free port");
        world.start(&["--bind-address-hard-fail"]);
        assert_eq!(world.node.wait().code(), Some(1), "{}", world.node.log());
        let reported = events(&world, reason);
        assert_eq!(reported.len(), 1, "{}", world.node.log());
        assert_eq!((&reported[0]["type"], &reported[0]["action"]), (&json!("Warning"), &json!("StartKubeProxy")));
    }
}
