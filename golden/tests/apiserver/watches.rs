//! Watches and streaming lists, bookmarks, expiry, timeouts.

use std::time::{Duration, Instant};

use golden::apiserver::ApiServer;
use serde_json::{Value, json};

use crate::client::{get, open};
use crate::{NODES, SERVICES, SLICES, node, service};

const STREAMING: &str = "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";

#[test]
fn a_watch_goes_on_where_a_list_ended() {
    let api = ApiServer::start();
    let version = api.apply(service("old"));
    api.apply(service("missed"));
    let mut watch = open(&api, &format!("{SERVICES}?watch=true&resourceVersion={version}"));
    assert!(watch.head.contains("Transfer-Encoding: chunked"));
    let (what, object) = watch.event();
    assert_eq!((what.as_str(), &object["kind"], &object["apiVersion"]), ("ADDED", &json!("Service"), &json!("v1")));
    assert_eq!(object["metadata"]["name"], "missed");
    api.apply(service("old"));
    api.apply(node("another-kind"));
    let gone = api.delete("Service", "default", "old");
    assert_eq!(watch.brief(), "MODIFIED old");
    let (what, object) = watch.event();
    assert_eq!((what.as_str(), &object["metadata"]["name"]), ("DELETED", &json!("old")));
    assert_eq!(object["metadata"]["resourceVersion"], gone.to_string(), "the version of the deletion");
    assert_eq!(object["spec"]["clusterIP"], "10.96.0.20", "and the last content");
}

#[test]
fn a_watch_without_a_version_begins_with_what_exists() {
    let api = ApiServer::start();
    api.apply(node("n1"));
    for version in ["", "&resourceVersion=0"] {
        let mut watch = open(&api, &format!("{NODES}?watch=1{version}"));
        assert_eq!(watch.brief(), "ADDED n1");
        assert!(watch.is_silent(), "no bookmark ends these initial events");
    }
}

#[test]
fn a_streaming_list_ends_with_a_marked_bookmark_and_goes_on() {
    let api = ApiServer::start();
    api.apply(service("a"));
    let version = api.apply(service("b"));
    let mut watch = open(&api, &format!("{SERVICES}?{STREAMING}&resourceVersion=0"));
    assert_eq!([watch.brief(), watch.brief()], ["ADDED a", "ADDED b"]);
    let (what, bookmark) = watch.event();
    assert_eq!((what.as_str(), &bookmark["kind"]), ("BOOKMARK", &json!("Service")));
    assert_eq!(bookmark["metadata"]["annotations"], json!({ "k8s.io/initial-events-end": "true" }));
    assert_eq!(bookmark["metadata"]["resourceVersion"], version.to_string());
    api.delete("Service", "default", "a");
    assert_eq!(watch.brief(), "DELETED a");
}

#[test]
fn bookmarks_are_empty_objects_of_their_kind() {
    let api = ApiServer::start();
    let (what, bookmark) = open(&api, &format!("{SLICES}?{STREAMING}")).event();
    assert_eq!((what.as_str(), &bookmark["kind"]), ("BOOKMARK", &json!("EndpointSlice")));
    assert_eq!(bookmark["apiVersion"], "discovery.k8s.io/v1");
    let bookmark = bookmark.as_object().expect("an object");
    assert_eq!(
        (&bookmark["addressType"], &bookmark["endpoints"], &bookmark["ports"]),
        (&json!(""), &Value::Null, &Value::Null)
    );
    assert_eq!(open(&api, &format!("{NODES}?{STREAMING}")).event().1["spec"], json!({}));
}

#[test]
fn a_streaming_list_without_bookmarks_is_not_marked() {
    let api = ApiServer::start();
    api.apply(service("a"));
    let query = "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
    let mut watch = open(&api, &format!("{SERVICES}?{query}"));
    assert_eq!(watch.brief(), "ADDED a");
    assert!(watch.is_silent());
}

#[test]
fn contradictory_watch_options_are_invalid() {
    let api = ApiServer::start();
    let code = |query: &str| open(&api, &format!("{SERVICES}?watch=true&{query}")).code;
    assert_eq!(code("sendInitialEvents=true"), 422);
    assert_eq!(code("resourceVersion=1&resourceVersionMatch=NotOlderThan"), 422);
    assert_eq!(code("timeoutSeconds=soon"), 400);
    assert_eq!(code("sendInitialEvents=false&resourceVersionMatch=NotOlderThan"), 200);
}

