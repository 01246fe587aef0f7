//! Lists and watches the objects of one kind, as client-go's reflector does.
//!
//! A streamed list comes first. If it fails in any way that a plain list might not share, a plain list follows at once,
//! and only plain lists are requested from then on. After a list, watches continue from the last version seen, until
//! the server no longer has that version. All failures share one backoff, which only two minutes of open watches reset.

mod backoff;
mod failure;
mod list;
mod resource;
mod transport;
mod version;
mod watch;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use proxier::track::{Change, Kind};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, error, info, warn};

pub use self::resource::Resource;

use self::backoff::Backoff;
use self::failure::Failure;
use self::transport::{OkResponse, Transport};
use self::version::Version;
use self::watch::Watch;
use super::wire::WatchEvent;
use super::{Outages, Sink};
use crate::client::Verb;

/// The timeout requested for a watch, at least; at most twice as long.
const WATCH_TIMEOUT: Duration = Duration::from_secs(300);
/// How long after its own timeout a watch may be silent.
const WATCH_TIMEOUT_GRACE: Duration = Duration::from_secs(30);
/// What an open watch is silent of.
const AWAITED: &str = "event or bookmark";
/// How long a watch may be silent on a server with bookmarks, which come about once a minute, but not of a kind that rests
/// if etcd sends no progress notifications: then the server is asked for its newest version. A server whose etcd was
/// restored from a backup never answers a watch from a version that it does not have yet: only a list helps then.
const BOOKMARK_TIMEOUT: Duration = Duration::from_secs(120);
/// A watch that ends sooner counts as a failure.
const MIN_WATCH_DURATION: Duration = Duration::from_secs(1);
/// Refused watches in a row before a new list: an API server answers 500 to a version that is not a number.
const MAX_REFUSALS: u32 = 3;
/// How long the response head of a streamed list may take. API Priority and Fairness may queue a request that long.
const STREAM_HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a streamed list may pause before a plain one replaces it.
const STREAM_IDLE_TIMEOUT: Duration = Duration::from_secs(1);

/// Whether an API server streams lists, as far as known; shared by the reflectors of all kinds.
#[derive(Clone, Debug)]
pub struct StreamedLists(Arc<AtomicBool>);

impl Default for StreamedLists {
    fn default() -> Self {
        Self(Arc::new(AtomicBool::new(true)))
    }
}

impl StreamedLists {
    fn are_usable(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Records that the server does not stream lists; logged once for all kinds.
    fn give_up(&self, kind: Kind, failure: &str) {
        if self.0.swap(false, Ordering::Relaxed) {
            info!("The API server does not stream lists, using plain lists from now on: {}s: {failure}", kind.name());
        }
    }
}

/// Keeps a [`Sink`] up to date with the objects of one kind.
pub struct Reflector<T> {
    transport: T,
    resource: Resource,
    accept: String,
    streamed_lists: StreamedLists,
    outages: Outages,
    version: Version,
    backoff: Backoff,
    /// Whether watches of this server have bookmarks.
    has_bookmarks: bool,
    sink: Sink,
    /// The text of the last failure.
    last_failure: String,
}

impl<T: Transport> Reflector<T> {
    /// `accept`: the Accept header of all requests.
    pub fn new(
        transport: T,
        resource: Resource,
        accept: &str,
        (streamed_lists, outages): (&StreamedLists, &Outages),
        sink: Sink,
    ) -> Self {
        outages.add(resource.kind);
        Self {
            transport,
            resource,
            accept: accept.to_owned(),
            streamed_lists: streamed_lists.clone(),
            outages: outages.clone(),
            version: Version::default(),
            backoff: Backoff::default(),
            has_bookmarks: false,
            sink,
            last_failure: String::new(),
        }
    }

