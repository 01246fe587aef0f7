//! Priority of foreground writers over background steps that write the same tables.
//!
//! Both xtables flavours serialise writers: the legacy flavour by `/run/xtables.lock`, the nf_tables flavour by a
//! generation ID that makes the tool restart. A foreground writer, such as a sync, that meets a background writer,
//! such as a cleanup, would wait or restart repeatedly. Therefore a background step runs only while no foreground
//! writer is active, is short, and is preempted where possible.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The longest wait of a background step before it precedes foreground writers.
const STARVED_AFTER: Duration = Duration::from_secs(5);

/// The number of preemptions before a step may run for [`GRACE`].
const MAX_PREEMPTIONS: u32 = 20;

/// The time that such a step may run while a foreground writer waits. A hanging tool delays writers no longer.
const GRACE: Duration = Duration::from_secs(10);

/// The priority shared by the writers of a process. Clones share one state.
#[derive(Clone, Debug, Default)]
pub struct WriterPriority(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<WriterCounts>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct WriterCounts {
    /// Active foreground writers.
    writing: usize,
    /// Foreground writers that wait for a step to end.
    waiting: usize,
    stepping: bool,
    /// Whether a step has waited too long and runs before the next foreground writer.
    starved: bool,
}

/// How a writer takes part.
#[derive(Clone, Debug)]
pub enum WriterRole {
    /// Background steps yield to its writes.
    Foreground(WriterPriority),
    /// Its writes are background steps.
    Background(WriterPriority),
}

/// An active foreground write, which ends when this is dropped.
#[derive(Debug)]
pub struct WriterGuard<'a>(&'a Shared);

/// Tells a background step when to end early.
#[derive(Clone, Debug)]
pub struct Preemption {
    priority: WriterPriority,
    begun: Instant,
    grace: Duration,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, WriterCounts> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, WriterCounts>, timeout: Duration) -> MutexGuard<'a, WriterCounts> {
        self.changed.wait_timeout(state, timeout).unwrap_or_else(PoisonError::into_inner).0
    }
}

impl WriterPriority {
    /// Begins a foreground write. Waits for at most one background step.
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

    /// Runs a background step while no foreground writer is active.
    ///
    /// A step that returns `None` was preempted and runs again.
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

impl Default for WriterRole {
    fn default() -> Self {
        Self::Foreground(WriterPriority::default())
    }
}

impl WriterRole {
    /// Runs a write at its turn. A background step that returns `None` was preempted and runs again.
    pub fn write<T>(&self, mut write: impl FnMut(Option<&Preemption>) -> Option<T>) -> T {
        match self {
            Self::Background(priority) => priority.run_background(|preemption| write(Some(preemption))),
            Self::Foreground(priority) => {
                let _turn = priority.write();
                write(None).expect("only background steps are preempted")
            }
        }
    }

    /// The turn of a short command of a foreground writer; a background one does not wait.
    #[must_use]
    pub fn turn(&self) -> Option<WriterGuard<'_>> {
        match self {
            Self::Foreground(priority) => Some(priority.write()),
            Self::Background(_) => None,
        }
    }
}

impl Preemption {
    /// Whether a foreground writer waits for the step, and the grace period is over.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.begun.elapsed() >= self.grace && self.priority.0.state().waiting > 0
    }
}

/// Ends a step when dropped, even after a panic.
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
    fn background_step_waits_for_foreground_writers() {
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
    fn waiting_writer_preempts_a_background_step() {
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
    fn background_step_gets_grace_after_many_preemptions() {
        let priority = WriterPriority::default();
        let mut attempts = 0;
        priority.run_background(|preemption| {
            attempts += 1;
            (preemption.grace == GRACE).then_some(())
        });
        assert_eq!(attempts, MAX_PREEMPTIONS + 1);
    }
}
