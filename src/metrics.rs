//! Metrics of syncing, under kube-proxy's names.
//!
//! In: what the proxiers report. Out: Prometheus text. Must not know: HTTP.

use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::{
    CounterVec, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};
use proxier::IpFamily;
use proxier::cleaner::Cleaned;
use proxier::proxier::SyncReport;
use proxier::track::Kind;

/// All metrics of the process.
pub struct Metrics {
    registry: Registry,
    sync_duration: HistogramVec,
    full_duration: HistogramVec,
    partial_duration: HistogramVec,
    last_sync: GaugeVec,
    last_queued: GaugeVec,
    endpoint_changes: IntCounter,
    service_changes: IntCounter,
    endpoint_pending: IntGauge,
    service_pending: IntGauge,
    no_local: IntGaugeVec,
    restore_failures: IntCounterVec,
    partial_failures: IntCounterVec,
    rules_total: IntGaugeVec,
    rules_last: IntGaugeVec,
    rejected: IntGaugeVec,
    clean_duration: HistogramVec,
    flows_deleted: IntCounterVec,
    answers: CounterVec,
    livez: CounterVec,
}

fn name(suffix: &str) -> String {
    format!("kubeproxy_{suffix}")
}

fn opts(suffix: &str, help: &str) -> Opts {
    Opts::new(name(suffix), format!("[ALPHA] {help}"))
}

/// Registers a metric whose name and labels are fixed here, so that it cannot clash.
macro_rules! register {
    ($registry:ident, $metric:expr) => {{
        let metric = $metric.expect("a valid metric");
        $registry.register(Box::new(metric.clone())).expect("a metric of its own");
        metric
    }};
}

impl Metrics {
    /// Nothing has happened yet.
    pub fn new() -> Self {
        let r = Registry::new();
        let family: &[&str] = &["ip_family"];
        let table: &[&str] = &["table", "ip_family"];
        let duration = |suffix, help: &str| {
            let buckets = (0..15).map(|k| 0.001 * f64::from(1 << k)).collect();
            HistogramVec::new(HistogramOpts::from(opts(suffix, help)).buckets(buckets), family)
        };
        let gauge = |suffix, help: &str, labels| IntGaugeVec::new(opts(suffix, help), labels);
        let counter = |suffix, help: &str, labels| IntCounterVec::new(opts(suffix, help), labels);
        let time = |suffix, help: &str| GaugeVec::new(opts(suffix, help), family);
        let code = |suffix, help: &str| CounterVec::new(opts(suffix, help), &["code"]);
        Self {
            sync_duration: register!(r, duration("sync_proxy_rules_duration_seconds", "Duration of syncs in seconds")),
            full_duration: register!(
                r,
                duration("sync_full_proxy_rules_duration_seconds", "Duration of full syncs in seconds")
            ),
            partial_duration: register!(
                r,
                duration("sync_partial_proxy_rules_duration_seconds", "Duration of partial syncs in seconds")
            ),
            last_sync: register!(r, time("sync_proxy_rules_last_timestamp_seconds", "When rules were last synced")),
            last_queued: register!(
                r,
                time("sync_proxy_rules_last_queued_timestamp_seconds", "When a sync was last asked for")
            ),
            endpoint_changes: register!(
                r,
                IntCounter::with_opts(opts("sync_proxy_rules_endpoint_changes_total", "EndpointSlice events"))
            ),
            service_changes: register!(
                r,
                IntCounter::with_opts(opts(
                    "sync_proxy_rules_service_changes_total",
                    "Service events, once per family"
                ))
            ),
            endpoint_pending: register!(
                r,
                IntGauge::with_opts(opts(
                    "sync_proxy_rules_endpoint_changes_pending",
                    "Service ports whose endpoints wait for a sync"
                ))
            ),
            service_pending: register!(
                r,
                IntGauge::with_opts(opts(
                    "sync_proxy_rules_service_changes_pending",
                    "Service ports that wait for a sync"
                ))
            ),
            no_local: register!(
                r,
                gauge(
                    "sync_proxy_rules_no_local_endpoints_total",
                    "Service ports with a Local policy and without local endpoints",
                    &["traffic_policy", "ip_family"]
                )
            ),
            restore_failures: register!(
                r,
                counter("sync_proxy_rules_iptables_restore_failures_total", "Failed syncs of iptables rules", family)
            ),
            partial_failures: register!(
                r,
                counter(
                    "sync_proxy_rules_iptables_partial_restore_failures_total",
                    "Failed partial syncs of iptables rules",
                    family
                )
            ),
            rules_total: register!(r, gauge("sync_proxy_rules_iptables_total", "iptables rules of kube-proxy", table)),
            rules_last: register!(
                r,
                gauge("sync_proxy_rules_iptables_last", "iptables rules written by the last sync", table)
            ),
            rejected: register!(
                r,
                gauge(
                    "sync_proxy_rules_rejected_service_ports",
                    "Service ports left out because the kernel or its tool refuses them",
                    family
                )
            ),
            clean_duration: register!(
                r,
                duration("conntrack_reconciler_sync_duration_seconds", "Duration of looks at the conntrack table")
            ),
            flows_deleted: register!(
                r,
                counter("conntrack_reconciler_deleted_entries_total", "Stale UDP flows deleted", family)
            ),
            answers: register!(r, code("proxy_healthz_total", "Answers of /healthz by status")),
            livez: register!(r, code("proxy_livez_total", "Answers of /livez by status")),
            registry: r,
        }
    }

