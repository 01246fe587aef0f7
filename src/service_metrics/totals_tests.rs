//! Tests of the totals.

use proptest::prelude::*;
use proxier::model::Protocol;
use proxier::traffic;

use super::*;

fn name(text: &str) -> ServicePortName {
    ServicePortName::parse(text, Protocol::Tcp).expect("a name")
}

fn sample(port: &str, endpoint: u8, connections: u64) -> TrafficSample {
    TrafficSample {
        source: [port.as_bytes(), &[endpoint]].concat().into(),
        port: name(port),
        endpoint: Some(([10, 0, 0, endpoint], 80).into()),
        adds_to_port: true,
        is_draining: false,
        counts: traffic::connections(connections),
    }
}

fn selection(limit: usize) -> TrafficSelection {
    TrafficSelection { limit, endpoints: true, ..TrafficSelection::default() }
}

fn connections(totals: &FamilyTotals, port: &str) -> Option<u64> {
    totals.shown().ports.iter().find(|shown| shown.port == name(port)).map(|shown| shown.counts.connections)
}

#[test]
fn total_starts_at_the_kernels_count_and_keeps_what_a_deleted_endpoint_counted() {
    let (mut totals, now) = (FamilyTotals::default(), Instant::now());
    totals.add(&selection(10), vec![sample("a/web", 1, 5), sample("a/web", 2, 7)], now);
    assert_eq!(connections(&totals, "a/web"), Some(12));
    totals.add(&selection(10), vec![sample("a/web", 2, 8)], now);
    assert_eq!(connections(&totals, "a/web"), Some(13));
    // The endpoint is back, and its new rule counts from zero.
    totals.add(&selection(10), vec![sample("a/web", 1, 2), sample("a/web", 2, 8)], now);
    assert_eq!(connections(&totals, "a/web"), Some(15));
    let endpoints = totals.shown().ports[0].endpoints.iter().map(|(_, counts)| counts.connections).collect::<Vec<_>>();
    assert_eq!(endpoints, [7, 8]);
}

#[test]
fn counter_that_was_reset_between_reads_is_added_as_a_whole() {
    let (mut totals, now) = (FamilyTotals::default(), Instant::now());
    for (count, total) in [(5, 5), (3, 8), (4, 9), (0, 9), (1, 10)] {
        totals.add(&selection(10), vec![sample("a/web", 1, count)], now);
        assert_eq!(connections(&totals, "a/web"), Some(total));
    }
}

#[test]
fn service_ports_beyond_the_limit_are_counted_and_admitted_in_place_of_deleted_ones() {
    let (mut totals, now) = (FamilyTotals::default(), Instant::now());
    totals.add(&selection(2), vec![sample("a/3", 1, 1), sample("a/1", 1, 1), sample("a/2", 1, 1)], now);
    let shown = |totals: &FamilyTotals| {
        let traffic = totals.shown();
        let names: Vec<String> = traffic.ports.iter().map(|port| port.port.to_string()).collect();
        (names.join(" "), traffic.omitted_ports)
    };
    assert_eq!(shown(&totals), ("a/1 a/2".to_owned(), 1));
    // A new one with a lower name takes no other's place.
    totals.add(&selection(2), vec![sample("a/0", 1, 1), sample("a/1", 1, 2), sample("a/2", 1, 1)], now);
    assert_eq!(shown(&totals), ("a/1 a/2".to_owned(), 1));
    totals.add(&selection(2), vec![sample("a/3", 1, 4), sample("a/1", 1, 2)], now);
    assert_eq!(shown(&totals), ("a/1 a/3".to_owned(), 0));
    assert_eq!(connections(&totals, "a/3"), Some(4));
}

#[test]
fn endpoints_beyond_ten_per_service_port_of_the_limit_are_counted_as_omitted() {
    let (mut totals, now) = (FamilyTotals::default(), Instant::now());
    totals.add(&selection(1), (1..=12).map(|endpoint| sample("a/web", endpoint, 1)).collect(), now);
    let traffic = totals.shown();
    assert_eq!((traffic.ports[0].endpoints.len(), traffic.omitted_endpoints, traffic.omitted_ports), (10, 2, 0));
    assert_eq!(traffic.ports[0].counts.connections, 12);
}

#[test]
fn only_selected_namespaces_are_shown_and_count_against_the_limit() {
    let (mut totals, now) = (FamilyTotals::default(), Instant::now());
    let only = TrafficSelection { namespaces: ["b".into()].into(), ..selection(1) };
    totals.add(&only, vec![sample("a/web", 1, 1), sample("b/web", 1, 2)], now);
    assert_eq!((connections(&totals, "a/web"), connections(&totals, "b/web")), (None, Some(2)));
    assert_eq!(totals.shown().omitted_ports, 0);
}

#[test]
fn totals_are_forgotten_an_hour_after_the_last_count() {
    let (mut totals, start) = (FamilyTotals::default(), Instant::now());
    totals.add(&selection(10), vec![sample("a/web", 1, 5)], start);
    totals.add(&selection(10), Vec::new(), start + KEPT - Duration::from_secs(1));
    assert_eq!(connections(&totals, "a/web"), Some(5));
    totals.add(&selection(10), Vec::new(), start + KEPT);
    assert_eq!(connections(&totals, "a/web"), None);
}

#[test]
fn virtual_server_that_a_read_missed_is_not_counted_twice() {
    let (mut totals, now) = (FamilyTotals::default(), Instant::now());
    let ipvs = TrafficSelection { ipvs: true, ..selection(10) };
    for (samples, total) in [(vec![sample("a/web", 1, 5)], 5), (Vec::new(), 5), (vec![sample("a/web", 1, 6)], 6)] {
        totals.add(&ipvs, samples, now);
        assert_eq!(connections(&totals, "a/web"), Some(total));
    }
}

proptest! {
    /// Endpoints come, go and count; every connection is read before its rule goes.
    #[test]
    fn totals_are_what_was_counted_and_never_decrease(steps in prop::collection::vec((1_u8..5, 0_u64..4), 1..80)) {
        let (mut totals, now) = (FamilyTotals::default(), Instant::now());
        let mut kernel: BTreeMap<u8, u64> = BTreeMap::new();
        let (mut sent, mut before) = (0, 0);
        for (endpoint, count) in steps {
            if count == 0 {
                kernel.remove(&endpoint);
            } else {
                *kernel.entry(endpoint).or_default() += count;
                sent += count;
            }
            let samples = kernel.iter().map(|(endpoint, count)| sample("a/web", *endpoint, *count)).collect();
            totals.add(&selection(10), samples, now);
            let total = connections(&totals, "a/web").unwrap_or(0);
            prop_assert_eq!(total, sent);
            prop_assert!(total >= before);
            before = total;
        }
    }
}
