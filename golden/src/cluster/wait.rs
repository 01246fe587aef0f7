//! Waiting for something to become true.
//!
//! In: a condition and a deadline. Out: how long it took, or a failed test.
//! The only place where tests sleep, and only between two looks.

use std::time::{Duration, Instant};

/// Looks until `condition` holds and returns how long that took.
///
/// # Panics
/// When it does not hold before the deadline.
#[track_caller]
pub fn eventually(what: &str, deadline: Duration, mut condition: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    loop {
        // Taken before the look: one that begins in time counts, however busy the machine is.
        let elapsed = start.elapsed();
        if condition() {
            return elapsed;
        }
        assert!(elapsed < deadline, "not within {deadline:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
