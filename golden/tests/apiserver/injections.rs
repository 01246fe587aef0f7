//! Every fault that can be injected, and which requests it hits.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use golden::apiserver::{ApiServer, Fault, Pace, Requests};
use serde_json::{Value, json};

use crate::client::{get, names, open};
use crate::{NODES, SERVICES, SLICES, node, service};

const STREAMING: &str = "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";

fn with(fault: Fault, requests: Requests) -> ApiServer {
    let api = ApiServer::start();
    for name in ["a", "b", "c"] {
        api.apply(service(name));
    }
    api.inject(fault.on(requests));
    api
}

fn stream(api: &ApiServer) -> crate::client::Response {
    open(api, &format!("{SERVICES}?{STREAMING}"))
}

#[test]
fn a_fault_hits_only_the_requests_it_is_for() {
    let list = SERVICES.to_owned();
    let page = format!("{SERVICES}?limit=1&continue={}", token(&with(Fault::HangUp, Requests::Watches)));
    let streamed = format!("{SERVICES}?{STREAMING}");
    let watch = format!("{SERVICES}?watch=true&resourceVersion=1");
    let all = [&list, &page, &streamed, &watch];
    for (requests, hit) in [
        (Requests::All, [true, true, true, true]),
        (Requests::Lists, [true, true, false, false]),
        (Requests::LaterPages, [false, true, false, false]),
        (Requests::StreamedLists, [false, false, true, false]),
        (Requests::Watches, [false, false, false, true]),
    ] {
        let api = with(Fault::Refuse(503), requests);
        assert_eq!(all.map(|path| open(&api, path).code == 503), hit, "{requests:?}");
    }
}

fn token(api: &ApiServer) -> String {
    let page = get(api, &format!("{SERVICES}?limit=1")).1;
    page["metadata"]["continue"].as_str().expect("a token").to_owned()
}

#[test]
fn a_fault_can_be_for_one_kind_and_for_some_time() {
    let api = ApiServer::start();
    api.inject(Fault::Refuse(403).on(Requests::Lists).of("Node").times(2));
    assert_eq!([SLICES, NODES, SERVICES, NODES, NODES].map(|path| open(&api, path).code), [200, 403, 200, 403, 200]);
}

#[test]
fn refusals_name_the_right_that_is_missing() {
    let api = ApiServer::start();
    api.inject(Fault::Refuse(403).on(Requests::All));
    let message = |path: &str| get(&api, path).1["message"].as_str().expect("a message").to_owned();
    assert!(
        message(SLICES)
            .starts_with("endpointslices.discovery.k8s.io is forbidden: User \"system:kube-proxy\" cannot list")
    );
    assert!(
        message("/api/v1/nodes/n1").starts_with("nodes \"n1\" is forbidden: User \"system:kube-proxy\" cannot get")
    );
    assert!(message(&format!("{SERVICES}?{STREAMING}")).contains("cannot watch resource \"services\""));
}

#[test]
fn a_refusal_can_ask_to_wait_in_the_header_and_in_the_body() {
    let api = with(Fault::RefuseFor { code: 503, retry_after: 7 }, Requests::Lists);
    let mut refused = open(&api, SERVICES);
    assert_eq!((refused.code, refused.head.contains("Retry-After: 7\r\n")), (503, true));
    let status: Value = serde_json::from_slice(&refused.rest().expect("a body")).expect("JSON");
    assert_eq!(status["details"], json!({ "retryAfterSeconds": 7 }));
    assert!(!open(&with(Fault::Refuse(503), Requests::Lists), SERVICES).head.contains("Retry-After"));
}

#[test]
fn answers_that_are_no_statuses_are_sent() {
    for (fault, code, media_type, start) in [
        (Fault::TooManyRequests { retry_after: 1 }, 429, "text/plain; charset=utf-8", "Too many requests"),
        (Fault::TimedOut, 504, "text/plain; charset=utf-8", "{\"metadata\":{}"),
        (Fault::Html(502), 502, "text/html", "<html>"),
        (Fault::Html(200), 200, "text/html", "<html>"),
        (Fault::Garbage, 200, "application/json", "\0"),
    ] {
        let api = with(fault, Requests::All);
        let mut answer = open(&api, SERVICES);
        assert_eq!(answer.code, code);
        assert!(answer.head.contains(&format!("Content-Type: {media_type}\r\n")), "{}", answer.head);
        assert!(answer.rest().expect("a body").starts_with(start.as_bytes()));
    }
}

#[test]
fn a_failure_can_have_the_status_200() {
    let (code, status) = get(&with(Fault::RefuseInOk(403), Requests::Lists), SERVICES);
    assert_eq!((code, &status["kind"], &status["status"]), (200, &json!("Status"), &json!("Failure")));
}

#[test]
fn streams_end_before_they_begin() {
    let mut stream = stream(&with(Fault::EndAtOnce, Requests::StreamedLists));
    assert_eq!((stream.code, stream.line().expect("a proper end")), (200, None));
}

#[test]
fn streams_consist_of_an_error() {
    for (fault, code) in [(Fault::ErrorEvent(410), 410), (Fault::WatchProgressDisabled, 500)] {
        let mut stream = stream(&with(fault, Requests::StreamedLists));
        let (what, status) = stream.event();
        assert_eq!((what.as_str(), &status["code"]), ("ERROR", &json!(code)));
        assert_eq!(stream.line().expect("a proper end"), None);
    }
}

