//! `/metrics/slis`: results of the metrics server's health checks.
//!
//! The only check is `ping`, which always succeeds.

use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry, Result};

use super::{encode, process};

/// The metrics of health checks.
pub struct SliMetrics {
    registry: Registry,
    result: IntGaugeVec,
    results: IntCounterVec,
}

impl SliMetrics {
    pub fn new() -> Result<Self> {
        let registry = Registry::new();
        let result =
            Opts::new("kubernetes_healthcheck", "[STABLE] This metric records the result of a single healthcheck.");
        let results =
            Opts::new("kubernetes_healthchecks_total", "[STABLE] This metric records the results of all healthcheck.");
        let result = IntGaugeVec::new(result, &["name", "type"])?;
        let results = IntCounterVec::new(results, &["name", "status", "type"])?;
        registry.register(Box::new(result.clone()))?;
        registry.register(Box::new(results.clone()))?;
        Ok(Self { registry, result, results })
    }

    /// Counts a successful `ping`.
    pub fn pinged(&self) {
        self.result.with_label_values(&["ping", "healthz"]).set(1);
        self.results.with_label_values(&["ping", "success", "healthz"]).inc();
    }

    /// Resets all metrics.
    pub fn reset(&self) {
        self.result.reset();
        self.results.reset();
    }

    /// All metrics in Prometheus' text format.
    pub fn text(&self) -> String {
        let mut families = self.registry.gather();
        families.push(process::start_time_family());
        encode::text(&families)
    }
}
