//! Waits for conditions, by polling.

use std::time::{Duration, Instant};

/// Polls until `condition` holds.
///
/// # Panics
/// If it does not hold before the deadline.
#[track_caller]
pub fn eventually(what: &str, deadline: Duration, condition: impl FnMut() -> bool) {
    assert!(becomes_true(deadline, condition), "not within {deadline:?}: {what}");
}

/// Polls until `condition` holds or the deadline passes; returns whether it held.
pub fn becomes_true(deadline: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        // Measured before the check: a check that begins in time counts on a busy machine.
        let late = start.elapsed() >= deadline;
        if condition() {
            return true;
        }
        if late {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
