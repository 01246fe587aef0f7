//! The reflector against a scripted server, with paused time.

mod backoff;
mod lists;
mod outage;
mod watches;

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
use crate::source::{FamilySenders, NodeUpdate, Receivers};

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
        let health = Arc::new(Health::new(Duration::from_secs(30), true));
        let sink = Sink::new(&settings, Receivers { families, node: updates, health, selected: None });
        let streamed_lists = StreamedLists::default();
        let resource = Resource::new(Kind::Service, "node-a", None);
        let reflector =
            Reflector::new(server.clone(), resource, "application/json", (&streamed_lists, &Outages::default()), sink);
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
