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
mod syncs;

use std::time::{SystemTime, UNIX_EPOCH};

use netfilter::IpFamily;
use prometheus::{CounterVec, HistogramVec, IntCounterVec, IntGauge, Registry, Result};
use proxier::cleaner::CleanupStats;
use proxier::proxier::SyncReport;
use proxier::track::Kind;

pub use self::client::{RequestMetrics, ServerRequestMetrics};
pub use self::facts::Feature;
pub use self::localhost::{LocalhostMetrics, RejectedPackets};
use self::make::{FAMILY, Registrar, counters, durations, opts};
pub use self::outages::ReadOutages;
pub use self::packets::ReadCounters;
use self::rules::RuleMetrics;
pub use self::services::{FamilyTraffic, PortTraffic, ReadTraffic, RefusedTraffic};
use self::slis::SliMetrics;
use self::syncs::SyncMetrics;

/// All metrics of the process.
pub struct Metrics {
    registry: Registry,
    syncs: SyncMetrics,
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

impl Metrics {
    /// All metrics at zero.
    ///
    /// # Errors
    /// A duplicate or invalid metric name.
    pub fn new(mode: &str) -> Result<Self> {
        let registry = Registry::new();
        let m = Registrar::new(&registry);
        let code = |suffix, help| CounterVec::new(opts(suffix, help), &["code"]).and_then(|metric| m.add(metric));
        facts::build(&registry)?;
        m.add(process::ProcessCollector::new()?)?;
        Ok(Self {
            syncs: SyncMetrics::new(mode, &m)?,
            rules: RuleMetrics::new(mode, &m)?,
            clean_duration: m
                .add(durations("conntrack_reconciler_sync_duration_seconds", "Duration of conntrack table scans")?)?,
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
        self.syncs.changed(family, kind, pending);
    }

    /// Records that a sync was queued.
    pub fn queued(&self, family: IpFamily) {
        self.syncs.queued(family);
    }

    /// Records a finished sync.
    pub fn synced(&self, family: IpFamily, report: &SyncReport<'_>) {
        self.syncs.synced(family, report);
        self.rules.synced(family, report);
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
