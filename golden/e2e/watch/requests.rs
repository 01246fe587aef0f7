//! The requests of the proxy: kube-proxy's selectors and parameters, at a limited rate.
//!
//! The expected queries and headers are logged by kube-proxy 1.36.2 with -v=9.

use golden::apiserver::{End, Request};
use golden::sample::{node, service, slice};
use serde_json::json;

use super::{NODES, PODS, SERVICES, SLICES, WEB, World, param};

fn selectors(request: &Request) -> (String, String, String) {
    (request.path.clone(), param(request, "labelSelector"), param(request, "fieldSelector"))
}

#[test]
fn lists_stream_with_kube_proxys_selectors() {
    let world = World::running();
    let mut requests = world.api.requests();
    requests.retain(|request| request.method == "GET");
    requests.sort_by(|a, b| a.path.cmp(&b.path));
    let asked: Vec<_> = requests.iter().map(selectors).collect();
    let expected = [
        (NODES, "", "metadata.name=node-a"),
        (SERVICES, "!service.kubernetes.io/service-proxy-name", "spec.clusterIP!=None"),
        (SLICES, "!service.kubernetes.io/headless", ""),
    ];
    assert_eq!(asked, expected.map(|(path, labels, fields)| (path.into(), labels.into(), fields.into())));
    for request in &requests {
        assert!(request.is_streaming_list(), "{request:?}");
        assert_eq!(param(request, "resourceVersionMatch"), "NotOlderThan");
        assert!(request.flag("allowWatchBookmarks"), "{request:?}");
        let seconds: u32 = param(request, "timeoutSeconds").parse().expect("a number");
        assert!((300..=600).contains(&seconds), "{seconds}");
        for absent in ["limit", "continue", "resourceVersion"] {
            assert_eq!(request.param(absent), None, "{absent}: {request:?}");
        }
        assert_eq!(names(request), sorted(names(request)), "client-go sorts: {request:?}");
    }
}

/// The names of the query parameters, without the selectors, which not every kind has.
fn names(request: &Request) -> Vec<String> {
    request.query.split('&').filter_map(|pair| Some(pair.split_once('=')?.0.to_owned())).collect()
}

fn sorted(mut names: Vec<String>) -> Vec<String> {
    names.sort_unstable();
    names
}

#[test]
fn resumed_watches_have_the_parameters_of_client_go() {
    let world = World::running();
    world.api.clear_requests();
    // A watch that ends within a second and without an event is a failure, after which client-go lists.
    world.api.send_bookmarks();
    world.api.end_watches_of("Service", End::Clean);
    world.api.wait_for_requests("the watch to go on", |requests| requests.iter().any(|r| r.path == SERVICES));
    let requests = world.requests(SERVICES);
    let again = &requests[0];
    let mut expected =
        vec!["allowWatchBookmarks", "fieldSelector", "labelSelector", "resourceVersion", "timeoutSeconds"];
    expected.push("watch");
    let mut found = names(again);
    // The client's own timeout, which no API server reads; client-go sends it since 1.36.
    found.retain(|name| name != "timeout");
    assert_eq!(found, expected, "{again:?}");
}

/// client-go's header, with objects without managed fields first.
const ACCEPT: &str = "application/vnd.kubernetes.protobuf;drop=metadata.managedFields, \
                      application/vnd.kubernetes.protobuf, */*";

#[test]
fn requests_have_user_agent_and_accepted_encodings() {
    let world = World::running();
    for request in world.api.requests() {
        let agent = &request.user_agent;
        assert!(agent.starts_with("kube-proxy/v1.37.0 (linux/"), "{agent}");
        assert!(agent.contains(") kubernetes/"), "{agent}");
        let events = request.method != "GET";
        assert!(events || request.accept == ACCEPT, "{request:?}");
    }
}

/// One request a minute after the first: the second list waits, and so the rules do. Watches, and streamed lists with
/// them, are not held back (client-go's rest/request.go, `Watch`).
#[test]
fn request_rate_follows_client_connection_qps() {
    let mut world = World::new();
    world.api.refuse_streaming_lists(true);
    let url = world.api.url();
    world.node.start(&["--master", &url, "--kube-api-qps=0.01", "--kube-api-burst=1", "-v=5"]);
    // Events have a rate of their own.
    let is_list = |request: &&Request| request.method == "GET" && !request.is_watch();
    let lists = || world.api.requests().iter().filter(is_list).count();
    world.node.until("one request was made", || lists() == 1);
    // Others would follow within the same millisecond.
    world.node.until_health("/livez", 200);
    assert_eq!(lists(), 1);
}

#[test]
fn rate_limiter_delay_is_counted() {
    let mut world = World::new();
    world.api.refuse_streaming_lists(true);
    world.start();
    world.settled();
    assert!(world.node.metric("rest_client_rate_limiter_duration_seconds_count") >= 3.0);
}

#[test]
fn watches_resume_from_the_last_bookmark() {
    let world = World::running();
    // What happens to other kinds moves the version that a bookmark of Services tells.
    let version = world.api.apply(node("node-z", "zone-z"));
    world.api.send_bookmarks();
    world.api.clear_requests();
    world.api.end_watches_of("Service", End::Clean);
    world.api.wait_for_requests("the watch to go on", |requests| requests.iter().any(|r| r.path == SERVICES));
    let requests = world.api.requests();
    let again = requests.iter().find(|request| request.path == SERVICES).expect("it was asked");
    assert!(again.is_watch() && !again.is_streaming_list(), "no new list: {again:?}");
    assert_eq!(param(again, "resourceVersion"), version.to_string());
    world.works("later");
}

#[test]
fn services_for_other_proxies_are_not_programmed() {
    let mut world = World::new();
    let mut elsewhere = service("elsewhere", "10.96.0.20");
    elsewhere["metadata"]["labels"] = json!({ "service.kubernetes.io/service-proxy-name": "other" });
    world.api.apply(elsewhere.clone());
    world.api.apply(service("headless", "None"));
    let mut headless = slice("headless-1", "web", &["10.244.2.66"]);
    headless["metadata"]["labels"]["service.kubernetes.io/headless"] = json!("");
    world.api.apply(headless);
    world.start();
    world.settled();
    assert!(!world.node.rules().contains("10.96.0.20"));

    // A label that goes brings the Service, one that comes takes it away.
    elsewhere["metadata"]["labels"] = json!({});
    world.api.apply(elsewhere.clone());
    world.node.until("the Service is programmed", || world.node.rules().contains("10.96.0.20/32"));
    elsewhere["metadata"]["labels"] = json!({ "service.kubernetes.io/service-proxy-name": "other" });
    world.api.apply(elsewhere);
    world.node.until("the Service is gone", || !world.node.rules().contains("10.96.0.20/32"));
    world.node.until_endpoints(WEB, &PODS);
}
