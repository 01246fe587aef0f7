//! Metrics against golden/surface/metrics.yaml, the list of kube-proxy's, and against recorded events.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use netfilter::ipvs::Statistics;
use proxier::backend::{SyncError, SyncStats, TableRules};
use proxier::model::{Protocol, ServicePortName};
use proxier::traffic::{RefusalReason, RefusedBy};
use serde::Deserialize;

use super::*;
use crate::tests_named::{check_since, check_words};

#[derive(Debug, Deserialize)]
struct Row {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    labels: Vec<String>,
    modes: String,
    #[serde(default)]
    buckets: String,
    #[serde(default)]
    since: Option<String>,
    test: String,
}

fn rows() -> Vec<Row> {
    serde_saphyr::from_str(include_str!("../../golden/surface/metrics.yaml")).expect("metrics.yaml")
}

/// A metric of a text: help, type, labels, buckets.
#[derive(Debug, Default)]
struct ExposedMetric {
    help: String,
    kind: String,
    labels: BTreeSet<Vec<String>>,
    buckets: Vec<String>,
}

fn parse(text: &str) -> BTreeMap<String, ExposedMetric> {
    let mut all: BTreeMap<String, ExposedMetric> = BTreeMap::new();
    let mut last = String::new();
    for line in text.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            last = name.to_owned();
            let again = all.insert(last.clone(), ExposedMetric { help: help.to_owned(), ..ExposedMetric::default() });
            assert!(again.is_none(), "{name} is there twice");
        } else if let Some((_, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            all.get_mut(&last).expect("HELP comes first").kind = kind.to_owned();
        } else {
            let (series, _) = line.rsplit_once(' ').expect("a value");
            let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
            assert!(name.starts_with(&last), "{name} after {last}");
            let labels = labels.trim_end_matches('}').split(',').filter_map(|label| label.split_once('='));
            let labels: Vec<(&str, &str)> = labels.collect();
            let shown = all.get_mut(&last).expect("HELP comes first");
            let le = labels.iter().find(|(name, _)| *name == "le").map(|(_, bound)| bound.trim_matches('"').to_owned());
            shown.buckets.extend(le.filter(|bound| !shown.buckets.contains(bound)));
            shown
                .labels
                .insert(labels.iter().map(|(name, _)| (*name).to_owned()).filter(|name| name != "le").collect());
        }
    }
    all
}

fn report<'a>(full: bool, result: std::result::Result<&'a SyncStats, &'a SyncError>) -> SyncReport<'a> {
    let latencies = vec![Duration::from_millis(700)];
    SyncReport {
        duration: Duration::from_millis(20),
        full,
        result,
        latencies,
        health_checks: None,
        localhost_ports: None,
    }
}

/// Metrics after one of every event.
fn exercised(mode: &str) -> Metrics {
    let metrics = Metrics::new(mode).expect("metrics");
    metrics.features(&[Feature { name: "ComponentFlagz", stage: "BETA", enabled: true }]).expect("features");
    let rules = vec![TableRules { table: "nat", total: 70, written: 5 }];
    let stats = SyncStats { full: true, no_local_internal: 3, rules, failed_deletions: 1, ..SyncStats::default() };
    let error = SyncError("no".to_owned());
    metrics.queued(IpFamily::V4);
    metrics.changed(IpFamily::V4, Kind::Service, 1);
    metrics.synced(IpFamily::V4, &report(true, Ok(&stats)));
    metrics.synced(IpFamily::V4, &report(false, Err(&error)));
    metrics.cleaned(IpFamily::V4, &CleanupStats { duration: Duration::from_millis(1), deleted: 2 });
    metrics.ended(IpFamily::V4, 3);
    metrics.answered(false, 200);
    metrics.answered(true, 503);
    request(&metrics, Ok(200));
    if mode == "nftables" {
        metrics.localhost.listeners.with_label_values(&["IPv4"]).set(1);
        metrics.localhost.failures.with_label_values(&["IPv4"]).inc();
        let rejected: RejectedPackets = [((IpFamily::V4, Protocol::Udp), 3)].into();
        metrics.rejected_packets(Box::new(move || rejected.clone())).expect("counters");
    }
    metrics.outages(Box::new(|| [("EndpointSlice", Duration::from_secs(312))].into())).expect("durations");
    traffic(&metrics, mode == "ipvs");
    if mode == "iptables" {
        let counted = [("ct_state_invalid_dropped_pkts", 4), ("localhost_nps_accepted_pkts", 5), ("other", 6)];
        let counted: BTreeMap<String, u64> = counted.map(|(name, count)| (name.to_owned(), count)).into();
        metrics.packets(Box::new(move || Ok(counted.clone()))).expect("counters");
    }
    metrics
}

