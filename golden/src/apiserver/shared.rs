//! What the tests and the server's own thread share.
//!
//! In: switches and changes by the test, requests by clients. Out: the same, to the other side, under one lock.
//! Must not know: HTTP.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::http::Pace;
use super::request::Request;
use super::store::Store;

#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    news: Condvar,
    pub(super) pace: watch::Sender<Pace>,
    pub(super) bookmark_every: watch::Sender<Duration>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) store: Store,
    pub(super) requests: Vec<Request>,
    pub(super) failures: Vec<Failure>,
    pub(super) refuse_streaming: bool,
    pub(super) token: Option<String>,
}

/// The next `left` requests (for `kind`, if given) are answered with `code`.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) kind: Option<String>,
    pub(super) left: usize,
    pub(super) code: u16,
}

impl Shared {
    pub(super) fn new() -> Self {
        let state = State {
            store: Store::new(),
            requests: Vec::new(),
            failures: Vec::new(),
            refuse_streaming: false,
            token: None,
        };
        Self {
            state: Mutex::new(state),
            news: Condvar::new(),
            pace: watch::Sender::new(Pace::Normal),
            bookmark_every: watch::Sender::new(Duration::from_secs(60)),
        }
    }

    /// The state; a test that panicked while holding it has not left it half-changed.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
    /// The failure a request for `kind` is due, if any; it counts as given.
    pub(super) fn take_failure(&mut self, kind: Option<&str>) -> Option<u16> {
        let applies = |failure: &&mut Failure| failure.kind.is_none() || failure.kind.as_deref() == kind;
        let failure = self.failures.iter_mut().find(applies)?;
        failure.left = failure.left.saturating_sub(1);
        let code = failure.code;
        self.failures.retain(|failure| failure.left > 0);
        Some(code)
    }
}