    /// Lists and watches forever; returns only for an optional kind that the server does not have.
    pub async fn run(mut self) {
        loop {
            let failure = match self.list_and_watch().await {
                Err(failure) => failure,
                Ok(never) => match never {},
            };
            if self.resource.kind == Kind::ServiceCidr && failure.is_not_found() {
                info!(
                    "The API server has no ServiceCIDRs: packets to cluster IPs that no Service has are not rejected"
                );
                return;
            }
            self.back_off(&failure).await;
        }
    }

    /// One list, and watches until only a new list helps.
    async fn list_and_watch(&mut self) -> Result<Infallible, Failure> {
        let mut open = self.populate().await?;
        let mut refusals = 0;
        debug!("Listed {}s at resource version {}", self.resource.kind.name(), self.version.last());
        loop {
            let ended = match self.watch(open.take()).await {
                Ok(()) => {
                    refusals = 0;
                    continue;
                }
                Err(Failure::Stalled(AWAITED, _)) if self.is_version_known().await => {
                    debug!("Watch of {}s was silent, watching again", self.resource.kind.name());
                    continue;
                }
                Err(ended) => ended,
            };
            refusals += u32::from(ended.is_answer());
            if !ended.keeps_version() || refusals >= MAX_REFUSALS {
                return Err(ended);
            }
            self.back_off(&ended).await;
        }
    }

    /// Lists all objects into the sink. A streamed list leaves its watch open.
    async fn populate(&mut self) -> Result<Option<Watch<T::Body>>, Failure> {
        if !self.streamed_lists.are_usable() {
            return self.list().await.map(|()| None);
        }
        let failure = match self.stream_list().await {
            Ok(watch) => return Ok(Some(watch)),
            Err(failure) if failure.outlasts_fallback() => return Err(failure),
            Err(failure) => failure,
        };
        let (kind, text) = (self.resource.kind.name(), failure.at(self.transport.server()));
        debug!("{kind}s: streamed list failed, falling back to a plain list: {text}");
        self.list().await?;
        if failure.is_answer() {
            self.streamed_lists.give_up(self.resource.kind, &failure.at(self.transport.server()));
        }
        Ok(None)
    }

    /// A streamed list from the last version, or from the newest if the server no longer has that one.
    async fn stream_list(&mut self) -> Result<Watch<T::Body>, Failure> {
        match self.stream_list_from(self.version.for_watch()).await {
            Err(failure) if self.version.lost(&failure) => self.stream_list_from(self.version.for_watch()).await,
            result => result,
        }
    }

    async fn stream_list_from(&mut self, version: String) -> Result<Watch<T::Body>, Failure> {
        let path = self.resource.streamed_list(&version, watch_timeout());
        let requested_at = Instant::now();
        let answer = self.send(Verb::Watch, &path, STREAM_HEAD_TIMEOUT).await?;
        let mut watch = Watch::new(answer, self.resource.kind, requested_at);
        let kind = self.resource.kind;
        self.sink.mark(&Change::Listing(kind));
        let mut in_part = false;
        loop {
            match watch.next(STREAM_IDLE_TIMEOUT, "event of a streamed list").await?.ok_or(Failure::NoBookmark)? {
                // Versions of initial events are in no order: only the bookmark's counts.
                WatchEvent::Bookmark { resource_version, initial_events_end: true } => {
                    self.listed(resource_version, in_part);
                    return Ok(watch);
                }
                WatchEvent::Unreadable(error) => {
                    error!("Skipped an event of a list of {}s, objects missing from it are kept: {error}", kind.name());
                    in_part = true;
                }
                event => _ = self.take(event)?,
            }
        }
    }

    /// Marks a list as complete. `in_part`: except for objects that could not be decoded.
    fn listed(&mut self, version: String, in_part: bool) {
        let kind = self.resource.kind;
        self.version.listed(version);
        self.outages.recovered(kind);
        self.sink.mark(&if in_part { Change::ListedInPart(kind) } else { Change::Listed(kind) });
    }

