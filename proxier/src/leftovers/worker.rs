//! The thread that removes leftovers, so that no sync waits for it.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use netfilter::IpFamily;
use netfilter::kernel::cpu_time;
use tracing::{info, warn};

use crate::backend::{SyncError, budget_pause};

/// Maximum number of problems logged per attempt.
const MAX_LOGGED: usize = 10;

/// The longest backoff between attempts.
const MAX_BACKOFF: Duration = Duration::from_secs(600);

/// Removes leftovers; the errors say what stays.
pub type CleanupFn = Box<dyn FnMut() -> Result<(), Vec<SyncError>> + Send>;

/// A family's thread that removes leftovers until none are left.
///
/// It ends then, or between two attempts once this is dropped.
#[derive(Debug)]
pub struct CleanupWorker(SyncSender<()>);

impl CleanupWorker {
    /// Starts the thread, which waits to be woken.
    ///
    /// # Errors
    /// If the thread cannot be created.
    pub fn start(family: IpFamily, removal: CleanupFn) -> io::Result<Self> {
        // A pending wake covers later ones.
        let (sender, wakes) = sync_channel(1);
        std::thread::Builder::new().name(format!("leftovers-{family}")).spawn(move || run(family, removal, &wakes))?;
        Ok(Self(sender))
    }

    /// Requests an attempt without waiting. Returns false once nothing is left to remove.
    #[must_use]
    pub fn wake(&self) -> bool {
        !matches!(self.0.try_send(()), Err(TrySendError::Disconnected(())))
    }
}

fn run(family: IpFamily, mut removal: CleanupFn, wakes: &Receiver<()>) {
    let (mut not_before, mut logged) = (Instant::now(), Vec::new());
    while wakes.recv().is_ok() {
        if Instant::now() < not_before {
            continue;
        }
        let before = cpu_time();
        let Err(errors) = removal() else {
            if !logged.is_empty() {
                info!("{family}: removed the last leftovers of inactive modes");
            }
            return;
        };
        let effort = cpu_time().saturating_sub(before);
        not_before = Instant::now() + budget_pause(effort).min(MAX_BACKOFF);
        let mut errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
        errors.sort_unstable();
        if errors != logged {
            report(family, &errors);
            logged = errors;
        }
    }
}

fn report(family: IpFamily, errors: &[String]) {
    for error in errors.iter().take(MAX_LOGGED) {
        warn!("{family}: cannot remove leftovers of inactive modes, retrying: {error}");
    }
    if let Some(more) = errors.len().checked_sub(MAX_LOGGED).filter(|more| *more > 0) {
        warn!("{family}: cannot remove leftovers of inactive modes, retrying: {more} more errors");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn a_wake_never_blocks_and_attempts_repeat_until_one_succeeds() {
        let (attempt, attempts) = channel();
        let (finish, may_finish) = channel::<bool>();
        let removal = Box::new(move || {
            attempt.send(()).expect("it is received");
            if may_finish.recv().expect("an answer") { Ok(()) } else { Err(vec![SyncError("in use".into())]) }
        });
        let worker = CleanupWorker::start(IpFamily::V4, removal).expect("a thread");
        assert!(worker.wake());
        attempts.recv().expect("an attempt");
        // The attempt is running; wakes must not wait for it.
        assert!(worker.wake() && worker.wake());
        finish.send(false).expect("it waits for it");
        // The pause is a hundred times the CPU time of the attempt.
        let second = std::iter::repeat_with(|| worker.wake()).take_while(|left| *left);
        let second = second.take(100_000).find(|_| attempts.recv_timeout(Duration::from_millis(1)).is_ok());
        assert_eq!(second, Some(true));
        finish.send(true).expect("it waits for it");
        while worker.wake() {
            std::thread::yield_now();
        }
    }
}
