//! Faults between the proxy and an API server.

use std::time::Duration;

use golden::apiserver::{End, MediaTypes, Pace};
use golden::sample::{service, slice};
use serde_json::json;

use super::{PODS, WEB, World};

const JSON: MediaTypes = MediaTypes::OnlyJson;
const BOTH: MediaTypes = MediaTypes::JsonAndProtobuf;

#[test]
fn broken_watches_resume() {
    for end in [End::Clean, End::Torn, End::Reset] {
        let world = World::running();
        world.api.end_watches(end);
        world.api.apply(slice("web-1", "web", &["10.244.2.9"]));
        world.node.until_endpoints(WEB, &["10.244.2.9:8080"]);
        world.works("later");
    }
}

#[test]
fn object_deleted_during_a_history_gap_is_deleted() {
    let world = World::running();
    world.works("other");
    world.api.down();
    world.api.delete("Service", "default", "other");
    world.api.apply(service("new", "10.96.0.12"));
    world.api.apply(slice("new-1", "new", &["10.244.2.12"]));
    world.api.delete("EndpointSlice", "default", "web-1");
    world.api.expire_history();
    world.api.clear_requests();
    world.api.up();
    world.node.until_endpoints("default/new:http", &["10.244.2.12:8080"]);
    world.node.until_endpoints("default/other:http", &[]);
    world.node.until_endpoints(WEB, &[]);
    let rules = world.node.rules();
    assert!(!rules.contains("default/other:http"), "{rules}");
    assert!(rules.contains("default/web:http has no endpoints"), "{rules}");
    let requests = world.api.requests();
    let of_services: Vec<_> = requests.iter().filter(|request| request.path.ends_with("/services")).collect();
    assert!(!of_services[0].is_streaming_list(), "first it tried to go on");
    assert!(of_services[1..].iter().any(|request| request.is_streaming_list()), "then it listed again");
}

#[test]
fn refused_requests_are_logged_and_retried() {
    std::thread::scope(|scope| {
        for code in [500, 429, 403, 401] {
            scope.spawn(move || refused_and_overcome(code));
        }
    });
}

fn refused_and_overcome(code: u16) {
    let mut world = World::new();
    // The streamed list, and the plain one that follows it, or the streamed one again.
    for kind in ["Node", "Service", "EndpointSlice"] {
        world.api.fail_next_of(kind, 2, code);
    }
    world.start();
    for kind in ["Nodes", "Services", "EndpointSlices"] {
        world.node.until_logged(&["Failed to watch", kind, &code.to_string()]);
    }
    assert!(!world.node.log().contains("Status {"), "for people: {}", world.node.log());
    world.settled();

    // The same in the middle of its life.
    for kind in ["Service", "EndpointSlice"] {
        world.api.fail_next_of(kind, 1, code);
        world.api.end_watches_of(kind, End::Clean);
    }
    world.api.apply(slice("web-1", "web", &["10.244.2.7"]));
    world.node.until_endpoints(WEB, &["10.244.2.7:8080"]);
}

#[test]
fn a_token_that_is_not_accepted_is_named_in_the_log() {
    let mut world = World::new();
    world.api.require_token(Some("secret"));
    world.start();
    world.node.until_logged(&["Failed to watch Services", ": 401 "]);
    assert!(!world.node.rules().contains("KUBE-"));
    world.node.end(nix::sys::signal::Signal::SIGTERM);
    let kubeconfig = world.api.kubeconfig(world.node.dir());
    world.node.start(&["--kubeconfig", &kubeconfig.to_string_lossy(), "--iptables-min-sync-period=0s"]);
    world.settled();
    assert!(!world.node.log().contains("secret"), "tokens do not belong into a log");
}

