//! Events: what operators read with `kubectl describe` of the Node or a Service.
//!
//! In: what happened, from any thread. Out: `events.k8s.io/v1` objects, as kube-proxy writes them. Must not know: what
//! follows from it. An API server that refuses events, or is away, is borne: nobody waits for it, but on the way out.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use proxier::model::NamespacedName;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use crate::client::causes::causes;

const CONTROLLER: &str = "kube-proxy";
/// So many may wait; more are dropped.
const QUEUE_CAPACITY: usize = 200;

/// What an event is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Regarding {
    /// This node.
    Node,
    /// A Service.
    Service(NamespacedName),
}

/// Something to tell.
#[derive(Clone, Debug)]
pub struct PendingEvent {
    /// Whether something is wrong.
    pub warning: bool,
    /// One of kube-proxy's own reasons.
    pub reason: &'static str,
    /// What was being done.
    pub action: &'static str,
    /// What it is about.
    pub regarding: Regarding,
    /// For people.
    pub note: String,
}

enum Message {
    Publish(PendingEvent),
    /// Answered when all before it is told, or given up.
    Flush(oneshot::Sender<()>),
}

/// Where to tell it.
#[derive(Clone, Debug)]
pub struct EventSender(mpsc::Sender<Message>);

/// What was told and is to be published.
pub struct EventQueue(mpsc::Receiver<Message>);

/// Nothing yet. Without someone to publish, nothing comes of what is told.
pub fn event_queue() -> (EventSender, EventQueue) {
    let (sender, receiver) = mpsc::channel(QUEUE_CAPACITY);
    (EventSender(sender), EventQueue(receiver))
}

impl EventSender {
    /// Has it published, some time.
    pub fn send(&self, event_data: PendingEvent) {
        if let Err(error) = self.0.try_send(Message::Publish(event_data)) {
            debug!("an event is not told: {error}");
        }
    }

    /// The proxy is at work.
    pub fn starting(&self) {
        self.send(PendingEvent {
            warning: false,
            reason: "Starting",
            action: "StartKubeProxy",
            regarding: Regarding::Node,
            note: String::new(),
        });
    }

    /// A port without which the proxy may not go on cannot be had.
    pub fn port_failed(&self, reason: &'static str, note: String) {
        let regarding = Regarding::Node;
        self.send(PendingEvent { warning: true, reason, action: "StartKubeProxy", regarding, note });
    }

    /// The health checks of a Service cannot be answered.
    pub fn health_check_failed(&self, service: &NamespacedName, note: String) {
        let (reason, regarding) = ("FailedToStartServiceHealthcheck", Regarding::Service(service.clone()));
        self.send(PendingEvent { warning: true, reason, action: "Listen", regarding, note });
    }

    /// Waits until all is told, but not for long: what is said last is why the proxy ends.
    pub async fn flush(&self, limit: Duration) {
        let (done, flushed) = oneshot::channel();
        let flush = async {
            if self.0.send(Message::Flush(done)).await.is_ok() {
                let _ = flushed.await;
            }
        };
        if timeout(limit, flush).await.is_err() {
            debug!("the last events are not told: the API server does not answer");
        }
    }
}

/// How hard to try.
#[derive(Clone, Copy, Debug)]
pub struct EventRetryPolicy {
    /// How often an event is tried while the API server cannot be reached.
    pub attempts: u32,
    /// How long between.
    pub backoff: Duration,
    /// How long the API server may think about it.
    pub response_timeout: Duration,
    /// How soon the same is told again, as one more of a series.
    pub series_window: Duration,
}

impl Default for EventRetryPolicy {
    fn default() -> Self {
        // Within six minutes the recorder takes the same event for one more of a series.
        let seconds = Duration::from_secs;
        Self { attempts: 12, backoff: seconds(10), response_timeout: seconds(30), series_window: seconds(300) }
    }
}

/// Writes events for one node.
struct Publisher {
    client: Client,
    recorder: Recorder,
    reporter: Reporter,
    node: String,
    policy: EventRetryPolicy,
    recent: HashMap<(Regarding, &'static str), Instant>,
}

impl EventQueue {
    /// Publishes what is told, until nobody is left who tells. `host`: this machine's own name.
    pub async fn publish(mut self, client: Client, node: &str, host: &str, policy: EventRetryPolicy) {
        let reporter = Reporter { controller: CONTROLLER.to_owned(), instance: Some(format!("{CONTROLLER}-{host}")) };
        let recorder = Recorder::new(client.clone(), reporter.clone());
        let mut publisher =
            Publisher { client, recorder, reporter, node: node.to_owned(), policy, recent: HashMap::new() };
        while let Some(message) = self.0.recv().await {
            match message {
                Message::Publish(event_data) => publisher.publish(event_data).await,
                Message::Flush(done) => {
                    let _ = done.send(());
                }
            }
        }
    }
}

impl Publisher {
    async fn publish(&mut self, event_data: PendingEvent) {
        let now = Instant::now();
        self.recent.retain(|_, at| now.duration_since(*at) < self.policy.series_window);
        let key = (event_data.regarding.clone(), event_data.reason);
        if self.recent.contains_key(&key) {
            return;
        }
        self.recent.insert(key, now);
        let event = Event {
            type_: if event_data.warning { EventType::Warning } else { EventType::Normal },
            reason: event_data.reason.to_owned(),
            note: Some(event_data.note).filter(|note| !note.is_empty()),
            action: event_data.action.to_owned(),
            secondary: None,
        };
        self.send(&event, &self.reference(&event_data.regarding)).await;
    }

    /// Like kube-proxy: what the server refuses is not tried again, what does not reach it is.
    async fn send(&mut self, event: &Event, regarding: &ObjectReference) {
        let mut expired = false;
        for left in (0..self.policy.attempts).rev() {
            let published = self.recorder.publish(event, regarding);
            let Ok(outcome) = timeout(self.policy.response_timeout, published).await else { continue };
            match outcome {
                Ok(()) => return,
                // The event that is repeated is there no more: begin anew.
                Err(kube::Error::Api(status)) if status.code == 404 && !expired => {
                    expired = true;
                    self.recorder = Recorder::new(self.client.clone(), self.reporter.clone());
                }
                Err(kube::Error::Api(status)) => {
                    warn!(
                        "the API server refuses the event {}: {}; it is not tried again",
                        event.reason, status.message
                    );
                    return;
                }
                Err(error) if left == 0 => {
                    warn!("cannot write the event {}, giving up: {}", event.reason, causes(&error))
                }
                Err(error) => {
                    debug!("cannot write the event {}, trying again: {}", event.reason, causes(&error));
                    sleep(self.policy.backoff).await;
                }
            }
        }
    }

    /// As kube-proxy refers to them: without a uid, which it does not know.
    fn reference(&self, regarding: &Regarding) -> ObjectReference {
        let (kind, namespace, name) = match regarding {
            Regarding::Node => ("Node", None, self.node.clone()),
            Regarding::Service(service) => ("Service", Some(service.namespace.to_string()), service.name.to_string()),
        };
        ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some(kind.to_owned()),
            namespace,
            name: Some(name),
            ..ObjectReference::default()
        }
    }
}

#[cfg(test)]
#[path = "events_tests.rs"]
mod tests;