fn traffic(metrics: &Metrics, has_volume: bool) {
    let port = ServicePortName::parse("ns/web:http", Protocol::Tcp).expect("a name");
    let counts = Statistics { connections: 7, packets: 70, ..Statistics::default() };
    let endpoints = vec![("10.244.1.5:8080".parse().expect("an address"), counts)];
    let refused = RefusedTraffic { by: RefusedBy::Port(port.clone()), reason: RefusalReason::NoEndpoints, packets: 3 };
    let (ports, refused) = (vec![PortTraffic { port, counts, endpoints }], vec![refused]);
    let traffic =
        FamilyTraffic { ports, refused, omitted_ports: 2, read_at: Some(1.0), has_volume, ..FamilyTraffic::default() };
    metrics.service_traffic(Box::new(move || vec![(IpFamily::V4, traffic.clone())])).expect("counters");
}

fn request(metrics: &Metrics, answer: std::result::Result<u16, ()>) {
    let requests = metrics.requests().to("10.0.0.1:6443");
    requests.waited("GET", Duration::from_millis(200));
    requests.answered("GET", answer.ok(), Duration::from_millis(1));
}

fn has(metrics: &Metrics, line: &str) {
    let text = metrics.text();
    assert!(text.lines().any(|each| each == line), "{line} in {text}");
}

#[test]
fn exactly_the_listed_metrics_are_exposed() {
    let buckets = |name: &str| -> Vec<f64> {
        match name {
            "B15" => (0..15).map(|k| 0.001 * 2_f64.powi(k)).collect(),
            "P" => {
                let mut seconds = vec![0.25, 0.5];
                seconds.extend((1..=59).map(f64::from));
                seconds.extend((60..=115).step_by(5).map(f64::from));
                seconds.extend((120..=300).step_by(30).map(f64::from));
                seconds
            }
            "R" => vec![0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0],
            _ => Vec::new(),
        }
    };
    let rows = rows();
    for (mode, letter) in [("iptables", 'I'), ("ipvs", 'V'), ("nftables", 'N')] {
        let mut shown = parse(&exercised(mode).text());
        for row in rows.iter().filter(|row| row.modes.contains(letter) && !row.test.starts_with("different: ")) {
            let metric = shown.remove(&row.name).unwrap_or_else(|| panic!("{mode}: {} is missing", row.name));
            assert_eq!(metric.kind, row.kind, "{mode}: {}", row.name);
            assert_eq!(metric.labels, [row.labels.clone()].into(), "{mode}: {}", row.name);
            let ours = row.name.starts_with("kubeproxy_");
            assert!(!ours || metric.help.starts_with("[ALPHA] "), "{mode}: {}: {}", row.name, metric.help);
            let mut wanted: Vec<String> = buckets(&row.buckets).into_iter().map(encode::number).collect();
            wanted.extend((row.kind == "histogram").then(|| "+Inf".to_owned()));
            assert_eq!(metric.buckets, wanted, "{mode}: {}", row.name);
        }
        assert!(shown.is_empty(), "{mode}: not in golden/surface/metrics.yaml: {:?}", shown.keys());
    }
}

#[test]
fn every_row_names_its_test_or_the_reason_for_a_difference() {
    let mut names = BTreeSet::new();
    for row in rows() {
        assert!(names.insert(row.name.clone()), "{} is there twice", row.name);
        if !row.test.starts_with("ours: ") {
            check_words(&row.name, &row.test, &["table"]);
        }
        check_since(&row.name, row.since.as_deref());
    }
}

#[test]
fn metrics_of_events_that_did_not_happen_are_not_exposed() {
    let text = Metrics::new("iptables").expect("metrics").text();
    assert!(!text.contains("ip_family"), "{text}");
    assert!(text.contains("kubeproxy_sync_proxy_rules_service_changes_total 0"), "{text}");
}

#[test]
fn a_sync_is_recorded_under_kube_proxys_names() {
    let metrics = exercised("iptables");
    for line in [
        "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 2",
        "kubeproxy_sync_full_proxy_rules_duration_seconds_bucket{ip_family=\"IPv4\",le=\"0.032\"} 1",
        "kubeproxy_network_programming_duration_seconds_bucket{ip_family=\"IPv4\",le=\"0.5\"} 0",
        "kubeproxy_sync_proxy_rules_iptables_total{ip_family=\"IPv4\",table=\"nat\"} 70",
        "kubeproxy_sync_proxy_rules_iptables_last{ip_family=\"IPv4\",table=\"nat\"} 5",
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv4\",traffic_policy=\"internal\"} 3",
    ] {
        has(&metrics, line);
    }
}

#[test]
fn a_failure_counts_and_leaves_the_last_sync_alone() {
    let metrics = Metrics::new("iptables").expect("metrics");
    let error = SyncError("no".to_owned());
    metrics.synced(IpFamily::V6, &report(true, Err(&error)));
    metrics.synced(IpFamily::V6, &report(false, Err(&error)));
    has(&metrics, "kubeproxy_sync_proxy_rules_iptables_restore_failures_total{ip_family=\"IPv6\"} 2");
    has(&metrics, "kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total{ip_family=\"IPv6\"} 1");
    has(&metrics, "kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family=\"IPv6\"} 1");
    assert!(!metrics.text().contains("last_timestamp_seconds{"));
}

