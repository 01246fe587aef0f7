//! Our requests to the API server, counted and timed.
//!
//! In: requests and answers on their way. Out: the same, and metrics. Must not know: what is asked for.
//! A watch is timed until its headers come.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::{Request, Response};
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts, Result};
use tower::{Layer, Service};

use super::make::Maker;

/// As client-go names a request that got no answer.
const NO_ANSWER: &str = "<error>";

/// The metrics of a client.
#[derive(Clone, Debug)]
pub struct Requests {
    total: IntCounterVec,
    duration: HistogramVec,
    waited: HistogramVec,
}

/// An extension of requests: how long one was held back, so that the server is not asked too often.
#[derive(Clone, Copy, Debug)]
pub struct Waited(pub Duration);

impl Requests {
    pub(super) fn new(maker: &Maker) -> Result<Self> {
        let total = Opts::new(
            "rest_client_requests_total",
            "[ALPHA] Number of HTTP requests, partitioned by status code, method, and host.",
        );
        let duration = HistogramOpts::new(
            "rest_client_request_duration_seconds",
            "[ALPHA] Request latency in seconds. Broken down by verb, and host.",
        );
        let waited = HistogramOpts::new(
            "rest_client_rate_limiter_duration_seconds",
            "[ALPHA] Client side rate limiter latency in seconds. Broken down by verb, and host.",
        );
        let buckets = vec![0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0];
        Ok(Self {
            total: maker.add(IntCounterVec::new(total, &["code", "host", "method"])?)?,
            duration: maker.add(HistogramVec::new(duration.buckets(buckets.clone()), &["verb", "host"])?)?,
            waited: maker.add(HistogramVec::new(waited.buckets(buckets), &["verb", "host"])?)?,
        })
    }

    /// For a client of that server: `host:port`.
    pub fn to(&self, host: &str) -> Counting {
        Counting { requests: self.clone(), host: host.to_owned() }
    }

    fn held_back(&self, host: &str, method: &str, seconds: f64) {
        self.waited.with_label_values(&[method, host]).observe(seconds);
    }

    fn answered(&self, host: &str, method: &str, code: &str, seconds: f64) {
        self.total.with_label_values(&[code, host, method]).inc();
        self.duration.with_label_values(&[method, host]).observe(seconds);
    }
}

/// Puts a [`Counted`] around a client.
#[derive(Clone, Debug)]
pub struct Counting {
    requests: Requests,
    host: String,
}

impl<S> Layer<S> for Counting {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted { counting: self.clone(), inner }
    }
}

/// A client whose requests are counted.
#[derive(Clone, Debug)]
pub struct Counted<S> {
    counting: Counting,
    inner: S,
}

impl<S, B, R> Service<Request<B>> for Counted<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = std::result::Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<std::result::Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (counting, method, begun) = (self.counting.clone(), request.method().clone(), Instant::now());
        if let Some(Waited(time)) = request.extensions().get() {
            counting.requests.held_back(&counting.host, method.as_str(), time.as_secs_f64());
        }
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await;
            let code = answer.as_ref().map_or(NO_ANSWER.to_owned(), |answer| answer.status().as_u16().to_string());
            counting.requests.answered(&counting.host, method.as_str(), &code, begun.elapsed().as_secs_f64());
            answer
        })
    }
}
