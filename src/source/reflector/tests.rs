//! The reflector against a scripted server, with paused time.

mod outage;

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, StatusCode};
use netfilter::IpFamily;
use proxier::mailbox::Message;
use proxier::mailbox::{Receiver, mailbox};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::transport::Chunks;
use super::*;
use crate::client::{RequestError, Verb};
use crate::config::{KubeProxyConfiguration, validate};
use crate::health::Health;
use crate::source::FamilySenders;
use crate::source::NodeUpdate;

/// A step of a response body.
#[derive(Clone, Debug)]
enum BodyStep {
    Bytes(String),
    Pause(Duration),
    Break,
    Hang,
}

/// The response to a request.
#[derive(Clone, Debug)]
enum ScriptedReply {
    Refused,
    Status(u16, &'static str),
    Body(Vec<BodyStep>),
}

/// Chooses the response by path and query, and by the number of earlier requests.
type Script = Box<dyn Fn(&str, usize) -> ScriptedReply + Send>;

struct Server {
    script: Script,
    requests: Vec<(Duration, String)>,
    began: Instant,
}

#[derive(Clone)]
struct Scripted(Arc<Mutex<Server>>);

struct ScriptedBody(VecDeque<BodyStep>);

impl Transport for Scripted {
    type Body = ScriptedBody;

    fn server(&self) -> &str {
        "http://127.0.0.1:1"
    }

    async fn get(
        &self,
        verb: Verb,
        path: &str,
        _accept: &str,
    ) -> Result<(StatusCode, HeaderMap, ScriptedBody), RequestError> {
        assert_eq!(verb == Verb::Watch, is_watch(path), "{path}");
        let reply = {
            let mut server = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let (time, count) = (server.began.elapsed(), server.requests.len());
            server.requests.push((time, path.to_owned()));
            (server.script)(path, count)
        };
        let (status, steps) = match reply {
            ScriptedReply::Refused => {
                return Err(RequestError::Refused {
                    server: "http://127.0.0.1:1".into(),
                    cause: "connection refused".into(),
                });
            }
            ScriptedReply::Status(code, body) => (code, vec![BodyStep::Bytes(body.to_owned())]),
            ScriptedReply::Body(steps) => (200, steps),
        };
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok((StatusCode::from_u16(status).expect("a status"), headers, ScriptedBody(steps.into())))
    }
}

impl Chunks for ScriptedBody {
    async fn chunk(&mut self) -> Option<Result<Bytes, RequestError>> {
        loop {
            match self.0.pop_front()? {
                BodyStep::Bytes(text) => return Some(Ok(text.into())),
                BodyStep::Pause(time) => sleep(time).await,
                BodyStep::Break => {
                    return Some(Err(RequestError::Other {
                        server: "http://127.0.0.1:1".into(),
                        cause: "reset".into(),
                    }));
                }
                BodyStep::Hang => std::future::pending().await,
            }
        }
    }
}

/// A running reflector of Services.
struct Reflected {
    server: Scripted,
    changes: Receiver,
    news: UnboundedReceiver<NodeUpdate>,
    streamed_lists: StreamedLists,
    task: tokio::task::JoinHandle<()>,
}

impl Reflected {
    fn new(script: impl Fn(&str, usize) -> ScriptedReply + Send + 'static) -> Self {
        let server = Server { script: Box::new(script), requests: Vec::new(), began: Instant::now() };
        let server = Scripted(Arc::new(Mutex::new(server)));
        let settings = validate(KubeProxyConfiguration::default().with_defaults(), "node-a").expect("defaults");
        let ((sender, changes), (updates, news)) = (mailbox(), unbounded_channel());
        let mut families = FamilySenders::default();
        families.insert(IpFamily::V4, sender);
        let sink = Sink::new(&settings, families, updates, Arc::new(Health::new(Duration::from_secs(30), true)));
        let streamed_lists = StreamedLists::default();
        let resource = Resource::new(Kind::Service, "node-a", None);
        let reflector = Reflector::new(server.clone(), resource, "application/json", &streamed_lists, sink);
        let task = tokio::spawn(reflector.run());
        Self { server, changes, news, streamed_lists, task }
    }

