//! Priority of syncs over the leftover cleanup, where both write the same tables.
//!
//! Both xtables flavours serialise writers: the legacy one by `/run/xtables.lock`, the nf_tables one by a generation ID
//! that makes the tool start over. A sync that meets a cleanup there would wait, or start over again and again. So each
//! step of the cleanup runs only while no sync writes, is short, and ends early for a sync where it can.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a cleanup step waits for a gap between syncs before the next sync has to wait for it.
const STARVED_AFTER: Duration = Duration::from_secs(5);

/// How often a step is ended early for a sync before it may run on for the time of grace.
const MAX_PREEMPTIONS: u32 = 20;

/// How long such a step may run while a sync waits: a tool that hangs does not keep syncs for longer.
const GRACE: Duration = Duration::from_secs(10);

/// Shared by the syncs and the leftover cleanup of a process; clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct WriterPriority(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<Counts>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Counts {
    /// Syncs that write.
    writing: usize,
    /// Syncs that wait for a step to end.
    waiting: usize,
    stepping: bool,
    /// A step has waited for too long: it goes before the next sync.
    starved: bool,
}

/// A sync's turn, until it is dropped.
#[derive(Debug)]
pub struct WriterGuard<'a>(&'a Shared);

/// Tells a cleanup step whether to end early.
#[derive(Clone, Debug)]
pub struct Preemption {
    priority: WriterPriority,
    begun: Instant,
    grace: Duration,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, Counts> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, Counts>, timeout: Duration) -> MutexGuard<'a, Counts> {
        self.changed.wait_timeout(state, timeout).unwrap_or_else(PoisonError::into_inner).0
    }
}

impl WriterPriority {
    /// Begins a sync's turn. Waits at most for one step of the cleanup.
    #[must_use]
    pub fn write(&self) -> WriterGuard<'_> {
        let mut state = self.0.state();
        state.waiting += 1;
        while state.stepping || state.starved {
            state = self.0.wait(state, STARVED_AFTER);
        }
        state.waiting -= 1;
        state.writing += 1;
        WriterGuard(&self.0)
    }

    /// Runs one step of the cleanup while no sync writes. A step that returns `None` was ended early and runs again.
    pub fn run_background<T>(&self, mut step: impl FnMut(&Preemption) -> Option<T>) -> T {
        for attempt in 0_u32.. {
            self.begin_step();
            let ended = EndStep(&self.0);
            let grace = if attempt % (MAX_PREEMPTIONS + 1) < MAX_PREEMPTIONS { Duration::ZERO } else { GRACE };
            let preemption = Preemption { priority: self.clone(), begun: Instant::now(), grace };
            let done = step(&preemption);
            drop(ended);
            if let Some(done) = done {
                return done;
            }
        }
        unreachable!("the attempts are endless")
    }

    fn begin_step(&self) {
        let begun = Instant::now();
        let mut state = self.0.state();
        while state.stepping || state.writing > 0 || (state.waiting > 0 && !state.starved) {
            state = self.0.wait(state, STARVED_AFTER);
            state.starved |= begun.elapsed() >= STARVED_AFTER;
        }
        state.starved = false;
        state.stepping = true;
    }
}

impl Preemption {
    /// Whether a sync waits for the step, and has to wait no longer.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.begun.elapsed() >= self.grace && self.priority.0.state().waiting > 0
    }
}

/// Ends a step when it is dropped, after a panic too.
struct EndStep<'a>(&'a Shared);

impl Drop for EndStep<'_> {
    fn drop(&mut self) {
        self.0.state().stepping = false;
        self.0.changed.notify_all();
    }
}

impl Drop for WriterGuard<'_> {
    fn drop(&mut self) {
        self.0.state().writing -= 1;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn a_step_waits_until_no_sync_writes() {
        let priority = WriterPriority::default();
        let (sender, steps) = channel();
        let turn = priority.write();
        std::thread::scope(|scope| {
            scope.spawn(|| priority.run_background(|_| sender.send(()).ok()));
            assert!(steps.recv_timeout(Duration::from_millis(50)).is_err(), "a sync writes");
            drop(turn);
            steps.recv_timeout(Duration::from_secs(5)).expect("the step runs");
        });
    }

    #[test]
    fn a_waiting_sync_ends_a_step_early_and_goes_first() {
        let priority = WriterPriority::default();
        let order = Mutex::new(Vec::new());
        let note = |event| order.lock().expect("no panic").push(event);
        let (started, is_started) = channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                priority.run_background(|preemption| {
                    note("step");
                    started.send(()).expect("it is received");
                    if order.lock().expect("no panic").len() > 1 {
                        return Some(());
                    }
                    while !preemption.is_wanted() {
                        std::thread::yield_now();
                    }
                    None
                });
            });
            is_started.recv().expect("the step begins");
            let turn = priority.write();
            note("sync");
            drop(turn);
        });
        assert_eq!(*order.lock().expect("no panic"), ["step", "sync", "step"]);
    }

    #[test]
    fn a_step_that_was_preempted_too_often_runs_to_its_end() {
        let priority = WriterPriority::default();
        let mut attempts = 0;
        priority.run_background(|preemption| {
            attempts += 1;
            (preemption.grace == GRACE).then_some(())
        });
        assert_eq!(attempts, MAX_PREEMPTIONS + 1);
    }
}
