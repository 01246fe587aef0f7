//! Creates and registers metrics with kube-proxy's names, help texts and buckets.

use prometheus::core::Collector;
use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, Result,
};

/// The label of most metrics.
pub const FAMILY: &[&str] = &["ip_family"];

/// Registers metrics.
pub struct Registrar {
    registry: Registry,
}

impl Registrar {
    pub fn new(registry: &Registry) -> Self {
        Self { registry: registry.clone() }
    }

    /// Registers a metric.
    pub fn add<M: Collector + Clone + 'static>(&self, metric: M) -> Result<M> {
        self.registry.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    /// Registers a metric if the mode has it; otherwise it is updated but not exposed.
    pub fn add_if<M: Collector + Clone + 'static>(&self, exposed: bool, metric: M) -> Result<M> {
        if exposed { self.add(metric) } else { Ok(metric) }
    }

    pub fn counter(&self, suffix: &str, help: &str) -> Result<IntCounter> {
        self.add(IntCounter::with_opts(opts(suffix, help))?)
    }

    pub fn gauge(&self, suffix: &str, help: &str) -> Result<IntGauge> {
        self.add(IntGauge::with_opts(opts(suffix, help))?)
    }
}

/// The name and help of a metric of kube-proxy's own.
pub fn opts(suffix: &str, help: &str) -> Opts {
    Opts::new(format!("kubeproxy_{suffix}"), format!("[ALPHA] {help}"))
}

pub fn counters(suffix: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec> {
    IntCounterVec::new(opts(suffix, help), labels)
}

pub fn gauges(suffix: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec> {
    IntGaugeVec::new(opts(suffix, help), labels)
}

/// A histogram with 15 buckets, from 1 ms, each twice the one before.
pub fn durations(suffix: &str, help: &str) -> Result<HistogramVec> {
    let buckets = (0..15).map(|k| 0.001 * f64::from(1 << k)).collect();
    HistogramVec::new(HistogramOpts::from(opts(suffix, help)).buckets(buckets), FAMILY)
}

/// A histogram with buckets from 0.25 s to 5 min.
pub fn latencies(suffix: &str, help: &str) -> Result<HistogramVec> {
    let seconds = (1..60).chain((60..120).step_by(5)).chain((120..=300).step_by(30));
    let buckets = [0.25, 0.5].into_iter().chain(seconds.map(f64::from)).collect();
    HistogramVec::new(HistogramOpts::from(opts(suffix, help)).buckets(buckets), FAMILY)
}

/// A metric family of values that are known at the time of the scrape.
pub fn family(name: &str, help: &str, kind: MetricType, values: &[(&[(&str, &str)], f64)]) -> MetricFamily {
    let metrics = values.iter().map(|(labels, value)| {
        let labels = labels.iter().map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value((*value).to_owned());
            pair
        });
        let mut metric = Metric::from_label(labels.collect());
        if kind == MetricType::COUNTER {
            let mut counter = Counter::default();
            counter.set_value(*value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(*value);
            metric.set_gauge(gauge);
        }
        metric
    });
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics.collect());
    family
}
