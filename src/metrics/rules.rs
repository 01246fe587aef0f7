//! Metrics of rules and their failures, which differ by mode.

use netfilter::IpFamily;
use prometheus::{IntCounterVec, IntGaugeVec, Result};
use proxier::proxier::SyncReport;

use super::int;
use super::make::{FAMILY, Registrar, counters, gauges};

const TABLE: &[&str] = &["table", "ip_family"];

/// The metrics of rules.
pub struct RuleMetrics {
    restore_failures: IntCounterVec,
    partial_failures: IntCounterVec,
    nftables_failures: IntCounterVec,
    nftables_cleanup_failures: IntCounterVec,
    total: IntGaugeVec,
    last: IntGaugeVec,
    no_local: IntGaugeVec,
    rejected: IntGaugeVec,
    unhashed: IntGaugeVec,
}

impl RuleMetrics {
    pub fn new(mode: &str, maker: &Registrar) -> Result<Self> {
        let counter = |modes: &[&str], suffix: &str, help: &str| {
            maker.add_if(modes.contains(&mode), counters(&format!("sync_proxy_rules_{suffix}"), help, FAMILY)?)
        };
        let gauge = |modes: &[&str], suffix: &str, help: &str, labels: &[&str]| {
            maker.add_if(modes.contains(&mode), gauges(&format!("sync_proxy_rules_{suffix}"), help, labels)?)
        };
        let (iptables, all) = (&["iptables"], &["iptables", "ipvs", "nftables"]);
        let policy = &["traffic_policy", "ip_family"];
        Ok(Self {
            restore_failures: counter(
                &["iptables", "ipvs"],
                "iptables_restore_failures_total",
                "Failed syncs of iptables rules",
            )?,
            partial_failures: counter(
                iptables,
                "iptables_partial_restore_failures_total",
                "Failed partial syncs of iptables rules",
            )?,
            nftables_failures: counter(
                &["nftables"],
                "nftables_sync_failures_total",
                "Transactions of nftables rules that failed",
            )?,
            nftables_cleanup_failures: counter(
                &["nftables"],
                "nftables_cleanup_failures_total",
                "Failed deletions of nftables chains and sets that nothing uses any more",
            )?,
            total: gauge(iptables, "iptables_total", "iptables rules of kube-proxy's, by table", TABLE)?,
            last: gauge(iptables, "iptables_last", "iptables rules written by the last sync, by table", TABLE)?,
            no_local: gauge(
                all,
                "no_local_endpoints_total",
                "Service ports with a Local traffic policy and endpoints, but none on this node",
                policy,
            )?,
            rejected: gauge(
                all,
                "rejected_service_ports",
                "Service ports left out because the kernel or its tool refuses them",
                FAMILY,
            )?,
            unhashed: gauge(
                all,
                "unhashed_services",
                "Services that ask for endpoints chosen by a hash, which the mode or the kernel cannot do",
                FAMILY,
            )?,
        })
    }

    /// Records a finished sync.
    pub fn synced(&self, family: IpFamily, report: &SyncReport<'_>) {
        let label = &[family.name()];
        match report.result {
            Ok(stats) => {
                for (policy, count) in [("internal", stats.no_local_internal), ("external", stats.no_local_external)] {
                    self.no_local.with_label_values(&[policy, family.name()]).set(int(count));
                }
                self.rejected.with_label_values(label).set(int(stats.rejected.len()));
                self.unhashed.with_label_values(label).set(int(stats.unhashed_services));
                let failures = [
                    (&self.nftables_failures, stats.failed_writes),
                    (&self.nftables_cleanup_failures, stats.failed_deletions),
                ];
                for (metric, count) in failures.into_iter().filter(|(_, count)| *count > 0) {
                    metric.with_label_values(label).inc_by(count as u64);
                }
                for rules in &stats.rules {
                    self.total.with_label_values(&[rules.table, family.name()]).set(int(rules.total));
                    self.last.with_label_values(&[rules.table, family.name()]).set(int(rules.written));
                }
            }
            Err(_) => {
                self.restore_failures.with_label_values(label).inc();
                self.nftables_failures.with_label_values(label).inc();
                if !report.full {
                    self.partial_failures.with_label_values(label).inc();
                }
            }
        }
    }
}
