//! Metrics of changes and syncs.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use netfilter::IpFamily;
use prometheus::{GaugeVec, HistogramVec, IntCounter, IntGauge, Result};
use proxier::proxier::SyncReport;
use proxier::track::Kind;

use super::make::{FAMILY, Registrar, durations, latencies, opts};
use super::{int, now};

/// How often objects changed, and what syncs took.
pub struct SyncMetrics {
    duration: HistogramVec,
    full_duration: HistogramVec,
    partial_duration: HistogramVec,
    programming: HistogramVec,
    last_sync: GaugeVec,
    last_queued: GaugeVec,
    endpoint_changes: IntCounter,
    service_changes: IntCounter,
    endpoint_pending: PendingChanges,
    service_pending: PendingChanges,
}

/// Changes that wait for a sync, as the sum of both families (behaviour.yaml I19).
struct PendingChanges {
    sum: IntGauge,
    families: Mutex<BTreeMap<IpFamily, i64>>,
}

impl PendingChanges {
    fn new(sum: IntGauge) -> Self {
        Self { sum, families: Mutex::default() }
    }

    fn set(&self, family: IpFamily, count: usize) {
        let mut families = self.families.lock().unwrap_or_else(PoisonError::into_inner);
        families.insert(family, int(count));
        self.sum.set(families.values().sum());
    }
}

impl SyncMetrics {
    /// Registers the metrics of a proxy mode.
    ///
    /// # Errors
    /// A duplicate metric name.
    pub fn new(mode: &str, m: &Registrar) -> Result<Self> {
        let has_partial_syncs = mode == "iptables" || mode == "nftables";
        let time = |suffix, help| GaugeVec::new(opts(suffix, help), FAMILY).and_then(|metric| m.add(metric));
        let of_kind = |suffix, help| m.add_if(has_partial_syncs, durations(suffix, help)?);
        Ok(Self {
            duration: m.add(durations("sync_proxy_rules_duration_seconds", "SyncProxyRules latency in seconds")?)?,
            full_duration: of_kind(
                "sync_full_proxy_rules_duration_seconds",
                "SyncProxyRules latency in seconds for full resyncs",
            )?,
            partial_duration: of_kind(
                "sync_partial_proxy_rules_duration_seconds",
                "SyncProxyRules latency in seconds for partial resyncs",
            )?,
            programming: m.add(latencies(
                "network_programming_duration_seconds",
                "In Cluster Network Programming Latency in seconds",
            )?)?,
            last_sync: time("sync_proxy_rules_last_timestamp_seconds", "The last time proxy rules were synced")?,
            last_queued: time(
                "sync_proxy_rules_last_queued_timestamp_seconds",
                "The last time a sync of proxy rules was queued",
            )?,
            endpoint_changes: m.counter("sync_proxy_rules_endpoint_changes_total", "EndpointSlice events")?,
            service_changes: m.counter("sync_proxy_rules_service_changes_total", "Service events, once per family")?,
            endpoint_pending: PendingChanges::new(m.gauge(
                "sync_proxy_rules_endpoint_changes_pending",
                "EndpointSlice changes that wait for a sync, of both families",
            )?),
            service_pending: PendingChanges::new(m.gauge(
                "sync_proxy_rules_service_changes_pending",
                "Services that changed and wait for a sync, of both families",
            )?),
        })
    }

    /// Counts an event. `pending`: the changes of that kind that wait in that family.
    pub fn changed(&self, family: IpFamily, kind: Kind, pending: usize) {
        let (changes, of_kind) = match kind {
            Kind::Service => (&self.service_changes, &self.service_pending),
            Kind::EndpointSlice => (&self.endpoint_changes, &self.endpoint_pending),
            Kind::Node | Kind::ServiceCidr => return,
        };
        changes.inc();
        of_kind.set(family, pending);
    }

    /// Records that a sync was queued.
    pub fn queued(&self, family: IpFamily) {
        self.last_queued.with_label_values(&[family.name()]).set(now());
    }

    /// Records a finished sync: nothing waits for it any more.
    pub fn synced(&self, family: IpFamily, report: &SyncReport<'_>) {
        let label = &[family.name()];
        let seconds = report.duration.as_secs_f64();
        let of_kind = if report.full { &self.full_duration } else { &self.partial_duration };
        self.duration.with_label_values(label).observe(seconds);
        of_kind.with_label_values(label).observe(seconds);
        self.endpoint_pending.set(family, 0);
        self.service_pending.set(family, 0);
        if report.result.is_ok() {
            self.last_sync.with_label_values(label).set(now());
        }
        for latency in &report.latencies {
            self.programming.with_label_values(label).observe(latency.as_secs_f64());
        }
    }
}
