//! Waiting for something to become true.
//!
//! In: a condition and a deadline. Out: whether it came true, or a failed test.
//! The only place where tests sleep, and only between two looks.

use std::time::{Duration, Instant};

/// Looks until `condition` holds.
///
/// # Panics
/// When it does not hold before the deadline.
#[track_caller]
pub fn eventually(what: &str, deadline: Duration, condition: impl FnMut() -> bool) {
    assert!(comes_true(deadline, condition), "not within {deadline:?}: {what}");
}

/// Looks until `condition` holds or the deadline has passed; whether it held.
pub fn comes_true(deadline: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        // Taken before the look: one that begins in time counts, however busy the machine is.
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
