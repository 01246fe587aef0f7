//! How often the API server is asked: a bucket of tokens, filled so many times a second.
//!
//! In: requests on their way. Out: the same, each when it is its turn, with the time it waited. Must not know: what is asked for.
//! Tokens are taken in advance: who comes while the bucket is empty knows at once how long to wait.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::Request;
use tokio::time::{Instant, Sleep};
use tower::{Layer, Service};

use crate::metrics::Waited;

/// A bucket of tokens, one for each client that is made with it.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    /// How long a token takes.
    each: Duration,
    burst: u32,
    /// When it is, or was, full but for the tokens given out.
    full: Instant,
}

impl TokenBucket {
    /// `qps` tokens a second, and at most `burst` saved up; one at least, or nothing would ever go.
    pub fn new(qps: f32, burst: u32) -> Self {
        let each = Duration::try_from_secs_f32(1.0 / qps).unwrap_or(LONGEST).min(LONGEST);
        Self { each, burst: burst.max(1), full: Instant::now() }
    }

    /// Takes a token; how long it takes to be there.
    fn take(&mut self, now: Instant) -> Duration {
        self.full = self.full.max(now) + self.each;
        self.full.saturating_duration_since(now + self.each * self.burst)
    }
}

/// `Duration` and `Instant` end somewhere; nobody waits so long for a request.
const LONGEST: Duration = Duration::from_secs(3600);

impl<S> Layer<S> for TokenBucket {
    type Service = Limited<S>;

    fn layer(&self, inner: S) -> Limited<S> {
        Limited { bucket: self.clone(), turn: None, inner }
    }
}

/// A client that waits for its turn.
#[derive(Debug)]
pub struct Limited<S> {
    bucket: TokenBucket,
    /// How long the next request has to wait, and that time running, once somebody has one.
    turn: Option<(Duration, Pin<Box<Sleep>>)>,
    inner: S,
}

impl<S: Service<Request<B>>, B> Service<Request<B>> for Limited<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        let bucket = &mut self.bucket;
        let (_, turn) = self.turn.get_or_insert_with(|| {
            let wait = bucket.take(Instant::now());
            (wait, Box::pin(tokio::time::sleep(wait)))
        });
        ready!(turn.as_mut().poll(context));
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> S::Future {
        if let Some((waited, _)) = self.turn.take() {
            request.extensions_mut().insert(Waited(waited));
        }
        self.inner.call(request)
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
        // Half a second later two tokens have come back, which were given away already.
        let waits: Vec<u128> = (0..2).map(|_| bucket.take(now + Duration::from_millis(500)).as_millis()).collect();
        assert_eq!(waits, [300, 500]);
        // And after a long time there are as many as can be saved, not more.
        let later = now + Duration::from_secs(600);
        let free = (0..20).filter(|_| bucket.take(later).is_zero()).count();
        assert_eq!(free, 10);
    }

    #[test]
    fn there_is_always_one_token() {
        let mut bucket = TokenBucket::new(1e-30, 0);
        let now = Instant::now() + LONGEST;
        assert_eq!([bucket.take(now), bucket.take(now)], [Duration::ZERO, LONGEST]);
    }
}