#[test]
fn transactions_that_nf_tables_refuses_are_counted() {
    let metrics = Metrics::new("nftables").expect("metrics");
    let stats = SyncStats { failed_writes: 2, failed_deletions: 3, ..SyncStats::default() };
    metrics.synced(IpFamily::V6, &report(true, Ok(&stats)));
    metrics.synced(IpFamily::V6, &report(true, Ok(&SyncStats::default())));
    metrics.synced(IpFamily::V6, &report(true, Err(&SyncError("no".to_owned()))));
    has(&metrics, "kubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family=\"IPv6\"} 3");
    has(&metrics, "kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total{ip_family=\"IPv6\"} 3");
}

#[test]
fn pending_changes_are_the_sum_of_both_families() {
    let metrics = Metrics::new("iptables").expect("metrics");
    metrics.changed(IpFamily::V4, Kind::Service, 2);
    metrics.changed(IpFamily::V6, Kind::Service, 1);
    metrics.changed(IpFamily::V6, Kind::EndpointSlice, 5);
    metrics.changed(IpFamily::V6, Kind::Node, 9);
    has(&metrics, "kubeproxy_sync_proxy_rules_service_changes_pending 3");
    has(&metrics, "kubeproxy_sync_proxy_rules_service_changes_total 2");
    has(&metrics, "kubeproxy_sync_proxy_rules_endpoint_changes_pending 5");
    has(&metrics, "kubeproxy_sync_proxy_rules_endpoint_changes_total 1");
    // The sync of one family does not affect pending changes of the other.
    metrics.synced(IpFamily::V6, &report(true, Ok(&SyncStats::default())));
    has(&metrics, "kubeproxy_sync_proxy_rules_service_changes_pending 2");
    has(&metrics, "kubeproxy_sync_proxy_rules_endpoint_changes_pending 0");
}

#[test]
fn packet_counters_are_read_at_each_scrape() {
    let metrics = exercised("iptables");
    has(&metrics, "kubeproxy_iptables_ct_state_invalid_dropped_packets_total 4");
    has(&metrics, "kubeproxy_iptables_localhost_nodeports_accepted_packets_total 5");
    let without = Metrics::new("iptables").expect("metrics");
    without.packets(Box::new(|| Err(std::io::ErrorKind::Unsupported.into()))).expect("counters");
    assert!(!without.text().contains("packets_total"));
}

#[test]
fn requests_are_counted_by_code_and_timed_by_verb() {
    let metrics = Metrics::new("iptables").expect("metrics");
    [Ok(200), Ok(200), Ok(403), Err(())].into_iter().for_each(|answer| request(&metrics, answer));
    let count = |code| format!("rest_client_requests_total{{code=\"{code}\",host=\"10.0.0.1:6443\",method=\"GET\"}}");
    has(&metrics, &format!("{} 2", count("200")));
    has(&metrics, &format!("{} 1", count("403")));
    has(&metrics, &format!("{} 1", count("<error>")));
    has(&metrics, "rest_client_request_duration_seconds_count{host=\"10.0.0.1:6443\",verb=\"GET\"} 4");
}

#[test]
fn rate_limited_requests_are_timed() {
    let metrics = Metrics::new("iptables").expect("metrics");
    request(&metrics, Err(()));
    has(&metrics, "rest_client_rate_limiter_duration_seconds_sum{host=\"10.0.0.1:6443\",verb=\"GET\"} 0.2");
}

#[test]
fn process_metrics_have_plausible_values() {
    let text = Metrics::new("iptables").expect("metrics").text();
    let value = |name: &str| -> f64 {
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("process_{name} ")));
        line.unwrap_or_else(|| panic!("{name} in {text}")).parse().expect("a number")
    };
    assert!((3.0..100_000.0).contains(&value("open_fds")) && value("max_fds") >= value("open_fds"));
    assert!(value("resident_memory_bytes") > 500_000.0);
    assert!(value("virtual_memory_bytes") > value("resident_memory_bytes"));
    assert!(value("cpu_seconds_total") < 36_000.0);
    let age = now() - value("start_time_seconds");
    assert!((-2.0..86_400.0).contains(&age), "{age}");
}

#[test]
fn every_metric_of_the_dashboard_exists() {
    let dashboard: serde_json::Value =
        serde_json::from_str(include_str!("../../deploy/grafana-dashboard.json")).expect("JSON");
    let shown = parse(&exercised("iptables").text());
    let names = regex::Regex::new("(?:kubeproxy|process|rest_client|kubernetes)_[a-z_]+").expect("a pattern");
    let panels = dashboard["panels"].as_array().expect("panels");
    assert!(panels.len() > 10);
    for panel in panels {
        for target in panel["targets"].as_array().expect("targets") {
            let query = target["expr"].as_str().expect("a query");
            for name in names.find_iter(query).map(|found| found.as_str()) {
                let whole = ["_bucket", "_count", "_sum"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
                assert!(shown.contains_key(name) || shown.contains_key(whole), "{}: {name}", panel["title"]);
            }
        }
    }
}