    async fn after(self, time: Duration) -> Outcome {
        sleep(time).await;
        assert!(!self.task.is_finished(), "it goes on for ever");
        self.task.abort();
        let requests = self.server.0.lock().unwrap_or_else(PoisonError::into_inner).requests.clone();
        let mut events = Vec::new();
        while let Ok(mail) = self.changes.try_recv() {
            events.push(match mail.message {
                Message::Change(Change::Listing(_)) => "listing".to_owned(),
                Message::Change(Change::Listed(_)) => "listed".to_owned(),
                Message::Change(Change::ListedInPart(_)) => "listed in part".to_owned(),
                Message::Change(Change::Service(name, ports)) if ports.is_empty() => format!("-{}", name.name),
                Message::Change(Change::Service(name, _)) => format!("+{}", name.name),
                other => panic!("{other:?}"),
            });
        }
        let Self { mut news, streamed_lists, .. } = self;
        let troubles = std::iter::from_fn(|| news.try_recv().ok()).map(|news| match news {
            NodeUpdate::Failed(_, said) => said,
            other => panic!("{other:?}"),
        });
        Outcome { requests, events, troubles: troubles.collect(), streams: streamed_lists.are_usable() }
    }
}

/// The observed behaviour of a reflector.
struct Outcome {
    requests: Vec<(Duration, String)>,
    events: Vec<String>,
    troubles: Vec<String>,
    streams: bool,
}

impl Outcome {
    /// Requests as letters: S streamed list, L list, W watch.
    fn letters(&self) -> String {
        self.requests
            .iter()
            .map(|(_, path)| {
                if is_stream(path) {
                    'S'
                } else if is_watch(path) {
                    'W'
                } else {
                    'L'
                }
            })
            .collect()
    }

    fn versions(&self) -> Vec<&str> {
        let version = |path: &'_ str| {
            path.split(['?', '&']).find_map(|part| part.strip_prefix("resourceVersion=").map(|v| v.len()))
        };
        self.requests
            .iter()
            .map(|(_, path)| match (version(path), path.find("resourceVersion=")) {
                (Some(length), Some(at)) => &path[at + 16..at + 16 + length],
                _ => "",
            })
            .collect()
    }
}

fn is_stream(path: &str) -> bool {
    path.contains("sendInitialEvents=true")
}

fn is_watch(path: &str) -> bool {
    path.contains("watch=true")
}

fn service(name: &str, version: u32) -> String {
    format!(
        r#"{{"metadata":{{"name":"{name}","namespace":"default","resourceVersion":"{version}"}},"spec":{{"type":"ClusterIP",
        "clusterIP":"10.96.0.1","clusterIPs":["10.96.0.1"],"ipFamilies":["IPv4"],"ports":[{{"port":80,"protocol":"TCP"}}]}}}}"#
    )
}

fn event(of: &str, object: &str) -> BodyStep {
    BodyStep::Bytes(format!("{{\"type\":\"{of}\",\"object\":{object}}}\n"))
}

