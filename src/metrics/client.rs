//! Metrics of requests to the API server, as client-go has them.
//!
//! The duration of a watch is that until its response head.

use std::time::Duration;

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts, Result};

use super::make::Registrar;

/// client-go's code for a request without a response.
const NO_ANSWER: &str = "<error>";

/// The metrics of all clients.
#[derive(Clone, Debug)]
pub struct RequestMetrics {
    total: IntCounterVec,
    duration: HistogramVec,
    waited: HistogramVec,
}

impl RequestMetrics {
    pub(super) fn new(maker: &Registrar) -> Result<Self> {
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

    /// The metrics of a client of that server, `host:port`.
    pub fn to(&self, host: &str) -> ServerRequestMetrics {
        ServerRequestMetrics { requests: self.clone(), host: host.to_owned() }
    }
}

/// The metrics of requests to one server.
#[derive(Clone, Debug)]
pub struct ServerRequestMetrics {
    requests: RequestMetrics,
    host: String,
}

impl ServerRequestMetrics {
    /// Records how long the rate limit delayed a request.
    pub fn waited(&self, method: &str, wait: Duration) {
        self.requests.waited.with_label_values(&[method, &*self.host]).observe(wait.as_secs_f64());
    }

    /// Records a request; `code` is `None` if there was no response.
    pub fn answered(&self, method: &str, code: Option<u16>, latency: Duration) {
        let code = code.map_or(NO_ANSWER.to_owned(), |code| code.to_string());
        self.requests.total.with_label_values(&[&*code, &*self.host, method]).inc();
        self.requests.duration.with_label_values(&[method, &*self.host]).observe(latency.as_secs_f64());
    }
}
