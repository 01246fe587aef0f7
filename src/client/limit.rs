//! The client-side rate limit: a token bucket, as client-go's `flowcontrol`.
//!
//! Tokens are reserved in advance, so a request knows at once how long it has to wait.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A rate limit, shared by all clones.
#[derive(Clone, Debug)]
pub struct RateLimit(Arc<Mutex<TokenBucket>>);

impl RateLimit {
    /// `qps` requests per second and a burst of `burst`, at least one.
    pub fn new(qps: f32, burst: u32) -> Self {
        Self(Arc::new(Mutex::new(TokenBucket::new(qps, burst))))
    }

    /// Waits until a request may be sent. Returns how long that took.
    pub async fn wait(&self) -> Duration {
        let wait = self.0.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        wait
    }
}

#[derive(Debug)]
struct TokenBucket {
    /// The time in which one token is added.
    token_interval: Duration,
    burst: u32,
    /// When the bucket is full again, if no further token is taken.
    full: Instant,
}

/// The longest time for one token: `Duration` and `Instant` have limits.
const MAX_TOKEN_INTERVAL: Duration = Duration::from_secs(3600);

impl TokenBucket {
    fn new(qps: f32, burst: u32) -> Self {
        let token_interval =
            Duration::try_from_secs_f32(1.0 / qps).unwrap_or(MAX_TOKEN_INTERVAL).min(MAX_TOKEN_INTERVAL);
        Self { token_interval, burst: burst.max(1), full: Instant::now() }
    }

    /// Takes a token. Returns the time until it is available.
    fn take(&mut self, now: Instant) -> Duration {
        self.full = self.full.max(now) + self.token_interval;
        self.full.saturating_duration_since(now + self.token_interval * self.burst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_goes_at_once_and_the_rest_at_the_rate() {
        let mut bucket = TokenBucket::new(5.0, 10);
        let now = Instant::now() + Duration::from_secs(60);
        let waits: Vec<u128> = (0..13).map(|_| bucket.take(now).as_millis()).collect();
        assert_eq!(waits, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 200, 400, 600]);
        // Half a second later two tokens were added, which were reserved already.
        let waits: Vec<u128> = (0..2).map(|_| bucket.take(now + Duration::from_millis(500)).as_millis()).collect();
        assert_eq!(waits, [300, 500]);
        // After a long time the bucket is full, and not more.
        let later = now + Duration::from_secs(600);
        let free = (0..20).filter(|_| bucket.take(later).is_zero()).count();
        assert_eq!(free, 10);
    }

    #[test]
    fn there_is_always_one_token() {
        let mut bucket = TokenBucket::new(1e-30, 0);
        let now = Instant::now() + MAX_TOKEN_INTERVAL;
        assert_eq!([bucket.take(now), bucket.take(now)], [Duration::ZERO, MAX_TOKEN_INTERVAL]);
    }
}
