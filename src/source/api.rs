//! The API server: a watch for each kind.
//!
//! In: a kubeconfig, `--master`, or the Pod's service account. Out: changes. Must not know: what is in objects.
//! Lists stream where the server can; an older server gives a list from its watch cache. kube's watcher sees to
//! bookmarks, expired versions and reconnecting.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use futures::future::OptionFuture;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::Status;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Resource};
use proxier::model::{Mode, NamespacedName};
use proxier::track::{Change, Kind, SERVICE_NAME, key_of};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use tracing::{debug, info, warn};

use super::{Sink, Source};
use crate::client::causes::causes;
use crate::config::Settings;

/// How long a list may make no progress.
const LIST_PATIENCE: Duration = Duration::from_secs(60);

/// How long a watch lasts, in seconds: from this on, and up to twice as long.
const WATCH_SECONDS: u32 = 300;

/// Watches. A server that does not answer is waited for. `only`: of the Services this one, and its slices.
pub fn start(client: Client, settings: &Settings, only: Option<&NamespacedName>, sinks: [Sink; 4]) -> Source {
    start_with(client, settings, only, sinks, LIST_PATIENCE)
}

/// `patience`: how long a list may make no progress.
fn start_with(
    client: Client,
    settings: &Settings,
    only: Option<&NamespacedName>,
    sinks: [Sink; 4],
    patience: Duration,
) -> Source {
    let [nodes, services, slices, networks] = sinks;
    let node = format!("metadata.name={}", settings.proxier.node_name);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // between 300 and 600
    let seconds = (f64::from(WATCH_SECONDS) * (1.0 + chance())) as u32;
    let config = watcher::Config::default().timeout(seconds);
    let node_watch = watch::<NodeKind>(Api::all(client.clone()), config.clone().fields(&node), nodes, patience);
    let (mut fields, mut labels) = ("spec.clusterIP!=None".to_owned(), "!service.kubernetes.io/headless".to_owned());
    if let Some(service) = only {
        fields += &format!(",metadata.name={}", service.name);
        labels += &format!(",{SERVICE_NAME}={}", service.name);
    }
    let services_config = config.clone().labels("!service.kubernetes.io/service-proxy-name").fields(&fields);
    let service_watch = watch::<ServiceKind>(api(&client, only), services_config, services, patience);
    let slice_watch = watch::<SliceKind>(api(&client, only), config.clone().labels(&labels), slices, patience);
    // Only this mode asks which networks cluster IPs are taken from.
    let asks = settings.mode == Mode::Nftables;
    let network_watch = asks.then(|| watch::<ServiceCidrKind>(Api::all(client), config, networks, patience));
    Box::pin(async move {
        let network_watch = OptionFuture::from(network_watch);
        tokio::join!(node_watch, service_watch, slice_watch, network_watch);
        "the watches ended".to_owned()
    })
}

/// Objects in the Service's namespace, or in all.
fn api<K: ObjectKind>(client: &Client, only: Option<&NamespacedName>) -> Api<Object<K>> {
    match only {
        Some(service) => Api::namespaced_with(client.clone(), &service.namespace, &()),
        None => Api::all(client.clone()),
    }
}

/// Watches one kind for ever.
async fn watch<K: ObjectKind>(api: Api<Object<K>>, config: watcher::Config, mut sink: Sink, patience: Duration) {
    let kind = K::KIND;
    let (mut streaming, mut pause) = (true, Pause::default());
    loop {
        let config = if streaming {
            config.clone().streaming_lists()
        } else {
            watcher::Config { page_size: None, ..config.clone() }.any_semantic()
        };
        let mut events = watcher::watcher(api.clone(), config).boxed();
        let (mut began, mut listed) = (false, false);
        loop {
            // An idle watch is kube's business; a list that does not go on is given up, for its connection may be dead.
            let patience = if listed { Duration::MAX } else { patience };
            let event = tokio::time::timeout(patience, events.try_next()).await;
            let error = match event {
                Ok(Ok(Some(event))) => {
                    match &event {
                        Event::Init => {
                            if began && !listed {
                                warn!("the API server ended a list of {}s half-way; trying again", kind.name());
                                tokio::time::sleep(pause.after(None)).await;
                            }
                            (began, listed) = (true, false);
                        }
                        Event::InitDone | Event::Apply(_) | Event::Delete(_) => {
                            listed = true;
                            pause.reset();
                        }
                        Event::InitApply(_) => {}
                    }
                    take(kind, event, &mut sink);
                    continue;
                }
                Ok(Ok(None)) => break,
                Ok(Err(watcher::Error::WatchStartFailed(kube::Error::Api(status))))
                    if streaming && matches!(status.code, 400 | 422) =>
                {
                    debug!("the API server cannot stream lists of {}: {}", kind.name(), status.message);
                    streaming = false;
                    break;
                }
                Ok(Err(
                    watcher::Error::InitialListFailed(kube::Error::Api(status))
                    | watcher::Error::WatchStartFailed(kube::Error::Api(status)),
                )) if kind == Kind::ServiceCidr && status.code == 404 => {
                    info!(
                        "the API server knows no {}s: packets to cluster IPs that nobody has are not dropped",
                        kind.name()
                    );
                    return;
                }
                Ok(Err(error)) => Some(error),
                Err(_) => None,
            };
            let said = match &error {
                None => "the API server does not go on".to_owned(),
                Some(error) => match refusal(error) {
                    Some(status) => {
                        format!("the API server says {} {}: {}", status.code, status.reason, status.message)
                    }
                    None => causes(error),
                },
            };
            warn!("watching {}s: {said}; trying again, the rules stay", kind.name());
            sink.trouble(kind, &said);
            tokio::time::sleep(pause.after(error.as_ref())).await;
            if error.is_none() && streaming && began {
                // A server that takes the request for a plain watch never says that the list is complete.
                streaming = false;
            }
            if error.as_ref().is_none_or(loses_events) {
                break;
            }
        }
    }
}

