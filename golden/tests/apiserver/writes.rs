//! What clients may write.

use golden::apiserver::ApiServer;
use serde_json::{Value, json};

use crate::client::{connect, get, send};
use crate::{NODES, node};

const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/default/events";

fn write(api: &ApiServer, method: &str, path: &str, body: &str) -> (u16, Value) {
    let request = format!("{method} {path} HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let mut response = send(connect(api), &request).expect("an answer");
    let body = response.rest().expect("a whole body");
    (response.code, serde_json::from_slice(&body).expect("JSON"))
}

#[test]
fn events_are_created_once_patched_and_listed() {
    let api = ApiServer::start();
    let event = json!({"metadata": {"name": "node-a.17"}, "reason": "Starting", "note": "x", "series": null});
    let (code, created) = write(&api, "POST", EVENTS, &event.to_string());
    assert_eq!((code, &created["kind"], &created["metadata"]["namespace"]), (201, &json!("Event"), &json!("default")));
    assert_eq!(write(&api, "POST", EVENTS, &event.to_string()).0, 409);
    let one = format!("{EVENTS}/node-a.17");
    let patch = json!({"note": null, "series": {"count": 2}});
    let (code, patched) = write(&api, "PATCH", &one, &patch.to_string());
    assert_eq!((code, &patched["series"]["count"], patched.get("note")), (200, &json!(2), None));
    assert_eq!(patched["metadata"]["uid"], created["metadata"]["uid"]);
    assert_ne!(patched["metadata"]["resourceVersion"], created["metadata"]["resourceVersion"]);
    assert_eq!(get(&api, EVENTS).1["items"][0]["reason"], "Starting");
    assert_eq!(api.all("Event").len(), 1);
}

#[test]
fn unsupported_writes_are_refused() {
    let api = ApiServer::start();
    assert_eq!(write(&api, "PATCH", &format!("{EVENTS}/missing"), "{}").0, 404);
    assert_eq!(write(&api, "POST", EVENTS, "[1]").0, 400);
    assert_eq!(write(&api, "POST", EVENTS, "{").0, 400);
    api.fail_next_of("Event", 1, 403);
    assert_eq!(write(&api, "POST", EVENTS, r#"{"metadata":{"name":"a"}}"#).0, 403);
    assert!(api.all("Event").is_empty());
}

#[test]
fn a_node_can_be_tainted_by_a_client() {
    let api = ApiServer::start();
    api.apply(node("a"));
    let taints = json!({"spec": {"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]}});
    assert_eq!(write(&api, "PATCH", &format!("{NODES}/a"), &taints.to_string()).0, 200);
    let node = api.get("Node", "", "a").expect("it is there");
    assert_eq!(node["spec"], taints["spec"]);
}