#[test]
fn revoked_permission_affects_only_its_kind() {
    let world = World::running();
    world.api.fail_next_of("EndpointSlice", usize::MAX, 403);
    world.api.end_watches_of("EndpointSlice", End::Clean);
    world.node.until_logged(&["Failed to watch EndpointSlices", ": 403 ", "rules left in place"]);
    world.api.apply(slice("web-1", "web", &["10.244.2.7"]));
    world.api.apply(service("other", "10.96.0.13"));
    world.node.until("Services are synced on", || world.node.rules().contains("10.96.0.13/32"));
    world.node.until_endpoints(WEB, &PODS);
    world.node.until_health("/livez", 200);
    let refusals = "rest_client_requests_total{code=\"403\"";
    world.node.until("refusals are counted", || world.node.metric(refusals) >= 1.0);
    world.api.fail_no_more();
    world.node.until_endpoints(WEB, &["10.244.2.7:8080"]);
}

#[test]
fn a_token_that_expires_is_replaced_without_a_restart() {
    let mut world = World::new();
    let file = world.node.dir().join("token");
    // As people write files: with a newline at the end.
    std::fs::write(&file, "first\n").expect("a token");
    world.api.require_token(Some("first"));
    let kubeconfig = world.api.kubeconfig_with(world.node.dir(), &format!("{{tokenFile: {file:?}}}"));
    world.node.start(&["--kubeconfig", &kubeconfig.to_string_lossy(), "--iptables-min-sync-period=0s"]);
    world.settled();
    world.api.require_token(Some("second"));
    world.api.end_watches(End::Clean);
    for kind in ["Nodes", "Services", "EndpointSlices"] {
        world.node.until_logged(&["Failed to watch", kind, ": 401 ", "rules left in place"]);
    }
    world.api.apply(slice("web-1", "web", &["10.244.2.7"]));
    world.node.until_endpoints(WEB, &PODS);
    std::fs::write(&file, "second\n").expect("a token");
    world.node.until_endpoints(WEB, &["10.244.2.7:8080"]);
    let log = world.node.log();
    assert!(!log.contains("first") && !log.contains("second"), "tokens do not belong into a log: {log}");
}

/// Bytes that make no event of either encoding. To a reader of frames the first four are a length.
const GARBAGE: [&[u8]; 9] = [
    b"{\"type\":\xff\x00garbage\n",
    b"<html><body>502 Bad Gateway</body></html>\n",
    b"{\"type\":\"ADDED\",\"object\":7}\n",
    b"null\n",
    b"\0\0\0\0",
    b"\0\0\0\x04k8s\0",
    b"\0\0\0\x05\x0a\xff\xff\xff\x0f",
    b"\xff\xff\xff\xff",
    b"\0\0\0\x0d\x0a\x05ADDED\x12\x04\x0a\x02{}",
];

#[test]
fn garbage_in_a_response_loses_no_objects() {
    in_both_encodings(&GARBAGE, |world, bytes| {
        world.api.send_bytes("Service", bytes);
        world.api.send_bytes("EndpointSlice", bytes);
        world.api.end_watches(End::Torn);
    });
}

#[test]
fn invalid_events_lose_no_objects() {
    let unwell = json!({ "kind": "Status", "apiVersion": "v1", "code": 500, "message": "etcd is unwell" });
    let events = [
        ("SURPRISE", json!({ "kind": "Service", "metadata": { "name": "web" } })),
        ("ERROR", unwell),
        ("ERROR", json!({ "kind": "Status", "code": 410, "reason": "Expired", "message": "too old" })),
        ("ERROR", json!({})),
        ("ADDED", json!({ "kind": "Service", "apiVersion": "v1" })),
        ("", json!({ "metadata": { "name": "web", "namespace": "default" } })),
    ];
    in_both_encodings(&events, |world, (what, object)| {
        world.api.send_event("Service", what, object.clone());
        world.api.send_event("EndpointSlice", what, object.clone());
    });
}

/// Does each of these to a proxy of its own, after which it has lost nothing and goes on.
fn in_both_encodings<T: Sync>(all: &[T], disturb: impl Fn(&World, &T) + Sync) {
    for offered in [JSON, BOTH] {
        // Each waits for most of its time.
        std::thread::scope(|scope| {
            for one in all {
                let disturb = &disturb;
                scope.spawn(move || {
                    let world = World::running_with(offered);
                    disturb(&world, one);
                    world.works("later");
                    world.node.until_endpoints(WEB, &PODS);
                });
            }
        });
    }
}

