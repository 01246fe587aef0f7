//! Every fault that can be switched on.

use std::io::{ErrorKind, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use golden::apiserver::{ApiServer, End, Pace};
use golden::netns::Netns;
use serde_json::{Value, json};

use crate::client::{SHORT, ask, connect, get, names, open};
use crate::{NODES, SERVICES, SLICES, node, service};

fn watch_services(api: &ApiServer) -> crate::client::Response {
    let version = api.version();
    open(api, &format!("{SERVICES}?watch=true&resourceVersion={version}&allowWatchBookmarks=true"))
}

#[test]
fn watches_end_cleanly_at_once() {
    let api = ApiServer::start();
    let mut services = watch_services(&api);
    let mut nodes = open(&api, &format!("{NODES}?watch=true"));
    api.apply(service("last"));
    api.end_watches(End::Clean);
    assert_eq!(services.brief(), "ADDED last", "what happened before is still sent");
    assert_eq!((services.line().expect("a proper end"), nodes.line().expect("a proper end")), (None, None));
    api.wait_for_watches("Service", 0);
    assert_eq!(ask(services.into_stream(), NODES, "").expect("the connection stays").code, 200);
}

#[test]
fn watches_are_torn_in_the_middle_of_a_line() {
    let api = ApiServer::start();
    let mut services = watch_services(&api);
    let mut nodes = open(&api, &format!("{NODES}?watch=true"));
    api.wait_for_watches("Node", 1);
    api.end_watches_of("Service", End::Torn);
    assert_eq!(services.line().expect_err("no end of the body").kind(), ErrorKind::UnexpectedEof);
    api.apply(node("n1"));
    assert_eq!(nodes.brief(), "ADDED n1", "the other kind is left alone");
}

#[test]
fn watches_are_reset() {
    let api = ApiServer::start();
    let mut watch = watch_services(&api);
    api.end_watches(End::Reset);
    assert_eq!(watch.line().expect_err("a broken connection").kind(), ErrorKind::ConnectionReset);
}

#[test]
fn the_next_requests_fail() {
    let api = ApiServer::start();
    api.fail_next(1, 429);
    let mut refused = open(&api, SERVICES);
    assert_eq!((refused.code, refused.head.contains("Retry-After: 1\r\n")), (429, true));
    let status: Value = serde_json::from_slice(&refused.rest().expect("a body")).expect("JSON");
    assert_eq!((&status["reason"], &status["code"]), (&json!("TooManyRequests"), &json!(429)));
    for code in [500, 503, 403, 401] {
        api.fail_next(2, code);
        let (seen, status) = get(&api, SERVICES);
        assert_eq!((seen, &status["kind"], &status["code"]), (code, &json!("Status"), &json!(code)));
        assert_eq!(get(&api, &format!("{SERVICES}?watch=true")).0, code);
        assert_eq!(get(&api, SERVICES).0, 200);
    }
}

#[test]
fn one_kind_fails_for_good() {
    let api = ApiServer::start();
    api.fail_next_of("EndpointSlice", usize::MAX, 403);
    assert_eq!([get(&api, SLICES).0, get(&api, NODES).0, get(&api, SLICES).0], [403, 200, 403]);
    api.fail_no_more();
    assert_eq!(get(&api, SLICES).0, 200);
}

#[test]
fn invalid_bytes_are_sent_unchanged() {
    let api = ApiServer::start();
    let mut watch = watch_services(&api);
    api.wait_for_watches("Service", 1);
    api.send_line("Service", b"{\"type\":\xff\x00garbage");
    assert_eq!(watch.line().expect("alive").expect("a line"), b"{\"type\":\xff\x00garbage\n");
    api.apply(service("web"));
    assert_eq!(watch.brief(), "ADDED web");
}

#[test]
fn events_of_any_type_are_sent_in_the_encoding_of_the_watch() {
    let api = ApiServer::start();
    let mut json = watch_services(&api);
    let path = format!("{SERVICES}?watch=true&resourceVersion={}", api.version());
    let protobuf = "Accept: application/vnd.kubernetes.protobuf\r\n";
    let mut frames = ask(connect(&api), &path, protobuf).expect("an answer");
    api.wait_for_watches("Service", 2);
    api.send_event("Service", "SURPRISE", json!({ "kind": "Service", "metadata": { "name": "web" } }));
    assert_eq!(json.brief(), "SURPRISE web");
    let frame = frames.piece().expect("alive").expect("a frame");
    assert!(frame[4..].starts_with(b"\x0a\x08SURPRISE\x12"), "{frame:?}");
    api.end_watches_with_error("Service", 410);
    assert_eq!(json.event().1["reason"], "Expired");
    let frame = frames.piece().expect("alive").expect("a frame");
    assert!(frame.windows(7).any(|seven| seven == b"Expired"), "{frame:?}");
    assert_eq!((json.line().expect("a proper end"), frames.piece().expect("a proper end")), (None, None));
}

#[test]
fn invalid_objects_are_served() {
    let api = ApiServer::start();
    let mut watch = watch_services(&api);
    api.apply(json!({ "kind": "Service", "metadata": { "name": "bad" }, "spec": { "ports": "x" } }));
    let ports = json!([{ "port": 70000 }]);
    api.apply(json!({ "kind": "EndpointSlice", "metadata": { "name": "bad", "labels": 7 }, "ports": ports }));
    assert_eq!(watch.event().1["spec"]["ports"], "x");
    assert_eq!(get(&api, SERVICES).1["items"][0]["spec"]["ports"], "x");
    assert_eq!(get(&api, &format!("{SLICES}?labelSelector=%21a")).1["items"][0]["ports"], ports);
}

#[test]
fn requests_are_taken_and_not_answered() {
    let api = ApiServer::start();
    api.set_pace(Pace::Silent);
    let mut stream = connect(&api);
    stream.set_read_timeout(Some(SHORT)).expect("a timeout can be set");
    stream.write_all(format!("GET {NODES} HTTP/1.1\r\n\r\n").as_bytes()).expect("it is taken");
    api.wait_for_requests("the list of nodes", |requests| requests.len() == 1);
    assert_eq!(stream.peek(&mut [0]).expect_err("silence").kind(), ErrorKind::WouldBlock);
    api.set_pace(Pace::Normal);
    stream.set_read_timeout(Some(crate::client::LONG)).expect("a timeout can be set");
    assert_eq!(stream.peek(&mut [0]).expect("the answer follows"), 1);
}

#[test]
fn an_open_watch_falls_silent_and_catches_up() {
    let api = ApiServer::start();
    let mut watch = watch_services(&api);
    api.set_pace(Pace::Silent);
    api.apply(service("held-back"));
    assert!(watch.is_silent());
    api.set_pace(Pace::Normal);
    assert_eq!(watch.brief(), "ADDED held-back");
}

#[test]
fn bodies_stop_half_way() {
    let api = ApiServer::start();
    api.apply(service("web"));
    api.set_pace(Pace::HalfBody);
    let mut list = open(&api, SERVICES);
    let mut body = list.piece().expect("it begins").expect("half of it");
    assert!(body.starts_with(b"{\"kind\":\"ServiceList\"") && serde_json::from_slice::<Value>(&body).is_err());
    let mut watch = open(&api, &format!("{SERVICES}?watch=true"));
    let half = watch.piece().expect("it begins").expect("half a line");
    assert!(half.starts_with(b"{\"type\":\"ADDED\"") && !half.contains(&b'\n'));
    assert!(list.is_silent() && watch.is_silent());
    drop(watch);
    api.wait_for_watches("Service", 0);
    api.set_pace(Pace::Normal);
    body.extend(list.rest().expect("the other half"));
    assert_eq!(names(&serde_json::from_slice(&body).expect("JSON")), ["web"]);
}

#[test]
fn bodies_trickle() {
    let api = ApiServer::start();
    api.apply(service("web"));
    api.set_pace(Pace::Slow { bytes: 7, delay: Duration::from_millis(2) });
    let before = Instant::now();
    let mut list = open(&api, SERVICES);
    let mut body = Vec::new();
    while let Some(piece) = list.piece().expect("it comes") {
        assert!(piece.len() <= 7);
        body.extend(piece);
    }
    assert_eq!(names(&serde_json::from_slice(&body).expect("JSON")), ["web"]);
    assert!(before.elapsed() >= Duration::from_millis(2) * u32::try_from(body.len() / 7).expect("small"));
}

#[test]
fn a_server_that_is_down_refuses_and_comes_back_as_it_was() {
    let api = ApiServer::start();
    api.apply(service("web"));
    let mut watch = watch_services(&api);
    for _ in 0..2 {
        api.down();
        let refused = TcpStream::connect(api.address()).expect_err("nothing listens");
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        assert_eq!(api.watching("Service"), 0);
        api.up();
        assert_eq!(names(&get(&api, SERVICES).1), ["web"]);
    }
    assert!(watch.line().is_err(), "connections were cut");
    api.up();
    assert_eq!(get(&api, NODES).0, 200, "up is up");
}

#[test]
fn down_is_down_even_if_someone_has_a_copy_of_the_descriptor() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let _copy = listener.try_clone().expect("a copy");
    let api = ApiServer::start_on(listener);
    api.down();
    assert!(TcpStream::connect(api.address()).is_err());
    api.up();
    assert_eq!(get(&api, NODES).0, 200);
}

#[test]
fn it_comes_back_in_the_namespace_of_its_listener() {
    let netns = Netns::new();
    let listener = netns.enter(|| TcpListener::bind("127.0.0.1:0").expect("a free port"));
    let api = ApiServer::start_on(listener);
    let reached = || netns.enter(|| get(&api, NODES).0);
    assert_eq!(reached(), 200);
    api.down();
    assert!(netns.enter(|| TcpStream::connect(api.address())).is_err());
    api.up();
    assert_eq!(reached(), 200);
    assert!(TcpStream::connect(api.address()).is_err(), "not out here");
}

#[test]
fn dropping_it_stops_it() {
    let api = ApiServer::start();
    let address = api.address();
    let mut watch = watch_services(&api);
    drop(api);
    assert!(watch.line().is_err());
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn invalid_http_is_refused() {
    let api = ApiServer::start();
    let refused = crate::client::send(connect(&api), "HELLO\r\n\r\n").expect("an answer");
    assert_eq!(refused.code, 400);
    assert_eq!(
        crate::client::send(connect(&api), "DELETE /api/v1/nodes HTTP/1.1\r\n\r\n").expect("an answer").code,
        405
    );
}