    /// Follows a watch until it ends. `open`: one that is open already.
    async fn watch(&mut self, open: Option<Watch<T::Body>>) -> Result<(), Failure> {
        let timeout = watch_timeout();
        let mut watch = match open {
            Some(watch) => watch,
            None => {
                let requested_at = Instant::now();
                let path = self.resource.watch(self.version.last(), timeout);
                // Some proxies delay the head until the first event.
                Watch::new(self.send(Verb::Watch, &path, BOOKMARK_TIMEOUT).await?, self.resource.kind, requested_at)
            }
        };
        self.backoff.healthy(Instant::now());
        self.outages.recovered(self.resource.kind);
        let ended = loop {
            let silence = if self.has_bookmarks {
                BOOKMARK_TIMEOUT
            } else {
                timeout.max(WATCH_TIMEOUT * 2) + WATCH_TIMEOUT_GRACE
            };
            match watch.next(silence, AWAITED).await {
                Ok(Some(WatchEvent::Bookmark { resource_version, .. })) => {
                    self.has_bookmarks = true;
                    self.version.seen(&resource_version);
                }
                Ok(Some(event)) => {
                    if let Some(version) = self.take(event)? {
                        self.version.seen(&version);
                    }
                }
                Ok(None) => break None,
                Err(failure) => break Some(failure),
            }
        };
        let lasted = watch.requested_at.elapsed();
        match ended {
            // Connections of watches break for many reasons. If the server is down, the next request shows it.
            Some(Failure::Request(error)) if lasted >= MIN_WATCH_DURATION => {
                info!("Watch of {}s ended, watching again: {error}", self.resource.kind.name());
                Ok(())
            }
            Some(failure) => Err(failure),
            None if lasted < MIN_WATCH_DURATION => Err(Failure::Short(lasted)),
            None => Ok(()),
        }
    }

    /// Sends an object to the sink and returns its version.
    fn take(&mut self, event: WatchEvent) -> Result<Option<String>, Failure> {
        match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                let version = object.resource_version().to_owned();
                self.sink.apply(object);
                Ok(Some(version))
            }
            WatchEvent::Deleted(object) => {
                self.sink.delete(object.key());
                Ok(Some(object.resource_version().to_owned()))
            }
            WatchEvent::Bookmark { .. } => Ok(None),
            WatchEvent::Error(status) => Err(Failure::Refused(status)),
            WatchEvent::Unreadable(error) => Err(Failure::Unreadable(error)),
        }
    }

    /// Sends a request. `head_timeout`: how long the response head may take.
    async fn send(&self, verb: Verb, path: &str, head_timeout: Duration) -> Result<OkResponse<T::Body>, Failure> {
        let late = |_| Failure::Stalled("answer", head_timeout);
        let answer = timeout(head_timeout, self.transport.get(verb, path, &self.accept)).await.map_err(late)?;
        OkResponse::of(answer.map_err(Failure::Request)?).await
    }

    /// Logs a failure and waits before the next attempt.
    async fn back_off(&mut self, failure: &Failure) {
        let pause = self.backoff.after_failure(Instant::now(), fastrand::f64());
        let pause = pause.max(failure.retry_after().unwrap_or_default());
        let kind = self.resource.kind;
        let text = failure.at(self.transport.server());
        let line = format!("Failed to watch {}s, retrying in {pause:.1?}, rules left in place: {text}", kind.name());
        if failure.is_of_plugin() && self.last_failure == text {
            debug!("{line}");
        } else {
            warn!("{line}");
        }
        self.outages.failed(kind, matches!(failure, Failure::Short(_)));
        self.sink.report_failure(kind, &text);
        self.last_failure = text;
        sleep(pause).await;
    }
}

fn watch_timeout() -> Duration {
    WATCH_TIMEOUT + WATCH_TIMEOUT.mul_f64(fastrand::f64())
}

#[cfg(test)]
mod tests;
