//! The backoff after failures, as client-go's reflector has it.

use std::time::Duration;

use tokio::time::Instant;

/// The first pause after a failure.
const INITIAL: Duration = Duration::from_millis(800);
/// The longest pause, before jitter.
const MAX: Duration = Duration::from_secs(30);
/// How long watches must be healthy before the next failure starts over with [`INITIAL`].
const HEALTHY: Duration = Duration::from_secs(120);

/// An exponential backoff that only sustained health resets.
///
/// A successful list does not reset it: a server that answers each list and then refuses each watch would otherwise be
/// listed once a second by every node.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
    healthy_since: Option<Instant>,
}

impl Backoff {
    /// Records that a watch is open.
    pub fn healthy(&mut self, now: Instant) {
        self.healthy_since.get_or_insert(now);
    }

    /// The pause after a failure: 0.8 s, doubled for each failure up to 30 s, plus up to the same again at random so
    /// that nodes do not retry in step. `jitter` is from 0 to 1.
    pub fn after_failure(&mut self, now: Instant, jitter: f64) -> Duration {
        if self.healthy_since.take().is_some_and(|since| now.duration_since(since) >= HEALTHY) {
            self.failures = 0;
        }
        let base = INITIAL.saturating_mul(1 << self.failures.min(6)).min(MAX);
        self.failures += 1;
        base + base.mul_f64(jitter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pauses(backoff: &mut Backoff, now: Instant, count: usize) -> Vec<u128> {
        (0..count).map(|_| backoff.after_failure(now, 0.0).as_millis()).collect()
    }

    #[test]
    fn pauses_double_up_to_thirty_seconds() {
        let mut backoff = Backoff::default();
        let now = Instant::now();
        assert_eq!(pauses(&mut backoff, now, 8), [800, 1600, 3200, 6400, 12800, 25600, 30000, 30000]);
        assert_eq!(backoff.after_failure(now, 1.0), MAX * 2);
    }

    #[test]
    fn only_two_minutes_of_open_watch_reset_the_backoff() {
        let mut backoff = Backoff::default();
        let now = Instant::now();
        assert_eq!(pauses(&mut backoff, now, 2), [800, 1600]);
        backoff.healthy(now);
        backoff.healthy(now + HEALTHY * 2);
        assert_eq!(backoff.after_failure(now + HEALTHY / 2, 0.0).as_millis(), 3200);
        // Time without an open watch is not health.
        assert_eq!(backoff.after_failure(now + HEALTHY * 5, 0.0).as_millis(), 6400);
        backoff.healthy(now + HEALTHY * 6);
        assert_eq!(backoff.after_failure(now + HEALTHY * 7, 0.0).as_millis(), 800);
    }
}