#[test]
fn streaming_lists_can_be_refused() {
    let api = ApiServer::start();
    api.refuse_streaming_lists(true);
    let (code, status) = get(&api, &format!("{SERVICES}?{STREAMING}"));
    assert_eq!((code, &status["kind"], &status["reason"]), (422, &json!("Status"), &json!("Invalid")));
    assert_eq!(status["details"]["causes"][0]["field"], "sendInitialEvents");
    assert_eq!(open(&api, &format!("{SERVICES}?watch=true")).code, 200);
    api.refuse_streaming_lists(false);
    assert_eq!(open(&api, &format!("{SERVICES}?{STREAMING}")).code, 200);
}

#[test]
fn a_version_before_the_kept_history_is_gone() {
    let api = ApiServer::start();
    let version = api.apply(service("a"));
    let mut alive = open(&api, &format!("{SERVICES}?watch=true&resourceVersion={version}"));
    api.wait_for_watches("Service", 1);
    api.expire_history();
    let mut watch = open(&api, &format!("{SERVICES}?watch=true&resourceVersion={version}"));
    assert_eq!(watch.code, 200, "real servers tell it inside the watch");
    let (what, status) = watch.event();
    assert_eq!((what.as_str(), &status["kind"]), ("ERROR", &json!("Status")));
    assert_eq!((&status["code"], &status["reason"]), (&json!(410), &json!("Expired")));
    assert_eq!(watch.line().expect("a proper end"), None);
    api.apply(service("b"));
    assert_eq!(alive.brief(), "ADDED b", "open watches live on");
    let listed = get(&api, SERVICES).1["metadata"]["resourceVersion"].as_str().map(str::to_owned).expect("a version");
    api.apply(service("c"));
    assert_eq!(open(&api, &format!("{SERVICES}?watch=true&resourceVersion={listed}")).brief(), "ADDED c");
}

#[test]
fn history_is_kept_per_collection() {
    let api = ApiServer::start();
    api.keep_history(2);
    let first = api.apply(node("n1"));
    for name in ["a", "b", "c"] {
        api.apply(service(name));
    }
    let begin = |path: &str| open(&api, &format!("{path}?watch=true&resourceVersion={first}")).brief();
    assert_eq!(begin(SERVICES), "ERROR -");
    api.apply(node("n2"));
    assert_eq!(begin(NODES), "ADDED n2");
}

#[test]
fn bookmarks_come_on_demand_and_from_time_to_time_if_allowed() {
    let api = ApiServer::start();
    let version = api.apply(service("a"));
    let mut with = open(&api, &format!("{SERVICES}?watch=true&resourceVersion={version}&allowWatchBookmarks=true"));
    let mut without = open(&api, &format!("{SERVICES}?watch=true&resourceVersion={version}"));
    api.wait_for_watches("Service", 2);
    let version = api.apply(node("elsewhere"));
    api.send_bookmarks();
    let (what, bookmark) = with.event();
    assert_eq!((what.as_str(), &bookmark["metadata"]["annotations"]), ("BOOKMARK", &Value::Null));
    assert_eq!(bookmark["metadata"]["resourceVersion"], version.to_string());
    assert!(with.is_silent());
    api.bookmark_every(Duration::from_millis(5));
    assert_eq!([with.brief(), with.brief()], ["BOOKMARK -", "BOOKMARK -"]);
    assert!(without.is_silent());
}

#[test]
fn the_timeout_ends_a_watch_cleanly() {
    let api = ApiServer::start();
    let before = Instant::now();
    let mut watch = open(&api, &format!("{SERVICES}?watch=true&resourceVersion=1&timeoutSeconds=1"));
    assert_eq!(watch.line().expect("a proper end"), None);
    assert!(before.elapsed() >= Duration::from_secs(1));
    let again = crate::client::ask(watch.into_stream(), NODES, "").expect("the connection can be used again");
    assert_eq!(again.code, 200);
}

#[test]
fn a_watch_whose_client_left_is_not_counted() {
    let api = ApiServer::start();
    let watch = open(&api, &format!("{SERVICES}?watch=true"));
    api.wait_for_watches("Service", 1);
    drop(watch);
    api.wait_for_watches("Service", 0);
    assert_eq!(api.requests().iter().filter(|request| request.is_watch()).count(), 1);
}
