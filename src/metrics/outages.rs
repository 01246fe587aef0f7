//! How long objects could not be read from the API server.

use std::collections::BTreeMap;
use std::time::Duration;

use prometheus::Result;
use prometheus::proto::MetricType;

use super::scraped::ScrapedMetric;

const FAILING: (&str, &str) = (
    "kubeproxy_watch_failing_seconds",
    "[ALPHA] How long objects of a kind could not be read from the API server, up to now, 0 if they can",
);

/// How long each kind could not be read, by its name.
pub type ReadOutages = Box<dyn Fn() -> BTreeMap<&'static str, Duration> + Send + Sync>;

pub fn watch_failing(read: ReadOutages) -> Result<ScrapedMetric<1>> {
    let samples = move || read().into_iter().map(|(kind, lasted)| ([kind], lasted.as_secs_f64())).collect();
    ScrapedMetric::new(FAILING, MetricType::GAUGE, ["kind"], samples)
}
