//! Kubernetes events on the Node and on Services, as `kubectl describe` shows them.
//!
//! Any thread queues events; one task writes them as `events.k8s.io/v1` objects in kube-proxy's form. An API server
//! that
//! rejects events or is down delays nothing but the exit of the process.

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
/// Events that may be queued; further ones are dropped.
const QUEUE_CAPACITY: usize = 200;

/// The object that an event is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Regarding {
    /// This node.
    Node,
    /// A Service.
    Service(NamespacedName),
}

/// An event that is to be published.
#[derive(Clone, Debug)]
pub struct PendingEvent {
    /// Whether its type is `Warning` instead of `Normal`.
    pub warning: bool,
    /// One of kube-proxy's own reasons.
    pub reason: &'static str,
    /// The action during which it happened.
    pub action: &'static str,
    /// The object that it is about.
    pub regarding: Regarding,
    /// The human-readable description.
    pub note: String,
}

enum Message {
    Publish(PendingEvent),
    /// Answered when every event queued before it is published or given up.
    Flush(oneshot::Sender<()>),
}

/// Queues events; cheap to clone.
#[derive(Clone, Debug)]
pub struct EventSender(mpsc::Sender<Message>);

/// Queued events, to be published.
pub struct EventQueue(mpsc::Receiver<Message>);

/// An empty queue. Events are dropped silently if [`EventQueue::publish`] is never called.
pub fn event_queue() -> (EventSender, EventQueue) {
    let (sender, receiver) = mpsc::channel(QUEUE_CAPACITY);
    (EventSender(sender), EventQueue(receiver))
}

impl EventSender {
    /// Queues an event; drops it if the queue is full.
    pub fn send(&self, event_data: PendingEvent) {
        if let Err(error) = self.0.try_send(Message::Publish(event_data)) {
            debug!("Dropped an event: {error}");
        }
    }

    /// Queues `Starting`: the proxy is running.
    pub fn starting(&self) {
        self.send(PendingEvent {
            warning: false,
            reason: "Starting",
            action: "StartKubeProxy",
            regarding: Regarding::Node,
            note: String::new(),
        });
    }

    /// Queues a warning: the proxy exits because it cannot listen on a port.
    pub fn port_failed(&self, reason: &'static str, note: String) {
        let regarding = Regarding::Node;
        self.send(PendingEvent { warning: true, reason, action: "StartKubeProxy", regarding, note });
    }

    /// Queues a warning: health checks of a Service cannot be served.
    pub fn health_check_failed(&self, service: &NamespacedName, note: String) {
        let (reason, regarding) = ("FailedToStartServiceHealthcheck", Regarding::Service(service.clone()));
        self.send(PendingEvent { warning: true, reason, action: "Listen", regarding, note });
    }

    /// Waits until all queued events are published, at most `limit`. The last one says why the proxy exits.
    pub async fn flush(&self, limit: Duration) {
        let (done, flushed) = oneshot::channel();
        let flush = async {
            if self.0.send(Message::Flush(done)).await.is_ok() {
                let _ = flushed.await;
            }
        };
        if timeout(limit, flush).await.is_err() {
            debug!("Last events not sent: no answer from the API server within {limit:?}");
        }
    }
}

/// How often and how fast an event is retried.
#[derive(Clone, Copy, Debug)]
pub struct EventRetryPolicy {
    /// How often an event is sent while the API server cannot be reached.
    pub attempts: u32,
    /// The pause between two attempts.
    pub backoff: Duration,
    /// How long the API server may take to answer.
    pub response_timeout: Duration,
    /// How long the same event is suppressed, before it is sent as one more of a series.
    pub series_window: Duration,
}

impl Default for EventRetryPolicy {
    fn default() -> Self {
        // The recorder makes events within six minutes one series.
        let seconds = Duration::from_secs;
        Self { attempts: 12, backoff: seconds(10), response_timeout: seconds(30), series_window: seconds(300) }
    }
}

/// Publishes events for one node.
struct Publisher {
    client: Client,
    recorder: Recorder,
    reporter: Reporter,
    node: String,
    policy: EventRetryPolicy,
    recent: HashMap<(Regarding, &'static str), Instant>,
}

impl EventQueue {
    /// Publishes queued events until every sender is dropped. `host`: this machine's own name.
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

    /// Retries when the API server cannot be reached, and not when it rejects the event, as kube-proxy does.
    async fn send(&mut self, event: &Event, regarding: &ObjectReference) {
        let mut expired = false;
        for left in (0..self.policy.attempts).rev() {
            let published = self.recorder.publish(event, regarding);
            let Ok(outcome) = timeout(self.policy.response_timeout, published).await else { continue };
            match outcome {
                Ok(()) => return,
                // The event of the series has expired on the server: start a new one.
                Err(kube::Error::Api(status)) if status.code == 404 && !expired => {
                    expired = true;
                    self.recorder = Recorder::new(self.client.clone(), self.reporter.clone());
                }
                Err(kube::Error::Api(status)) => {
                    warn!("API server rejected event {:?}, not retrying: {}", event.reason, status.message);
                    return;
                }
                Err(error) if left == 0 => {
                    warn!("Failed to write event {:?}, giving up: {}", event.reason, causes(&error))
                }
                Err(error) => {
                    debug!("Failed to write event {:?}, retrying: {}", event.reason, causes(&error));
                    sleep(self.policy.backoff).await;
                }
            }
        }
    }

    /// The reference without a UID, as kube-proxy writes it.
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
