//! The state shared by the tests and the server's thread, under one lock.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::delivery::Pace;
use super::encoding::MediaTypes;
use super::fault::{Fault, Injection};
use super::options::ServerFeatures;
use super::request::Request;
use super::resource::Target;
use super::store::Store;

#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<ServerState>,
    changed: Condvar,
    pub(super) pace: watch::Sender<Pace>,
    pub(super) bookmark_every: watch::Sender<Duration>,
    started: Instant,
}

#[derive(Debug)]
pub(super) struct ServerState {
    pub(super) store: Store,
    pub(super) requests: Vec<Request>,
    /// Injected faults; the first that matches a request applies.
    pub(super) faults: Vec<Injection>,
    pub(super) features: ServerFeatures,
    pub(super) media_types: MediaTypes,
    /// Whether streamed lists are compressed.
    pub(super) compress_streamed_lists: bool,
    pub(super) token: Option<String>,
}

impl Shared {
    pub(super) fn new() -> Self {
        let state = ServerState {
            store: Store::new(),
            requests: Vec::new(),
            faults: Vec::new(),
            features: ServerFeatures { streamed_lists: true, watch_cache: true },
            media_types: MediaTypes::default(),
            compress_streamed_lists: false,
            token: None,
        };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
            pace: watch::Sender::new(Pace::Normal),
            bookmark_every: watch::Sender::new(Duration::from_secs(60)),
            started: Instant::now(),
        }
    }

    /// The state. A test that panicked with the lock has not left it half-changed.
    pub(super) fn state(&self) -> MutexGuard<'_, ServerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a request.
    pub(super) fn record(&self, request: &Request) {
        let request = Request { received: self.started.elapsed(), ..request.clone() };
        self.state().requests.push(request);
        self.announce();
    }

    /// Wakes the tests that wait for a change.
    pub(super) fn announce(&self) {
        self.changed.notify_all();
    }

    /// Blocks until `done` returns true; returns false at the timeout.
    pub(super) fn wait(&self, timeout: Duration, mut done: impl FnMut(&ServerState) -> bool) -> bool {
        let deadline = Instant::now() + timeout;
        let mut state = self.state();
        while !done(&state) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl ServerState {
    /// The fault that a request triggers, if any, which counts as used.
    pub(super) fn take_fault(&mut self, request: &Request, target: Option<&Target<'_>>) -> Option<Fault> {
        let kind = target.map(|target| target.resource.kind);
        let collection = target.is_some_and(|target| target.name.is_none());
        let injection = self.faults.iter_mut().find(|injection| injection.applies(request, kind, collection))?;
        injection.left = injection.left.saturating_sub(1);
        let fault = injection.fault.clone();
        self.faults.retain(|injection| injection.left > 0);
        Some(fault)
    }
}