/// What the API server itself says, if the error is its answer.
fn refusal(error: &watcher::Error) -> Option<&Status> {
    use watcher::Error::{InitialListFailed, WatchError, WatchFailed, WatchStartFailed};
    match error {
        InitialListFailed(kube::Error::Api(status))
        | WatchStartFailed(kube::Error::Api(status))
        | WatchFailed(kube::Error::Api(status))
        | WatchError(status) => Some(status),
        _ => None,
    }
}

/// Whether a watch has skipped something, or cannot go on from where it was: only a new list can tell.
fn loses_events(error: &watcher::Error) -> bool {
    use kube::Error::{Api, LinesCodecMaxLineLengthExceeded, SerdeError};
    match error {
        watcher::Error::WatchFailed(SerdeError(_) | LinesCodecMaxLineLengthExceeded) => true,
        // Gone: kube would ask for the same version again.
        watcher::Error::WatchStartFailed(Api(status)) | watcher::Error::WatchFailed(Api(status)) => status.code == 410,
        _ => false,
    }
}

fn take<K: ObjectKind>(kind: Kind, event: Event<Object<K>>, sink: &mut Sink) {
    match event {
        Event::Init => sink.mark(&Change::Listing(kind)),
        Event::InitDone => sink.mark(&Change::Listed(kind)),
        Event::InitApply(object) | Event::Apply(object) => {
            sink.apply(kind, object.value);
        }
        Event::Delete(object) => sink.delete(&key_of(kind, &object.value)),
    }
}

/// How long to wait after failures: 0.8 s, doubled up to 30 s, somewhat at random so that nodes do not march in step.
#[derive(Debug, Default)]
struct Pause {
    failures: u32,
}

impl Pause {
    /// The next pause; not shorter than the server asks for.
    fn after(&mut self, error: Option<&watcher::Error>) -> Duration {
        let base = Duration::from_millis(800).saturating_mul(1 << self.failures.min(6)).min(Duration::from_secs(30));
        self.failures += 1;
        let details = error.and_then(refusal).and_then(|status| status.details.as_ref());
        let asked = details.map_or(0, |details| details.retry_after_seconds);
        (base + base.mul_f64(chance())).max(Duration::from_secs(u64::from(asked)))
    }

    fn reset(&mut self) {
        self.failures = 0;
    }
}

/// A number from 0 to 1, different on every node and every time.
fn chance() -> f64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    f64::from(now.subsec_nanos() % 1000) / 1000.0
}

/// What kube has to know of a kind to ask for it.
trait ObjectKind: Clone + fmt::Debug + Send + 'static {
    const KIND: Kind;
    const GROUP: &'static str;
    const PLURAL: &'static str;
}

macro_rules! kind {
    ($name:ident, $kind:expr, $group:literal, $plural:literal) => {
        #[derive(Clone, Debug)]
        struct $name;
        impl ObjectKind for $name {
            const KIND: Kind = $kind;
            const GROUP: &'static str = $group;
            const PLURAL: &'static str = $plural;
        }
    };
}

kind!(NodeKind, Kind::Node, "", "nodes");
kind!(ServiceKind, Kind::Service, "", "services");
kind!(SliceKind, Kind::EndpointSlice, "discovery.k8s.io", "endpointslices");
kind!(ServiceCidrKind, Kind::ServiceCidr, "networking.k8s.io", "servicecidrs");

/// An object that is not understood yet: whatever is in it, the stream of its kind goes on.
#[derive(Clone, Debug)]
struct Object<K> {
    metadata: ObjectMeta,
    value: Value,
    kind: PhantomData<K>,
}

impl<'de, K> Deserialize<'de> for Object<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut value = Value::deserialize(deserializer)?;
        if let Some(Value::Object(metadata)) = value.get_mut("metadata") {
            metadata.remove("managedFields");
        }
        let field = |name| value.pointer(name).and_then(Value::as_str).map(str::to_owned);
        let metadata = ObjectMeta {
            name: field("/metadata/name"),
            namespace: field("/metadata/namespace"),
            resource_version: field("/metadata/resourceVersion"),
            ..ObjectMeta::default()
        };
        Ok(Self { metadata, value, kind: PhantomData })
    }
}

impl<K: ObjectKind> Resource for Object<K> {
    type DynamicType = ();
    type Scope = kube::core::DynamicResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        K::KIND.name().into()
    }

    fn group((): &()) -> Cow<'_, str> {
        K::GROUP.into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        K::PLURAL.into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
#[path = "api_tests.rs"]
mod tests;