#[test]
fn streams_lack_their_bookmark_and_end_or_go_on() {
    for end in [true, false] {
        let api = with(Fault::NoBookmark { end }, Requests::StreamedLists);
        let mut stream = stream(&api);
        assert_eq!([stream.brief(), stream.brief(), stream.brief()], ["ADDED a", "ADDED b", "ADDED c"]);
        if end {
            assert_eq!(stream.line().expect("a proper end"), None);
        } else {
            assert!(stream.is_silent());
            api.apply(service("later"));
            assert_eq!(stream.brief(), "ADDED later", "it is alive");
        }
    }
}

#[test]
fn streams_end_after_their_bookmark() {
    for (code, more) in [(Some(410), vec!["ERROR -"]), (None, vec![])] {
        let mut stream = stream(&with(Fault::EndAfterList(code), Requests::StreamedLists));
        let events: Vec<String> = (0..4 + more.len()).map(|_| stream.brief()).collect();
        assert_eq!(events, [&["ADDED a", "ADDED b", "ADDED c", "BOOKMARK -"], more.as_slice()].concat());
        assert_eq!(stream.line().expect("a proper end"), None);
    }
}

#[test]
fn a_request_is_never_answered_or_the_connection_closed() {
    let api = with(Fault::HangUp, Requests::Lists);
    let error = crate::client::ask(crate::client::connect(&api), SERVICES, "").err().expect("no answer");
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    let api = with(Fault::NoAnswer, Requests::Lists);
    let connection = crate::client::connect(&api);
    connection.set_read_timeout(Some(crate::client::SHORT)).expect("a timeout can be set");
    let error = crate::client::ask(connection, SERVICES, "").err().expect("no answer");
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
}

#[test]
fn one_answer_flows_at_its_own_pace() {
    let slow = Pace::Slow { bytes: 100, delay: Duration::from_millis(5) };
    let api = with(Fault::Paced(slow), Requests::Lists);
    let before = Instant::now();
    let body = open(&api, SERVICES).rest().expect("a body");
    assert!(before.elapsed() >= Duration::from_millis(5) * u32::try_from(body.len() / 100).expect("small"));
    assert_eq!(names(&serde_json::from_slice(&body).expect("JSON")), ["a", "b", "c"]);
    let api = with(Fault::Paced(Pace::Silent), Requests::StreamedLists);
    let mut silent = stream(&api);
    assert_eq!((silent.code, silent.is_silent()), (200, true), "the head comes");
    assert_eq!(get(&api, SERVICES).0, 200, "others are answered");
    drop(silent);
    api.wait_for_watches("Service", 0);
}

#[test]
fn bodies_break_off() {
    for announced in [true, false] {
        let api = with(Fault::Cut { after: 50, announced }, Requests::Lists);
        let mut list = open(&api, SERVICES);
        assert_eq!(list.head.contains("Content-Length"), announced);
        assert_eq!(list.rest().expect_err("no end").kind(), ErrorKind::UnexpectedEof);
    }
    let mut whole = open(&with(Fault::Cut { after: 1 << 20, announced: false }, Requests::Lists), SERVICES);
    assert_eq!(whole.rest().expect_err("no last chunk").kind(), ErrorKind::UnexpectedEof);
}

#[test]
fn a_page_expires_with_a_token_to_go_on() {
    let api = with(Fault::ContinueExpired, Requests::LaterPages);
    let (code, status) = get(&api, &format!("{SERVICES}?limit=1&continue={}", token(&api)));
    assert_eq!((code, &status["reason"]), (410, &json!("Expired")));
    let token = status["metadata"]["continue"].as_str().expect("a token").to_owned();
    api.fail_no_more();
    api.apply(service("aa"));
    let (_, rest) = get(&api, &format!("{SERVICES}?limit=5&continue={token}"));
    assert_eq!(names(&rest), ["aa", "b", "c"], "as it is now");
    assert_eq!(rest["metadata"]["resourceVersion"], api.version().to_string());
}

#[test]
fn the_watch_cache_does_not_page() {
    let api = with(Fault::HangUp, Requests::Watches);
    let page = |query: &str| get(&api, &format!("{SERVICES}?limit=2{query}")).1;
    assert_eq!(names(&page("&resourceVersion=0")), ["a", "b", "c"]);
    assert_eq!(names(&page("")), ["a", "b"]);
    let exact = page("&resourceVersion=3");
    assert_eq!((names(&exact), &exact["metadata"]["resourceVersion"]), (vec!["a", "b"], &json!("3")));
    api.set_watch_cache(false);
    assert_eq!(names(&page("&resourceVersion=0")), ["a", "b"]);
}

#[test]
fn a_restored_backup_knows_no_newer_versions() {
    let api = ApiServer::start();
    api.apply(node("n1"));
    let seen = api.apply(node("n2"));
    api.rewind(1);
    let (code, status) = get(&api, &format!("{NODES}?resourceVersion={seen}"));
    assert_eq!((code, &status["details"]["causes"][0]["reason"]), (504, &json!("ResourceVersionTooLarge")));
    let mut stream = open(&api, &format!("{NODES}?{STREAMING}&resourceVersion={seen}"));
    assert_eq!(stream.event().1["code"], 504, "inside the stream");
    assert_eq!(names(&get(&api, &format!("{NODES}?resourceVersion=0")).1), ["n1", "n2"]);
}

#[test]
fn requests_tell_when_they_came() {
    let api = ApiServer::start();
    get(&api, NODES);
    std::thread::sleep(Duration::from_millis(10));
    get(&api, NODES);
    let requests = api.requests();
    assert!(requests[1].received >= requests[0].received + Duration::from_millis(10), "{requests:?}");
}