fn bookmark(version: u32, ends_list: bool) -> BodyStep {
    let annotation = if ends_list { r#","annotations":{"k8s.io/initial-events-end":"true"}"# } else { "" };
    event("BOOKMARK", &format!(r#"{{"kind":"Service","metadata":{{"resourceVersion":"{version}"{annotation}}}}}"#))
}

fn error_event(code: u16, reason: &str) -> BodyStep {
    event(
        "ERROR",
        &format!(r#"{{"kind":"Status","status":"Failure","message":"no","reason":"{reason}","code":{code}}}"#),
    )
}

fn list(version: u32, token: &str, items: &[&str]) -> Vec<BodyStep> {
    let items = items.iter().map(|name| service(name, 1)).collect::<Vec<_>>().join(",");
    let metadata = format!(r#"{{"resourceVersion":"{version}","continue":"{token}"}}"#);
    vec![BodyStep::Bytes(format!(
        r#"{{"kind":"ServiceList","apiVersion":"v1","metadata":{metadata},"items":[{items}]}}"#
    ))]
}

fn streamed(then: &[BodyStep]) -> ScriptedReply {
    let list = [event("ADDED", &service("a", 3)), event("ADDED", &service("b", 1)), bookmark(7, true)];
    ScriptedReply::Body(list.into_iter().chain(then.iter().cloned()).collect())
}

const SECONDS: fn(u64) -> Duration = Duration::from_secs;

#[tokio::test(start_paused = true)]
async fn streamed_list_stays_open_as_the_watch() {
    let then = [event("MODIFIED", &service("a", 8)), event("DELETED", &service("b", 9)), BodyStep::Hang];
    let outcome = Reflected::new(move |_, _| streamed(&then)).after(SECONDS(100)).await;
    assert_eq!(outcome.letters(), "S");
    assert_eq!(outcome.versions(), [""]);
    assert_eq!(outcome.events, ["listing", "+a", "-b", "listed"]);
    assert!(outcome.streams && outcome.troubles.is_empty());
}

#[tokio::test(start_paused = true)]
async fn any_failure_of_a_streamed_list_is_followed_at_once_by_a_plain_list() {
    let failures: Vec<(&str, ScriptedReply, u64)> = vec![
        ("400", ScriptedReply::Status(400, "{}"), 0),
        ("403", ScriptedReply::Status(403, "{}"), 0),
        ("404", ScriptedReply::Status(404, "404 page not found"), 0),
        ("422", ScriptedReply::Status(422, "{}"), 0),
        (
            "500",
            ScriptedReply::Status(500, r#"{"kind":"Status","message":"RequestWatchProgress is disabled","code":500}"#),
            0,
        ),
        ("502", ScriptedReply::Status(502, "<html><body>Bad Gateway</body></html>"), 0),
        ("ERROR event", ScriptedReply::Body(vec![error_event(500, "InternalError"), BodyStep::Hang]), 0),
        ("closed at once", ScriptedReply::Body(vec![]), 0),
        ("closed without bookmark", ScriptedReply::Body(vec![event("ADDED", &service("a", 1))]), 0),
        ("no bookmark", ScriptedReply::Body(vec![event("ADDED", &service("a", 1)), BodyStep::Hang]), 1),
        ("silence", ScriptedReply::Body(vec![BodyStep::Hang]), 1),
        ("garbage", ScriptedReply::Body(vec![BodyStep::Bytes("<html>".into()), BodyStep::Hang]), 0),
    ];
    for (name, failure, seconds) in failures {
        let script = move |path: &str, _| match (is_stream(path), is_watch(path)) {
            (true, _) => failure.clone(),
            (false, true) => ScriptedReply::Body(vec![BodyStep::Hang]),
            (false, false) => ScriptedReply::Body(list(7, "", &["a"])),
        };
        let outcome = Reflected::new(script).after(SECONDS(60)).await;
        assert_eq!(outcome.letters(), "SLW", "{name}");
        assert_eq!(outcome.versions(), ["", "0", "7"], "{name}");
        assert_eq!(outcome.requests[1].0.as_secs(), seconds, "{name}");
        assert!(!outcome.streams, "{name}: it stays with plain lists");
        assert_eq!(outcome.events.last().map(String::as_str), Some("listed"), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn broken_connection_falls_back_but_says_nothing_about_streaming() {
    let script = |path: &str, _| match (is_stream(path), is_watch(path)) {
        (true, _) => ScriptedReply::Body(vec![event("ADDED", &service("a", 1)), BodyStep::Break]),
        (false, true) => ScriptedReply::Body(vec![BodyStep::Hang]),
        (false, false) => ScriptedReply::Body(list(7, "", &["a"])),
    };
    let outcome = Reflected::new(script).after(SECONDS(10)).await;
    assert_eq!(outcome.letters(), "SLW");
    assert!(outcome.streams);
}

#[tokio::test(start_paused = true)]
async fn overload_and_refused_connections_are_waited_out() {
    for failure in [ScriptedReply::Refused, ScriptedReply::Status(429, "{}"), ScriptedReply::Status(401, "{}")] {
        let script = move |_: &str, count| if count < 3 { failure.clone() } else { streamed(&[BodyStep::Hang]) };
        let outcome = Reflected::new(script).after(SECONDS(20)).await;
        assert_eq!(outcome.letters(), "SSSS");
        assert_eq!(outcome.troubles.len(), 3);
        assert!(outcome.requests[3].0 >= Duration::from_millis(800 + 1600 + 3200));
    }
}

#[tokio::test(start_paused = true)]
async fn servers_in_trouble_are_asked_a_handful_of_times() {
    // A list, then 410, again and again.
    let gone = |path: &str, _| match (is_stream(path), is_watch(path)) {
        (true, _) => streamed(&[error_event(410, "Expired")]),
        _ => ScriptedReply::Status(410, "{}"),
    };
    let outcome = Reflected::new(gone).after(SECONDS(20)).await;
    assert!((3..=5).contains(&outcome.letters().len()), "{}", outcome.letters());
    // Watches that end at once are tried again from the version, without a list.
    let closing = |path: &str, _| if is_stream(path) { streamed(&[]) } else { ScriptedReply::Body(vec![]) };
    let outcome = Reflected::new(closing).after(SECONDS(20)).await;
    assert!(outcome.letters().starts_with("SWW") && outcome.letters().len() <= 6, "{}", outcome.letters());
    let short = "http://127.0.0.1:1: the watch ended after";
    assert!(outcome.troubles.iter().all(|said| said.starts_with(short)), "{:?}", outcome.troubles);
    // So are events followed by an end.
    let then = [event("MODIFIED", &service("a", 8))];
    let outcome =
        Reflected::new(
            move |path, _| {
                if is_stream(path) { streamed(&then) } else { ScriptedReply::Body(vec![bookmark(9, false)]) }
            },
        );
    let outcome = outcome.after(SECONDS(20)).await;
    assert!(outcome.letters().len() <= 6, "{}", outcome.letters());
    assert_eq!(outcome.versions()[1..3], ["8", "9"]);
}

#[tokio::test(start_paused = true)]
async fn two_minutes_of_health_reset_the_backoff() {
    let script = |path: &str, count| match count {
        0..5 => ScriptedReply::Status(429, "{}"),
        5 => streamed(&[BodyStep::Pause(SECONDS(300)), error_event(410, "Expired")]),
        _ if is_watch(path) => streamed(&[BodyStep::Hang]),
        _ => panic!("{path}"),
    };
    let outcome = Reflected::new(script).after(SECONDS(500)).await;
    let pause = outcome.requests[6].0 - outcome.requests[5].0 - SECONDS(300);
    assert!((800..=1600).contains(&pause.as_millis()), "{pause:?}");
}

#[tokio::test(start_paused = true)]
async fn watches_go_on_from_the_last_version_seen() {
    for end in [BodyStep::Break, BodyStep::Pause(Duration::ZERO)] {
        let script = move |path: &str, _| {
            let events =
                [event("MODIFIED", &service("a", 12)), bookmark(15, false), BodyStep::Pause(SECONDS(30)), end.clone()];
            if is_stream(path) { streamed(&events) } else { ScriptedReply::Body(vec![BodyStep::Hang]) }
        };
        let outcome = Reflected::new(script).after(SECONDS(40)).await;
        assert_eq!(outcome.letters(), "SW");
        assert_eq!(outcome.versions(), ["", "15"]);
        assert!(outcome.troubles.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn lost_version_is_listed_anew_from_the_last_one_and_then_from_the_newest() {
    let script = |path: &str, count| match count {
        0 => streamed(&[BodyStep::Pause(SECONDS(5)), error_event(410, "Expired")]),
        1 => ScriptedReply::Status(
            504,
            r#"{"kind":"Status","message":"Too large resource version: 7, current: 3","code":504}"#,
        ),
        _ if is_stream(path) => streamed(&[BodyStep::Hang]),
        _ => panic!("{path}"),
    };
    let outcome = Reflected::new(script).after(SECONDS(60)).await;
    assert_eq!(outcome.letters(), "SSS");
    assert_eq!(outcome.versions(), ["", "7", ""]);
    assert!(outcome.requests[2].0 - outcome.requests[1].0 < SECONDS(1), "at once");
}

#[tokio::test(start_paused = true)]
async fn events_that_cannot_be_decoded_lead_to_a_new_list() {
    let script = |path: &str, count| match count {
        0 => streamed(&[event("MODIFIED", "7"), BodyStep::Hang]),
        _ if is_stream(path) => streamed(&[BodyStep::Hang]),
        _ => panic!("{path}"),
    };
    assert_eq!(Reflected::new(script).after(SECONDS(20)).await.letters(), "SS");
}

#[tokio::test(start_paused = true)]
async fn forbidden_watches_leave_lists_at_the_pace_of_the_backoff() {
    let script = |path: &str, _| match (is_stream(path), is_watch(path)) {
        (true, _) => ScriptedReply::Status(403, "{}"),
        (false, true) => ScriptedReply::Status(403, "{}"),
        (false, false) => ScriptedReply::Body(list(7, "", &["a"])),
    };
    let letters = Reflected::new(script).after(SECONDS(20)).await.letters();
    assert!(letters.starts_with("SLWLW") && letters.len() <= 12, "{letters}");
}

#[tokio::test(start_paused = true)]
async fn watches_refused_again_and_again_lead_to_a_new_list() {
    // A real server's response to a version that is not a number.
    let script = |path: &str, count| match count {
        0 => streamed(&[BodyStep::Pause(SECONDS(5))]),
        _ if is_stream(path) => streamed(&[BodyStep::Hang]),
        _ => ScriptedReply::Status(500, r#"{"kind":"Status","message":"strconv.ParseUint: parsing \"x\"","code":500}"#),
    };
    assert_eq!(Reflected::new(script).after(SECONDS(60)).await.letters(), "SWWWS");
}

#[tokio::test(start_paused = true)]
async fn pages_follow_their_tokens_and_an_expired_token_asks_for_everything_at_once() {
    let script = |path: &str, _| match () {
        () if is_stream(path) => ScriptedReply::Status(400, "{}"),
        () if is_watch(path) => ScriptedReply::Body(vec![BodyStep::Hang]),
        () if path.contains("continue=two") => ScriptedReply::Body(list(7, "three", &["b"])),
        () if path.contains("continue=three") => {
            ScriptedReply::Status(410, r#"{"kind":"Status","reason":"Expired","code":410}"#)
        }
        () if path.contains("limit=500") => ScriptedReply::Body(list(7, "two", &["a"])),
        () => ScriptedReply::Body(list(9, "", &["a", "c"])),
    };
    let outcome = Reflected::new(script).after(SECONDS(20)).await;
    assert_eq!(outcome.letters(), "SLLLLW");
    assert_eq!(outcome.versions(), ["", "0", "", "", "0", "9"]);
    assert!(outcome.requests[2].1.contains("continue=two&"));
    assert!(!outcome.requests[4].1.contains("limit="));
    assert_eq!(outcome.events, ["listing", "+a", "+c", "listed"]);
}

#[tokio::test(start_paused = true)]
async fn objects_without_a_name_do_not_hold_up_the_others_and_delete_nothing() {
    let nameless = r#"{"kind":"ServiceList","apiVersion":"v1","metadata":{"resourceVersion":"7"},"items":[{},"#;
    let plain = ScriptedReply::Body(vec![BodyStep::Bytes(format!("{nameless}{}]}}", service("a", 1)))]);
    let script = move |path: &str, _| match (is_stream(path), is_watch(path)) {
        (true, _) => ScriptedReply::Status(400, "{}"),
        (false, true) => ScriptedReply::Body(vec![BodyStep::Hang]),
        (false, false) => plain.clone(),
    };
    let outcome = Reflected::new(script).after(SECONDS(20)).await;
    assert_eq!((&*outcome.letters(), outcome.troubles.len()), ("SLW", 0));
    assert_eq!(outcome.events, ["listing", "+a", "listed in part"]);
    let stream = [event("ADDED", &service("a", 1)), event("ADDED", "{}"), bookmark(7, true), BodyStep::Hang];
    let outcome = Reflected::new(move |_, _| ScriptedReply::Body(stream.to_vec())).after(SECONDS(20)).await;
    assert_eq!(outcome.letters(), "S");
    assert_eq!(outcome.events, ["listing", "+a", "listed in part"]);
}

#[tokio::test(start_paused = true)]
async fn event_that_was_cut_off_does_not_swallow_those_that_follow() {
    let script = |path: &str, count| match count {
        0 => streamed(&[
            BodyStep::Bytes("{\"type\":\"MODIFIED\",\"object\":{\"metadata\":{\n".into()),
            event("MODIFIED", &service("a", 9)),
            BodyStep::Hang,
        ]),
        _ if is_stream(path) => streamed(&[BodyStep::Hang]),
        _ => panic!("{path}"),
    };
    assert_eq!(Reflected::new(script).after(SECONDS(20)).await.letters(), "SS");
}

#[tokio::test(start_paused = true)]
async fn slow_lists_that_move_come_to_their_end_and_stalled_ones_do_not() {
    let slow = |path: &str, _| match (is_stream(path), is_watch(path)) {
        (true, _) => ScriptedReply::Status(400, "{}"),
        (false, true) => ScriptedReply::Body(vec![BodyStep::Hang]),
        (false, false) => {
            let [BodyStep::Bytes(text)] = &list(7, "", &["a"])[..] else { panic!("one piece") };
            let pieces = text.as_bytes().chunks(40).map(|piece| BodyStep::Bytes(String::from_utf8_lossy(piece).into()));
            ScriptedReply::Body(pieces.flat_map(|piece| [piece, BodyStep::Pause(SECONDS(20))]).collect())
        }
    };
    let outcome = Reflected::new(slow).after(SECONDS(600)).await;
    assert_eq!(outcome.letters(), "SLW");
    assert!(outcome.requests[2].0 > SECONDS(60), "{:?}", outcome.requests[2].0);
    let stalled = |path: &str, _| match is_stream(path) {
        true => ScriptedReply::Status(400, "{}"),
        false => ScriptedReply::Body(vec![BodyStep::Bytes(r#"{"items":["#.into()), BodyStep::Hang]),
    };
    let outcome = Reflected::new(stalled).after(SECONDS(50)).await;
    assert_eq!(outcome.troubles, ["http://127.0.0.1:1: no bytes of a list for 30s"]);
    assert!(!outcome.events.contains(&"listed".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn silent_watch_is_given_up_once_bookmarks_are_missing() {
    let then = [bookmark(8, false), BodyStep::Hang];
    let script =
        move |path: &str, _| if is_stream(path) { streamed(&then) } else { ScriptedReply::Body(vec![BodyStep::Hang]) };
    let outcome = Reflected::new(script).after(SECONDS(200)).await;
    assert_eq!(outcome.letters(), "SS", "the version may be one that a restored etcd does not have");
    assert_eq!(outcome.troubles, ["http://127.0.0.1:1: no event or bookmark for 120s"]);
    // A server without bookmarks has until its own timeout.
    let outcome = Reflected::new(|_, _| streamed(&[BodyStep::Hang])).after(SECONDS(600)).await;
    assert_eq!(outcome.letters(), "S");
}

#[tokio::test(start_paused = true)]
async fn retry_after_of_a_server_is_respected() {
    let busy = r#"{"kind":"Status","message":"busy","details":{"retryAfterSeconds":17},"code":429}"#;
    let script =
        move |_: &str, count| if count == 0 { ScriptedReply::Status(429, busy) } else { streamed(&[BodyStep::Hang]) };
    let outcome = Reflected::new(script).after(SECONDS(60)).await;
    assert_eq!(outcome.requests[1].0.as_secs(), 17);
}