    /// An event came.
    pub fn changed(&self, _family: IpFamily, kind: Kind, pending: usize) {
        let pending = i64::try_from(pending).unwrap_or(i64::MAX);
        match kind {
            Kind::Service => {
                self.service_changes.inc();
                self.service_pending.set(pending);
            }
            Kind::EndpointSlice => {
                self.endpoint_changes.inc();
                self.endpoint_pending.set(pending);
            }
            Kind::Node => {}
        }
    }

    /// A sync was asked for.
    pub fn queued(&self, family: IpFamily) {
        self.last_queued.with_label_values(&[family.name()]).set(now());
    }

    /// A sync ended.
    pub fn synced(&self, family: IpFamily, report: &SyncReport<'_>) {
        let label = &[family.name()];
        let seconds = report.duration.as_secs_f64();
        let of_kind = if report.full { &self.full_duration } else { &self.partial_duration };
        self.sync_duration.with_label_values(label).observe(seconds);
        of_kind.with_label_values(label).observe(seconds);
        self.endpoint_pending.set(0);
        self.service_pending.set(0);
        let int = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        match report.result {
            Ok(stats) => {
                self.last_sync.with_label_values(label).set(now());
                for (policy, count) in [("internal", stats.no_local_internal), ("external", stats.no_local_external)] {
                    self.no_local.with_label_values(&[policy, family.name()]).set(int(count));
                }
                self.rejected.with_label_values(label).set(int(stats.rejected.len()));
                for rules in &stats.rules {
                    self.rules_total.with_label_values(&[rules.table, family.name()]).set(int(rules.total));
                    self.rules_last.with_label_values(&[rules.table, family.name()]).set(int(rules.written));
                }
            }
            Err(_) => {
                self.restore_failures.with_label_values(label).inc();
                if !report.full {
                    self.partial_failures.with_label_values(label).inc();
                }
            }
        }
    }

    /// Stale flows were looked for.
    pub fn cleaned(&self, family: IpFamily, cleaned: &Cleaned) {
        let label = &[family.name()];
        self.clean_duration.with_label_values(label).observe(cleaned.duration.as_secs_f64());
        self.flows_deleted.with_label_values(label).inc_by(cleaned.deleted.try_into().unwrap_or(u64::MAX));
    }

    /// `/healthz` or `/livez` was answered.
    pub fn answered(&self, live: bool, status: u16) {
        let counter = if live { &self.livez } else { &self.answers };
        counter.with_label_values(&[&status.to_string()]).inc();
    }

    /// Everything, in Prometheus' text format.
    ///
    /// # Errors
    /// If a metric cannot be written, in the library's words.
    pub fn text(&self) -> Result<String, String> {
        TextEncoder::new().encode_to_string(&self.registry.gather()).map_err(|error| error.to_string())
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proxier::backend::{SyncStats, TableRules};

    use super::*;

    #[test]
    fn a_sync_is_told_under_kube_proxys_names() {
        let metrics = Metrics::new();
        let rules = vec![TableRules { table: "nat", total: 70, written: 5 }];
        let stats = SyncStats { full: true, no_local_internal: 3, rules, ..SyncStats::default() };
        let report = SyncReport { duration: Duration::from_millis(20), full: true, result: Ok(&stats) };
        metrics.synced(IpFamily::V6, &report);
        metrics.cleaned(IpFamily::V4, &Cleaned { duration: Duration::from_secs(20), deleted: 0 });
        metrics.cleaned(IpFamily::V4, &Cleaned { duration: Duration::from_millis(1), deleted: 7 });
        let text = metrics.text().expect("text");
        for line in [
            "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv6\"} 1",
            "kubeproxy_sync_full_proxy_rules_duration_seconds_bucket{ip_family=\"IPv6\",le=\"0.032\"} 1",
            "kubeproxy_sync_proxy_rules_iptables_total{ip_family=\"IPv6\",table=\"nat\"} 70",
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv6\",traffic_policy=\"internal\"} 3",
            "kubeproxy_conntrack_reconciler_sync_duration_seconds_bucket{ip_family=\"IPv4\",le=\"0.001\"} 1",
            "kubeproxy_conntrack_reconciler_sync_duration_seconds_bucket{ip_family=\"IPv4\",le=\"16.384\"} 1",
            "kubeproxy_conntrack_reconciler_sync_duration_seconds_count{ip_family=\"IPv4\"} 2",
            "kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family=\"IPv4\"} 7",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}