#[test]
fn garbled_event_is_followed_by_a_list() {
    let world = World::running_with(JSON);
    // The object is unknown, and later events do not tell it.
    world.api.send_line("EndpointSlice", b"{\"type\":\"MODIFIED\",\"object\":{]");
    // Noticed when the next event begins where none may.
    world.api.send_bookmarks();
    world.node.until_logged(&["Failed to watch EndpointSlices", "rules left in place"]);
    world.api.wait_for_requests("a new list", |requests| {
        requests.iter().filter(|r| r.path.ends_with("/endpointslices") && r.is_streaming_list()).count() == 2
    });
    world.node.until_endpoints(WEB, &PODS);
    world.works("later");
}

#[test]
fn undecodable_object_is_named_and_keeps_its_rules() {
    // Protobuf cannot say that a port is a text.
    let world = World::running_with(JSON);
    world.works("other");
    let mut bad = service("web", "10.96.0.10");
    bad["spec"]["ports"][0]["port"] = json!(70000);
    world.api.apply(bad.clone());
    world.node.until_logged(&["Service default/web is skipped", "spec.ports[0].port", "70000"]);
    let mut bad_slice = slice("web-1", "web", &[]);
    bad_slice["ports"] = json!("none");
    world.api.apply(bad_slice);
    world.node.until_logged(&["EndpointSlice default/web-1 is skipped", "ports"]);
    world.api.apply(json!({ "kind": "Service", "metadata": { "name": "worse", "labels": 5 }, "spec": "x" }));
    world.node.until_logged(&["Service default/worse is skipped", "metadata.labels"]);
    world.works("later");
    world.node.until_endpoints(WEB, &PODS);

    // A list shows them again: they are still not understood, and still not gone.
    world.api.down();
    world.api.expire_history();
    world.api.delete("Service", "default", "other");
    world.api.up();
    world.node.until("the list was taken over", || !world.node.rules().contains("default/other:http"));
    world.node.until_endpoints(WEB, &PODS);
    bad["spec"]["ports"][0]["port"] = json!(81);
    world.api.apply(bad);
    world.node.until("it is understood again", || world.node.rules().contains("--dport 81 "));
    world.api.delete("Service", "default", "web");
    world.node.until_endpoints(WEB, &[]);
}

#[test]
fn stalled_server_loses_no_changes() {
    for pace in [Pace::Silent, Pace::HalfBody] {
        let world = World::running();
        let before = world.node.rules();
        world.api.set_pace(pace);
        world.api.apply(slice("web-1", "web", &["10.244.2.7"]));
        world.api.apply(service("other", "10.96.0.13"));
        assert_eq!(world.node.rules(), before);
        assert_eq!(world.node.health("/healthz").map(|(code, _)| code), Some(200));
        world.api.set_pace(Pace::Normal);
        world.node.until_endpoints(WEB, &["10.244.2.7:8080"]);
        world.node.until("the other one is there", || world.node.rules().contains("10.96.0.13/32"));
    }
}

#[test]
fn a_list_that_stalls_in_the_middle_is_not_half_programmed() {
    for streaming in [true, false] {
        let mut world = World::new();
        world.api.refuse_streaming_lists(!streaming);
        world.api.load_synthetic(50, 2);
        world.api.set_pace(Pace::HalfBody);
        world.start();
        world.api.wait_for_requests("the lists", |requests| {
            requests.iter().filter(|r| r.is_watch() == streaming).count() >= 3
        });
        world.node.until_health("/livez", 200);
        assert!(!world.node.rules().contains("KUBE-"), "{}", world.node.rules());
        world.api.set_pace(Pace::Normal);
        world.settled();
        world.node.until("all of them are there", || world.node.rules().contains("scale/svc-00049:http"));
    }
}

#[test]
fn slow_response_bodies_are_read() {
    let mut world = World::new();
    world.api.set_pace(Pace::Slow { bytes: 40, delay: Duration::from_millis(2) });
    world.start();
    world.settled();
    world.works("later");
}
