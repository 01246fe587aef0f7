//! Prometheus metrics under kube-proxy's names.
//!
//! Metrics of other modes are not exposed.

mod client;
mod encode;
mod facts;
mod localhost;
mod make;
mod outages;
mod packets;
pub mod process;
mod rules;
mod scraped;
mod services;
mod slis;

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use netfilter::IpFamily;
use prometheus::{CounterVec, GaugeVec, HistogramVec, IntCounter, IntCounterVec, IntGauge, Registry, Result};
use proxier::cleaner::CleanupStats;
use proxier::proxier::SyncReport;
use proxier::track::Kind;

pub use self::client::{RequestMetrics, ServerRequestMetrics};
pub use self::facts::Feature;
pub use self::localhost::{LocalhostMetrics, RejectedPackets};
use self::make::{FAMILY, Registrar, counters, durations, latencies, opts};
pub use self::outages::ReadOutages;
pub use self::packets::ReadCounters;
use self::rules::RuleMetrics;
pub use self::services::{FamilyTraffic, PortTraffic, ReadTraffic, RefusedTraffic};
use self::slis::SliMetrics;

/// All metrics of the process.
pub struct Metrics {
    registry: Registry,
    sync_duration: HistogramVec,
    full_duration: HistogramVec,
    partial_duration: HistogramVec,
    programming: HistogramVec,
    last_sync: GaugeVec,
    last_queued: GaugeVec,
    endpoint_changes: IntCounter,
    service_changes: IntCounter,
    endpoint_pending: PendingChanges,
    service_pending: PendingChanges,
    rules: RuleMetrics,
    clean_duration: HistogramVec,
    flows_deleted: IntCounterVec,
    connections_ended: IntCounterVec,
    healthz: CounterVec,
    livez: CounterVec,
    requests: RequestMetrics,
    /// Services whose `healthCheckNodePort` is not served on every address.
    pub unserved_health_checks: IntGauge,
    /// Localhost node ports in nftables mode.
    pub localhost: LocalhostMetrics,
    /// Metrics of the metrics server's health checks.
    pub slis: SliMetrics,
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

impl Metrics {
    /// All metrics at zero.
    ///
    /// # Errors
    /// A duplicate or invalid metric name.
    pub fn new(mode: &str) -> Result<Self> {
        let registry = Registry::new();
        let m = Registrar::new(&registry);
        let has_partial_syncs = mode == "iptables" || mode == "nftables";
        let time = |suffix, help| GaugeVec::new(opts(suffix, help), FAMILY).and_then(|metric| m.add(metric));
        let code = |suffix, help| CounterVec::new(opts(suffix, help), &["code"]).and_then(|metric| m.add(metric));
        let duration = |wanted, suffix, help| m.add_if(wanted, durations(suffix, help)?);
        facts::build(&registry)?;
        m.add(process::ProcessCollector::new()?)?;
        Ok(Self {
            sync_duration: duration(true, "sync_proxy_rules_duration_seconds", "SyncProxyRules latency in seconds")?,
            full_duration: duration(
                has_partial_syncs,
                "sync_full_proxy_rules_duration_seconds",
                "SyncProxyRules latency in seconds for full resyncs",
            )?,
            partial_duration: duration(
                has_partial_syncs,
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
            rules: RuleMetrics::new(mode, &m)?,
            clean_duration: duration(
                true,
                "conntrack_reconciler_sync_duration_seconds",
                "Duration of conntrack table scans",
            )?,
            flows_deleted: m.add(counters(
                "conntrack_reconciler_deleted_entries_total",
                "Stale UDP flows deleted",
                FAMILY,
            )?)?,
            connections_ended: m.add(counters(
                "ended_connections_total",
                "Connections to endpoints that are gone, ended for Services that ask for it",
                FAMILY,
            )?)?,
            healthz: code("proxy_healthz_total", "Answers of /healthz by status")?,
            livez: code("proxy_livez_total", "Answers of /livez by status")?,
            requests: RequestMetrics::new(&m)?,
            unserved_health_checks: m.gauge(
                "unserved_health_check_services",
                "Services whose healthCheckNodePort is not served at every address: port in use, no descriptor left",
            )?,
            localhost: LocalhostMetrics::new(mode, &m)?,
            slis: SliMetrics::new()?,
            registry,
        })
    }

    /// Sets the metric of feature gates.
    ///
    /// # Errors
    /// It was set before.
    pub fn features(&self, features: &[Feature<'_>]) -> Result<()> {
        facts::features(&self.registry, features)
    }

    /// Reads the kernel's packet counters at each scrape.
    ///
    /// # Errors
    /// They are registered already.
    pub fn packets(&self, read: ReadCounters) -> Result<()> {
        self.registry.register(Box::new(packets::PacketCounters::new(read)?))
    }

    /// Reads the connections of Services at each scrape.
    ///
    /// # Errors
    /// They are registered already.
    pub fn service_traffic(&self, read: ReadTraffic) -> Result<()> {
        self.registry.register(Box::new(services::TrafficCollector::new(read)?))
    }

    /// Reads the rejected packets to localhost node ports at each scrape.
    ///
    /// # Errors
    /// They are registered already.
    pub fn rejected_packets(&self, read: Box<dyn Fn() -> RejectedPackets + Send + Sync>) -> Result<()> {
        self.registry.register(Box::new(localhost::rejected_packets(read)?))
    }

    /// Exposes how long objects could not be read.
    ///
    /// # Errors
    /// It is registered already.
    pub fn outages(&self, read: ReadOutages) -> Result<()> {
        self.registry.register(Box::new(outages::watch_failing(read)?))
    }

    /// The metrics of the API server's client.
    pub fn requests(&self) -> &RequestMetrics {
        &self.requests
    }

    /// Counts an event. `pending`: the changes of that kind that wait in that family.
    pub fn changed(&self, family: IpFamily, kind: Kind, pending: usize) {
        match kind {
            Kind::Service => {
                self.service_changes.inc();
                self.service_pending.set(family, pending);
            }
            Kind::EndpointSlice => {
                self.endpoint_changes.inc();
                self.endpoint_pending.set(family, pending);
            }
            Kind::Node | Kind::ServiceCidr => {}
        }
    }

    /// Records that a sync was queued.
    pub fn queued(&self, family: IpFamily) {
        self.last_queued.with_label_values(&[family.name()]).set(now());
    }

    /// Records a finished sync.
    pub fn synced(&self, family: IpFamily, report: &SyncReport<'_>) {
        let label = &[family.name()];
        let seconds = report.duration.as_secs_f64();
        let of_kind = if report.full { &self.full_duration } else { &self.partial_duration };
        self.sync_duration.with_label_values(label).observe(seconds);
        of_kind.with_label_values(label).observe(seconds);
        self.endpoint_pending.set(family, 0);
        self.service_pending.set(family, 0);
        self.rules.synced(family, report);
        if report.result.is_ok() {
            self.last_sync.with_label_values(label).set(now());
        }
        for latency in &report.latencies {
            self.programming.with_label_values(label).observe(latency.as_secs_f64());
        }
    }

    /// Records a search for stale flows.
    pub fn cleaned(&self, family: IpFamily, cleaned: &CleanupStats) {
        let label = &[family.name()];
        self.clean_duration.with_label_values(label).observe(cleaned.duration.as_secs_f64());
        self.flows_deleted.with_label_values(label).inc_by(cleaned.deleted.try_into().unwrap_or(u64::MAX));
    }

    /// Counts ended connections to endpoints that are gone.
    pub fn ended(&self, family: IpFamily, connections: usize) {
        let ended = self.connections_ended.with_label_values(&[family.name()]);
        ended.inc_by(connections.try_into().unwrap_or(u64::MAX));
    }

    /// Counts a response of `/healthz` or `/livez`.
    pub fn answered(&self, live: bool, status: u16) {
        let counter = if live { &self.livez } else { &self.healthz };
        counter.with_label_values(&[&status.to_string()]).inc();
    }

    /// All metrics in Prometheus' text format.
    pub fn text(&self) -> String {
        encode::text(&self.registry.gather())
    }
}

fn int(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests;
