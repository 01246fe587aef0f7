//! What the tests and the server's own thread share, under one lock.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::delivery::Pace;
use super::encoding::MediaTypes;
use super::fault::{Fault, Injection};
use super::options::Serves;
use super::request::Request;
use super::resource::Target;
use super::store::Store;

#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    news: Condvar,
    pub(super) pace: watch::Sender<Pace>,
    pub(super) bookmark_every: watch::Sender<Duration>,
    started: Instant,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) store: Store,
    pub(super) requests: Vec<Request>,
    /// What is to go wrong; of several that apply, the first.
    pub(super) faults: Vec<Injection>,
    pub(super) serves: Serves,
    pub(super) media_types: MediaTypes,
    /// Compresses streamed lists.
    pub(super) compress_streamed_lists: bool,
    pub(super) token: Option<String>,
}

impl Shared {
    pub(super) fn new() -> Self {
        let state = State {
            store: Store::new(),
            requests: Vec::new(),
            faults: Vec::new(),
            serves: Serves { streamed_lists: true, watch_cache: true },
            media_types: MediaTypes::default(),
            compress_streamed_lists: false,
            token: None,
        };
        Self {
            state: Mutex::new(state),
            news: Condvar::new(),
            pace: watch::Sender::new(Pace::Normal),
            bookmark_every: watch::Sender::new(Duration::from_secs(60)),
            started: Instant::now(),
        }
    }

    /// The state; a test that panicked while holding it has not left it half-changed.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a request.
    pub(super) fn record(&self, request: &Request) {
        let request = Request { received: self.started.elapsed(), ..request.clone() };
        self.state().requests.push(request);
        self.announce();
    }

    /// Wakes the tests that wait for something to happen.
    pub(super) fn announce(&self) {
        self.news.notify_all();
    }

    /// Blocks until `done` is true of the state; false when `patience` runs out first.
    pub(super) fn wait(&self, patience: Duration, mut done: impl FnMut(&State) -> bool) -> bool {
        let deadline = Instant::now() + patience;
        let mut state = self.state();
        while !done(&state) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.news.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl State {
    /// The fault that a request meets, if any; it counts as given.
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
