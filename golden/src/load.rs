//! Changes of the synthetic load, and the metrics that the proxy must report for them.

use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use serde_json::json;

use crate::apiserver::ApiServer;
use crate::node::sum;

const TRIGGER: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// Changes one EndpointSlice of the load: its last endpoint becomes unready, or ready again.
///
/// # Panics
/// If the Service is not in the load.
#[track_caller]
pub fn change(api: &ApiServer, service: u32) {
    let name = format!("svc-{service:05}-x7k2p");
    let mut slice = api.get("EndpointSlice", "scale", &name).unwrap_or_else(|| panic!("there is no slice {name}"));
    slice["metadata"]["annotations"][TRIGGER] = json!(Timestamp::now().to_string());
    let last = slice["endpoints"].as_array_mut().and_then(|all| all.last_mut()).expect("it has endpoints");
    let ready = last["conditions"]["ready"] == true;
    last["conditions"] = json!({ "ready": !ready, "serving": !ready, "terminating": false });
    api.apply(slice);
}

/// The metrics before a number of changes.
#[derive(Debug)]
pub struct Account {
    before: String,
    opened: f64,
}

impl Account {
    /// An account that starts with the current metrics.
    #[must_use]
    pub fn open(before: String) -> Self {
        Self { before, opened: now() }
    }

    /// The growth of a metric since the start; names as for [`sum`].
    #[must_use]
    pub fn growth(&self, after: &str, name: &str) -> f64 {
        sum(after, name) - sum(&self.before, name)
    }

    /// Whether so many changes were received and synced.
    #[must_use]
    pub fn is_done(&self, after: &str, changes: u32) -> bool {
        self.growth(after, "kubeproxy_sync_proxy_rules_endpoint_changes_total") >= f64::from(changes)
            && self.growth(after, "kubeproxy_network_programming_duration_seconds_count") >= f64::from(changes)
            && sum(after, "kubeproxy_sync_proxy_rules_endpoint_changes_pending") < 1.0
    }

    /// The differences between the metrics and so many changed IPv4 slices without failures.
    #[must_use]
    pub fn differences(&self, after: &str, changes: u32) -> Vec<String> {
        let mut all = Vec::new();
        let mut expect = |name: &str, found: f64, wanted: f64| {
            if (found - wanted).abs() > 0.01 {
                all.push(format!("{name}: {found}, not {wanted}"));
            }
        };
        let changes = f64::from(changes);
        let grown = |name: &str| self.growth(after, &format!("kubeproxy_{name}"));
        for (name, wanted) in [
            ("sync_proxy_rules_endpoint_changes_total", changes),
            ("sync_proxy_rules_service_changes_total", 0.0),
            ("network_programming_duration_seconds_count", changes),
            ("network_programming_duration_seconds_count{ip_family=\"IPv4\"", changes),
            ("network_programming_duration_seconds_bucket{ip_family=\"IPv4\",le=\"+Inf\"", changes),
            ("sync_full_proxy_rules_duration_seconds_count", 0.0),
            ("sync_proxy_rules_iptables_restore_failures_total", 0.0),
            ("sync_proxy_rules_iptables_partial_restore_failures_total", 0.0),
            // No UDP, so conntrack is not cleaned.
            ("conntrack_reconciler_sync_duration_seconds_count", 0.0),
        ] {
            expect(name, grown(name), wanted);
        }
        for name in ["endpoint_changes_pending", "service_changes_pending", "rejected_service_ports"] {
            expect(name, sum(after, &format!("kubeproxy_sync_proxy_rules_{name}")), 0.0);
        }
        let syncs = grown("sync_proxy_rules_duration_seconds_count");
        expect("partial syncs", grown("sync_partial_proxy_rules_duration_seconds_count"), syncs);
        let answered = self.growth(after, "rest_client_requests_total{code=\"200\"");
        expect("requests that failed", self.growth(after, "rest_client_requests_total") - answered, 0.0);
        if !(1.0..=changes).contains(&syncs) {
            all.push(format!("{syncs} syncs for {changes} changes"));
        }
        for name in ["last_timestamp_seconds", "last_queued_timestamp_seconds"] {
            let at = sum(after, &format!("kubeproxy_sync_proxy_rules_{name}{{ip_family=\"IPv4\""));
            if !(self.opened..=now()).contains(&at) {
                all.push(format!("{name}: {at}, not between {} and now", self.opened));
            }
        }
        all
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
