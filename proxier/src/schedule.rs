//! The sync schedule: interval arithmetic without timers.
//!
//! Follows kube-proxy's bounded-frequency runner, but retries every failed run, including the first, with exponential
//! backoff.

use std::time::{Duration, Instant};

/// Decides when the next sync is due. A run serves all requests made before it starts.
#[derive(Debug)]
pub struct SyncSchedule {
    min: Duration,
    retry: Duration,
    max: Duration,
    last_end: Option<Instant>,
    /// The end of the last run that was not for the host alone.
    last_for_objects: Option<Instant>,
    wanted: Option<Instant>,
    wanted_for_host: Option<Instant>,
    /// Consecutive failures.
    failures: u32,
}

/// Backoff after the first failure. Upstream waits for the whole retry interval, with stale rules.
const FIRST_RETRY: Duration = Duration::from_secs(1);

impl SyncSchedule {
    /// Creates a schedule.
    ///
    /// Between the end of a run and the start of the next there are at least `min` and at most `max`; a longer `min`
    /// wins. The backoff after failures doubles from one second up to `retry`.
    #[must_use]
    pub fn new(min: Duration, retry: Duration, max: Duration) -> Self {
        Self {
            min,
            retry,
            max: max.max(min),
            last_end: None,
            last_for_objects: None,
            wanted: None,
            wanted_for_host: None,
            failures: 0,
        }
    }

    /// Requests a run as soon as the intervals allow.
    pub fn request(&mut self, now: Instant) {
        self.request_at(now);
    }

    /// Requests a run for what changed on the host, addresses or rules, as soon as the intervals allow.
    ///
    /// Upstream has no such runs, so they do not delay the next one for changed objects.
    pub fn request_for_host(&mut self, now: Instant) {
        self.wanted_for_host = Some(self.wanted_for_host.map_or(now, |wanted| wanted.min(now)));
    }

    fn request_at(&mut self, at: Instant) {
        self.wanted = Some(self.wanted.map_or(at, |wanted| wanted.min(at)));
    }

    /// Records a failed run; the next one is due after the current [`SyncSchedule::failure_backoff`].
    pub fn failed(&mut self, now: Instant) {
        let backoff = self.failure_backoff();
        self.failures = self.failures.saturating_add(1);
        self.last_end = Some(now);
        self.last_for_objects = Some(now);
        self.wanted = Some(now + backoff);
        self.wanted_for_host = None;
    }

    /// The backoff after a run that fails now.
    #[must_use]
    pub fn failure_backoff(&self) -> Duration {
        FIRST_RETRY.saturating_mul(1 << self.failures.min(20)).min(self.retry).min(self.max)
    }

    /// Records a successful run. `retry` requests another one after the retry interval.
    pub fn ended(&mut self, now: Instant, retry: bool) {
        self.failures = 0;
        self.last_end = Some(now);
        if self.wanted.is_some_and(|wanted| wanted <= now) || self.wanted_for_host.is_none() {
            self.last_for_objects = Some(now);
        }
        self.wanted = None;
        self.wanted_for_host = None;
        if retry {
            self.request_at(now + self.retry.min(self.max));
        }
    }

    /// When the next run is due; `None` before the first request.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        let first = |a: Option<Instant>, b| a.into_iter().chain(b).min();
        let Some(last_end) = self.last_end else { return first(self.wanted, self.wanted_for_host) };
        let not_before = |wanted: Instant, end: Option<Instant>| end.map_or(wanted, |end| wanted.max(end + self.min));
        let objects = self.wanted.map(|wanted| not_before(wanted, self.last_for_objects));
        let host = self.wanted_for_host.map(|wanted| not_before(wanted, self.last_end));
        first(first(objects, host), Some(last_end + self.max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn schedule() -> (SyncSchedule, Instant) {
        (SyncSchedule::new(S, 30 * S, 3600 * S), Instant::now())
    }

    #[test]
    fn the_first_run_waits_for_a_request_only() {
        let (mut schedule, t) = schedule();
        assert_eq!(schedule.due(), None);
        schedule.request(t);
        assert_eq!(schedule.due(), Some(t));
    }

    #[test]
    fn runs_keep_the_minimum_apart_and_requests_coalesce() {
        let (mut schedule, t) = schedule();
        schedule.ended(t, false);
        schedule.request(t + S / 10);
        schedule.request(t + S / 2);
        assert_eq!(schedule.due(), Some(t + S));
        schedule.ended(t + S, false);
        schedule.request(t + 5 * S);
        assert_eq!(schedule.due(), Some(t + 5 * S));
    }

    #[test]
    fn a_run_for_the_host_does_not_delay_changed_objects() {
        let (mut schedule, t) = schedule();
        schedule.ended(t, false);
        schedule.request_for_host(t + 2 * S);
        assert_eq!(schedule.due(), Some(t + 2 * S));
        schedule.ended(t + 2 * S, false);
        schedule.request(t + 2 * S + S / 10);
        assert_eq!(schedule.due(), Some(t + 2 * S + S / 10), "no other run for objects ended within a second");
        schedule.ended(t + 2 * S + S / 10, false);
        schedule.request(t + 2 * S + S / 2);
        assert_eq!(schedule.due(), Some(t + 3 * S + S / 10));
    }

    #[test]
    fn runs_for_the_host_keep_the_minimum_apart_from_all_others() {
        let (mut schedule, t) = schedule();
        schedule.ended(t, false);
        schedule.request_for_host(t + S / 10);
        assert_eq!(schedule.due(), Some(t + S));
        schedule.ended(t + S, false);
        schedule.request_for_host(t + S + S / 10);
        assert_eq!(schedule.due(), Some(t + 2 * S));
    }

    #[test]
    fn consecutive_failures_are_retried_with_exponential_backoff_up_to_the_retry_interval() {
        let (mut schedule, mut t) = schedule();
        for pause in [1, 2, 4, 8, 16, 30, 30] {
            assert_eq!(schedule.failure_backoff(), pause * S);
            schedule.failed(t);
            assert_eq!(schedule.due(), Some(t + pause * S));
            t += pause * S;
        }
        schedule.ended(t, false);
        assert_eq!(schedule.failure_backoff(), S, "a success forgets the failures");
    }

    #[test]
    fn a_failure_is_retried_unless_a_request_comes_first() {
        let (mut schedule, t) = schedule();
        schedule.ended(t, true);
        assert_eq!(schedule.due(), Some(t + 30 * S));
        schedule.request(t + 3 * S);
        assert_eq!(schedule.due(), Some(t + 3 * S));
        schedule.ended(t + 3 * S, false);
        assert_eq!(schedule.due(), Some(t + 3603 * S), "a success forgets the retry");
    }

    #[test]
    fn a_minimum_above_the_maximum_wins() {
        let t = Instant::now();
        let mut schedule = SyncSchedule::new(7200 * S, 30 * S, 3600 * S);
        schedule.ended(t, true);
        assert_eq!(schedule.due(), Some(t + 7200 * S));
    }
}
