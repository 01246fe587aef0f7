//! Label and field selectors, on lists and as objects begin and cease to match.

use golden::apiserver::ApiServer;
use serde_json::{Value, json};

use crate::client::{get, names, open};
use crate::{NODES, SERVICES, SLICES, node, service};

/// What kube-proxy selects: `!service.kubernetes.io/service-proxy-name` and `spec.clusterIP!=None`.
const OURS: &str = "labelSelector=%21service.kubernetes.io%2Fservice-proxy-name&fieldSelector=spec.clusterIP%21%3DNone";

fn labelled(name: &str, labels: Value) -> Value {
    let mut service = service(name);
    service["metadata"]["labels"] = labels;
    service
}

#[test]
fn label_selectors_select() {
    let api = ApiServer::start();
    api.apply(labelled("blue", json!({ "color": "blue", "tier": "web" })));
    api.apply(labelled("red", json!({ "color": "red" })));
    api.apply(labelled("plain", Value::Null));
    let cases: [(&str, &[&str]); 11] = [
        ("color", &["blue", "red"]),
        ("%21color", &["plain"]),
        ("color=blue", &["blue"]),
        ("color%3D%3Dblue", &["blue"]),
        ("color!=blue", &["plain", "red"]),
        ("color+in+(blue,green)", &["blue"]),
        ("color%20in%20(blue,red),!tier", &["red"]),
        ("color+notin+(blue)", &["plain", "red"]),
        ("color+in+(red,blue),tier=web", &["blue"]),
        ("color=blue,color=red", &[]),
        ("", &["blue", "plain", "red"]),
    ];
    for (selector, expected) in cases {
        assert_eq!(names(&get(&api, &format!("{SERVICES}?labelSelector={selector}")).1), expected, "{selector}");
    }
    for wrong in ["color+of+(blue)", "=x", "a+b", "color+in+blue)"] {
        assert_eq!(get(&api, &format!("{SERVICES}?labelSelector={wrong}")).0, 400, "{wrong}");
    }
}

#[test]
fn field_selectors_select() {
    let api = ApiServer::start();
    api.apply(node("n1"));
    api.apply(node("n2"));
    let nodes = |selector: &str| get(&api, &format!("{NODES}?fieldSelector={selector}"));
    assert_eq!(names(&nodes("metadata.name%3Dn1").1), ["n1"]);
    assert_eq!(names(&nodes("metadata.name!=n1").1), ["n2"]);
    assert_eq!(names(&nodes("metadata.name=n1,metadata.name=n2").1), [""; 0]);
    let (code, status) = nodes("spec.clusterIP=None");
    assert_eq!((code, &status["reason"]), (400, &json!("BadRequest")));
    assert_eq!(nodes("nonsense").0, 400);
    let mut headless = service("headless");
    headless["spec"]["clusterIP"] = json!("None");
    api.apply(headless);
    api.apply(service("web"));
    assert_eq!(names(&get(&api, &format!("{SERVICES}?{OURS}")).1), ["web"]);
}

#[test]
fn pages_are_filled_with_what_matches() {
    let api = ApiServer::start();
    for name in ["a", "b", "c", "d"] {
        let color = if name == "b" { "red" } else { "blue" };
        api.apply(labelled(name, json!({ "color": color })));
    }
    let (_, first) = get(&api, &format!("{SERVICES}?limit=2&labelSelector=color=blue"));
    assert_eq!(names(&first), ["a", "c"]);
    let metadata = &first["metadata"];
    assert_eq!(metadata["remainingItemCount"], Value::Null, "unknown with a selector");
    let token = metadata["continue"].as_str().expect("a token");
    let (_, last) = get(&api, &format!("{SERVICES}?limit=2&labelSelector=color=blue&continue={token}"));
    assert_eq!((names(&last), &last["metadata"]["continue"]), (vec!["d"], &Value::Null));
}

#[test]
fn leaving_a_selector_is_a_deletion_and_entering_it_an_addition() {
    let api = ApiServer::start();
    let foreign = json!({ "service.kubernetes.io/service-proxy-name": "other" });
    api.apply(service("web"));
    let version = api.apply(labelled("never", foreign.clone()));
    let mut watch = open(&api, &format!("{SERVICES}?watch=true&resourceVersion={version}&{OURS}"));
    let left = api.apply(labelled("web", foreign.clone()));
    api.apply(labelled("never", foreign));
    let (what, object) = watch.event();
    assert_eq!((what.as_str(), &object["metadata"]["name"]), ("DELETED", &json!("web")));
    assert_eq!(object["metadata"]["resourceVersion"], left.to_string());
    assert_eq!(object["metadata"]["labels"], json!({ "app": "web" }), "as it was when it still matched");
    api.apply(service("web"));
    assert_eq!(watch.brief(), "ADDED web");
    let mut headless = service("web");
    headless["spec"]["clusterIP"] = json!("None");
    api.apply(headless);
    assert_eq!(watch.brief(), "DELETED web");
    api.delete("Service", "default", "web");
    api.apply(service("last"));
    assert_eq!(watch.brief(), "ADDED last", "what did not match is not seen to go");
}

#[test]
fn initial_events_are_selected_too() {
    let api = ApiServer::start();
    for (name, labels) in [("a", json!({ "service.kubernetes.io/headless": "" })), ("b", json!({}))] {
        api.apply(json!({ "kind": "EndpointSlice", "metadata": { "name": name, "labels": labels } }));
    }
    let selector = "labelSelector=%21service.kubernetes.io%2Fheadless";
    let mut watch = open(&api, &format!("{SLICES}?watch=true&{selector}"));
    assert_eq!(watch.brief(), "ADDED b");
    assert!(watch.is_silent());
    let mut watch = open(&api, "/api/v1/namespaces/other/services?watch=true");
    api.apply(service("elsewhere"));
    assert!(watch.is_silent());
}
