//! `serviceMetrics`: counted connections are exactly those that were made, whatever happens to rules and proxies.

use std::collections::BTreeMap;
use std::time::Duration;

use golden::cluster::Protocol::{Tcp, Udp};
use golden::cluster::{
    Cluster, EXTERNAL_IP, FAR_5, Family, NODE, POD_5, POD_6, POD_9, PORT, Pod, Service, VIP, eventually, ready,
};
use golden::node::METRICS;
use serde_json::json;

use super::SOON;
use super::restart::unnoticed;

const NODE_PORT: u16 = 30090;
const PORTS: &str = "kubeproxy_service_connections_total";
const ENDPOINTS: &str = "kubeproxy_service_endpoint_connections_total";

fn web(pods: &[Pod]) -> Service {
    let web = Service::new("web", 70).node_port(NODE_PORT).load_balancer(VIP).external_ip(EXTERNAL_IP);
    web.endpoints(pods.iter().map(|pod| ready(*pod)).collect::<Vec<_>>())
}

/// A Service whose endpoints do not change.
fn kept() -> Service {
    Service::new("kept", 71).endpoints([ready(POD_5), ready(FAR_5)])
}

pub(super) fn counting(cluster: Cluster, level: &str) -> Cluster {
    cluster.configured("serviceMetrics", json!({ "level": level }))
}

/// A scrape.
pub(super) struct Scrape(pub(super) String);

impl Scrape {
    #[track_caller]
    pub(super) fn of(cluster: &Cluster) -> Self {
        Self::attempt(cluster).expect("/metrics answers")
    }

    /// `None` if the server does not answer, as right after a start.
    pub(super) fn attempt(cluster: &Cluster) -> Option<Self> {
        let (_, text) = cluster.node().enter(|| golden::node::get(METRICS, "/metrics")).ok()?;
        Some(Self(text))
    }

    /// The values of a metric with these labels, by all of its labels.
    pub(super) fn values(&self, name: &str, labels: &[String]) -> BTreeMap<&str, u64> {
        let of_metric = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{'));
        let lines = self.0.lines().filter(of_metric);
        let lines = lines.filter(|line| labels.iter().all(|label| line.contains(&**label)));
        let parsed = |line: &'_ str| line.rsplit_once(' ').expect("a value").1.parse().expect("a whole number");
        lines.map(|line| (line.rsplit_once(' ').expect("a value").0, parsed(line))).collect()
    }

    /// The sum of a metric over a Service in a family.
    fn sum(&self, name: &str, family: Family, service: &str) -> u64 {
        let labels = [of_family(family), format!("service_name=\"{service}\"")];
        self.values(name, &labels).values().sum()
    }
}

/// A scrape in which both families have these sums of metrics over Services.
///
/// At once, but for IPVS, whose kernel thread for estimates copies the counters of virtual servers every two seconds, and for
/// legacy tables, which are not read while iptables-legacy-restore changes them.
#[track_caller]
fn settled(cluster: &Cluster, totals: &[(&str, &'static str, u64)]) -> Scrape {
    let shows = |scrape: &Scrape, (metric, service, sent): &(&str, &str, u64)| {
        Family::BOTH.iter().all(|family| scrape.sum(metric, *family, service) == *sent)
    };
    let log = cluster.log();
    if log.contains("Using ipvs mode") || log.contains("flavour legacy") {
        eventually("the counts are those of the connections", SOON, || {
            let scrape = Scrape::of(cluster);
            totals.iter().all(|total| shows(&scrape, total))
        });
    }
    let scrape = Scrape::of(cluster);
    for total in totals {
        assert!(shows(&scrape, total), "{total:?} of each family: {}", scrape.0);
    }
    scrape
}

pub(super) fn of_family(family: Family) -> String {
    format!("ip_family=\"{}\"", if family == Family::V4 { "IPv4" } else { "IPv6" })
}

/// Counts the connections that were made, and compares them with what is shown.
struct Sent<'a> {
    cluster: &'a Cluster,
    /// In each family, by Service.
    counts: BTreeMap<&'static str, u64>,
    last: BTreeMap<String, u64>,
}

impl<'a> Sent<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        Self { cluster, counts: BTreeMap::new(), last: BTreeMap::new() }
    }

    /// Connects to the Service some times at its cluster IP, from a pod.
    fn connect(&mut self, service: &'static str, times: u64) {
        let at = if service == "web" { web(&[]) } else { kept() };
        for family in Family::BOTH {
            for _ in 0..times {
                let _ = self.cluster.pod(POD_9).reach(Tcp, at.address(family));
            }
        }
        *self.counts.entry(service).or_default() += times;
    }

    /// All totals are what was sent, and none is less than before.
    #[track_caller]
    fn check(&mut self) {
        let totals: Vec<(&str, &'static str, u64)> =
            self.counts.iter().map(|(name, sent)| (PORTS, *name, *sent)).collect();
        let scrape = settled(self.cluster, &totals);
        for name in [PORTS, ENDPOINTS] {
            for (labels, value) in scrape.values(name, &[]) {
                let before = self.last.insert(labels.to_owned(), value).unwrap_or(0);
                assert!(value >= before, "{labels} went from {before} to {value}");
            }
        }
    }

    /// Forgets the last values: the proxy is another process, which shows none before it has found its mode's tools.
    fn restarted(&mut self) {
        self.last.clear();
        eventually("connections are shown", SOON, || {
            Scrape::attempt(self.cluster).is_some_and(|scrape| !scrape.values(PORTS, &[]).is_empty())
        });
    }
}

/// The number of syncs of each family.
fn syncs(cluster: &Cluster) -> [u64; 2] {
    let scrape = Scrape::of(cluster);
    Family::BOTH.map(|family| {
        let counts = scrape.values("kubeproxy_sync_proxy_rules_duration_seconds_count", &[of_family(family)]);
        counts.values().sum()
    })
}

/// Three times the minimum interval of syncs: the objects of one file may come in two of them.
const QUIET: Duration = Duration::from_millis(300);

/// Writes other Services and waits until both families have synced them all.
pub(super) fn change(cluster: &Cluster, services: &[Service]) {
    let before = syncs(cluster);
    cluster.write(services);
    eventually("both families have synced", SOON, || {
        let now = syncs(cluster);
        std::thread::sleep(QUIET);
        now.iter().zip(before).all(|(after, before)| *after > before) && syncs(cluster) == now
    });
}

pub(super) fn connections_are_counted_at_every_address(cluster: Cluster) {
    let dns = Service::new("dns", 72).protocol("UDP").endpoints([ready(POD_5), ready(FAR_5)]);
    let sticky = Service::new("sticky", 73).affinity(600).endpoints([ready(POD_5), ready(POD_6), ready(FAR_5)]);
    let cluster = counting(cluster, "Endpoints").running(&[web(&[POD_5, FAR_5]), dns.clone(), sticky.clone()]);
    for family in Family::BOTH {
        let _ = cluster.pod(POD_9).reach_times(Tcp, web(&[]).address(family), 7);
        let _ = cluster.host().reach_times(Tcp, web(&[]).address(family), 5);
        let _ = cluster.outside().reach_times(Tcp, NODE.at(family, NODE_PORT), 3);
        let _ = cluster.outside().reach_times(Tcp, VIP.at(family, PORT), 2);
        let _ = cluster.outside().reach_times(Tcp, EXTERNAL_IP.at(family, PORT), 1);
        let _ = cluster.pod(POD_9).reach_times(Udp, dns.address(family), 11);
        // One flow is one connection, however many packets it has.
        let flow = cluster.pod(POD_9).flow(dns.address(family));
        (0..5).for_each(|_| _ = flow.attempt().expect("an answer"));
        let _ = cluster.pod(POD_9).reach_times(Tcp, sticky.address(family), 9);
    }
    let sent = [("web", 18), ("dns", 12), ("sticky", 9)];
    let totals = [PORTS, ENDPOINTS].map(|metric| sent.map(|(service, sent)| (metric, service, sent)));
    let scrape = settled(&cluster, totals.as_flattened());
    for family in Family::BOTH {
        let sticky = scrape.values(ENDPOINTS, &[of_family(family), "service_name=\"sticky\"".to_owned()]);
        let used: Vec<u64> = sticky.into_values().filter(|count| *count > 0).collect();
        assert_eq!(used, [9], "one client, one endpoint");
    }
    let failures = scrape.values("kubeproxy_service_metrics_read_failures_total", &[]);
    assert_eq!(failures.into_values().collect::<Vec<_>>(), [0, 0]);
}

pub(super) fn counts_are_exact_over_changes_and_restarts(cluster: Cluster) {
    let cluster = counting(cluster, "Endpoints").running(&[web(&[POD_5]), kept()]);
    let mut sent = Sent::new(&cluster);
    let sets = [&[POD_5][..], &[POD_5, FAR_5], &[FAR_5, POD_6, POD_9], &[POD_6]];
    for (step, pods) in sets.iter().cycle().skip(1).take(24).enumerate() {
        sent.connect("web", 3);
        sent.connect("kept", 1);
        // What was counted is read before an endpoint goes.
        sent.check();
        let other = Service::new("other", 74).endpoints([ready(POD_5)]);
        let others = if step % 2 == 0 { vec![other] } else { Vec::new() };
        change(&cluster, &[vec![web(pods), kept()], others].concat());
        sent.check();
    }
    // The kernel counts while there is no proxy, and a new one goes on with the kernel's counts.
    let mut of_kept = Sent { counts: sent.counts, ..Sent::new(&cluster) };
    of_kept.counts.retain(|service, _| *service == "kept");
    for _ in 0..3 {
        cluster.kill();
        of_kept.connect("kept", 2);
        cluster.start();
        of_kept.restarted();
        of_kept.check();
        of_kept.connect("kept", 2);
        of_kept.check();
    }
}

/// Without scrapes in between: what a Service counts does not depend on the changes of others, nor in nftables mode on its own.
pub(super) fn counts_are_exact_over_a_thousand_changes(cluster: Cluster) {
    let cluster = counting(cluster, "Endpoints").running(&[web(&[POD_5]), kept()]);
    let mut sent = Sent::new(&cluster);
    let (sets, before) = ([&[POD_5][..], &[POD_5, FAR_5], &[FAR_5, POD_6, POD_9], &[POD_6]], syncs(&cluster));
    for step in 1..=1000 {
        cluster.write(&[web(sets[step % sets.len()]), kept()]);
        sent.connect("kept", 1);
        if step % 200 == 0 {
            sent.check();
        }
    }
    let after = syncs(&cluster);
    eprintln!("{before:?} syncs before 1,000 changes, {after:?} after them");
    // The proxy takes changes together that come faster than it syncs.
    assert!(after.iter().zip(before).all(|(after, before)| after - before >= 10), "{before:?} to {after:?}");
}

pub(super) fn service_ports_beyond_the_limit_are_counted_as_omitted(cluster: Cluster) {
    let cluster = cluster.configured("serviceMetrics", json!({ "level": "Services", "limit": 1, "namespaces": [] }));
    let cluster = cluster.running(&[web(&[POD_5]), kept()]);
    let _ = cluster.pod(POD_9).reach(Tcp, web(&[]).address(Family::V4));
    let scrape = Scrape::of(&cluster);
    assert_eq!(scrape.values(PORTS, &[of_family(Family::V4)]).len(), 1, "{}", scrape.0);
    let labels = [of_family(Family::V4), "kind=\"service_port\"".to_owned()];
    let omitted = scrape.values("kubeproxy_service_metrics_omitted", &labels);
    // The cluster has Services of its own, too.
    assert!(omitted.values().all(|count| *count >= 1), "{omitted:?}");
    assert!(scrape.values(ENDPOINTS, &[]).is_empty(), "endpoints are shown only on demand");
}

pub(super) fn services_that_a_selector_selects_are_counted(cluster: Cluster) {
    let level = json!({ "level": "Endpoints", "selector": "team in (shop, pay), !internal" });
    let cluster = cluster.configured("serviceMetrics", level);
    let (shop, other) = (kept().label("team", "shop"), web(&[POD_5]));
    let cluster = cluster.running(&[shop.clone(), other.clone()]);
    let mut sent = Sent::new(&cluster);
    sent.connect("kept", 3);
    sent.check();
    let _ = cluster.pod(POD_9).reach(Tcp, other.address(Family::V4));
    let scrape = Scrape::of(&cluster);
    assert!(!scrape.0.contains("service_name=\"web\""), "{}", scrape.0);
    // Labels that change count without a change of the rules.
    cluster.write(&[shop, other.label("team", "pay")]);
    eventually("web is counted since it is selected", SOON, || {
        let _ = cluster.pod(POD_9).reach(Tcp, web(&[]).address(Family::V4));
        Scrape::of(&cluster).sum(PORTS, Family::V4, "web") > 0
    });
    cluster.write(&[kept().label("team", "shop").label("internal", ""), web(&[POD_5]).label("team", "pay")]);
    let counted = |cluster: &Cluster| Scrape::of(cluster).sum(PORTS, Family::V4, "kept");
    eventually("kept is not counted any more", SOON, || {
        let before = counted(&cluster);
        let _ = cluster.pod(POD_9).reach(Tcp, kept().address(Family::V4));
        counted(&cluster) == before
    });
}

pub(super) fn nothing_is_counted_or_shown_unless_asked_for(cluster: Cluster) {
    let cluster = cluster.running(&[kept()]);
    let scrape = Scrape::of(&cluster);
    assert!(!scrape.0.contains("kubeproxy_service_"), "{}", scrape.0);
    for family in Family::BOTH {
        let table = cluster.table(family);
        assert!(!table.contains("service-connections") && !table.contains("counter"), "{table}");
    }
}

/// Counters of endpoints are part of sets that the kernel does not change: the table is replaced.
pub(super) fn metrics_are_switched_on_and_off_unnoticed(cluster: Cluster) {
    let web = Service::new("web", 70).node_port(NODE_PORT).endpoints([ready(POD_5), ready(FAR_5)]);
    let mut cluster = cluster.running(std::slice::from_ref(&web));
    let parts = |cluster: &Cluster| Family::BOTH.map(|family| cluster.table_parts(family));
    let before = parts(&cluster);
    for (level, sets, counters) in [("Services", true, false), ("Endpoints", true, true), ("Off", false, false)] {
        cluster = counting(cluster, level);
        // Writes the configuration.
        cluster.set_mode(golden::case::Mode::Nftables);
        let switched = &cluster;
        unnoticed(switched, &web, NODE_PORT, || {
            switched.kill();
            switched.start();
            eventually("the table is as it should be", SOON, || {
                Family::BOTH.iter().all(|family| {
                    let table = switched.table(*family);
                    let endpoints = table.split("map endpoints {").nth(1).expect("the map of endpoints");
                    let endpoints = endpoints.split("elements").next().unwrap_or_default();
                    table.contains("set service-connections {") == sets && endpoints.contains("counter") == counters
                })
            });
        });
    }
    eventually("the table is as before", SOON, || parts(&cluster) == before);
}
