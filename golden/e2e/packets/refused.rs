//! `serviceMetrics`: refused packets are counted by reason and Service, exactly as many as were sent.

use golden::cluster::Protocol::Udp;
use golden::cluster::{
    Cluster, EXTERNAL_IP, FAR_5, Family, NODE, OUTSIDE, OUTSIDE_OTHERS, POD_5, POD_9, PORT, Service, VIP, becomes_true,
    ready,
};
use golden::flavour::Flavour;

use super::SOON;
use super::metrics::{Scrape, change, counting, of_family};

const NODE_PORT: u16 = 30091;
const REFUSED: &str = "kubeproxy_service_refused_packets_total";
/// No Service port has it.
const OTHER_PORT: u16 = PORT + 1;

fn udp(name: &'static str, number: u8) -> Service {
    Service::new(name, number).protocol("UDP")
}

/// Without endpoints.
fn empty() -> Service {
    udp("empty", 80).node_port(NODE_PORT).external_ip(EXTERNAL_IP)
}

/// With an endpoint on another node only.
fn inner() -> Service {
    udp("inner", 81).internal_local().endpoints([ready(FAR_5)])
}

/// The same for traffic from outside.
fn away() -> Service {
    udp("away", 82).node_port(NODE_PORT + 1).external_local().endpoints([ready(FAR_5)])
}

/// With source ranges.
fn ranged() -> Service {
    let allowed = [format!("{}/32", OUTSIDE.0), format!("{}/128", OUTSIDE.1)];
    let ranged = udp("ranged", 83).node_port(NODE_PORT + 2).load_balancer(VIP);
    ranged.source_ranges(&[&allowed[0], &allowed[1]]).endpoints([ready(POD_5)])
}

/// The total of a Service and reason, in each family.
type Total = (&'static str, &'static str, u64);

/// Waits until the totals are these and no others are above zero.
#[track_caller]
fn check(cluster: &Cluster, totals: &[Total]) {
    let shown = |scrape: &Scrape| {
        Family::BOTH.iter().all(|family| {
            let all = scrape.values(REFUSED, &[of_family(*family)]);
            let expected: u64 = totals.iter().map(|(_, _, packets)| packets).sum();
            let sum = |service: &str, reason: &str| -> u64 {
                let labels = [format!("service_name=\"{service}\""), format!("reason=\"{reason}\"")];
                scrape.values(REFUSED, &[&labels[..], &[of_family(*family)]].concat()).values().sum()
            };
            let equal = totals.iter().all(|(service, reason, packets)| sum(service, reason) == *packets);
            equal && all.values().sum::<u64>() == expected
        })
    };
    let mut last = String::new();
    let equal = becomes_true(SOON, || {
        Scrape::attempt(cluster).is_some_and(|scrape| {
            let equal = shown(&scrape);
            last = scrape.0;
            equal
        })
    });
    let lines: Vec<&str> = last.lines().filter(|line| line.starts_with(REFUSED)).collect();
    assert!(equal, "{totals:?} of each family: {lines:#?}");
}

/// Sends to each Service, and returns the totals.
fn send_to_all(cluster: &Cluster, traits: Traits) -> Vec<Total> {
    let (pod, host, outside) = (cluster.pod(POD_9), cluster.host(), cluster.outside());
    for family in Family::BOTH {
        pod.send(empty().address(family), 7);
        host.send(empty().address(family), 3);
        outside.send(NODE.at(family, NODE_PORT), 5);
        outside.send(EXTERNAL_IP.at(family, PORT), 4);
        pod.send(inner().address(family), 6);
        host.send(inner().address(family), 2);
        outside.send(NODE.at(family, NODE_PORT + 1), 8);
        cluster.outside_as(OUTSIDE_OTHERS[0]).send(VIP.at(family, PORT), 9);
        pod.send(VIP.at(family, PORT), 3);
        // Neither the sender that is allowed nor an address without ranges counts.
        let _ = outside.reach_times(Udp, VIP.at(family, PORT), 5);
        let _ = pod.reach_times(Udp, ranged().address(family), 5);
        let mut other = ranged().address(family);
        other.set_port(OTHER_PORT);
        pod.send(other, 11);
    }
    let away = (!traits.falls_back).then_some(("away", "no_local_endpoints", 8));
    let unknown = traits.knows_ports.then_some(("ranged", "unknown_port", 11));
    let all = [
        Some(("empty", "no_endpoints", 19)),
        Some(("inner", "no_local_endpoints", 8)),
        Some(("ranged", "source_range", 12)),
        away,
        unknown,
    ];
    all.into_iter().flatten().collect()
}

/// Which mode it is.
#[derive(Clone, Copy, Default)]
struct Traits {
    /// Policy `Local` falls back to all endpoints.
    falls_back: bool,
    /// Unknown ports of a cluster IP are rejected.
    knows_ports: bool,
    /// Changes of others write rules anew, which then count from zero.
    loses_counts: bool,
}

fn refused_packets_are_counted(cluster: Cluster, traits: Traits) {
    let all = [empty(), inner(), away(), ranged()];
    let cluster = counting(cluster, "Services").running(&all);
    let mut totals = send_to_all(&cluster, traits);
    check(&cluster, &totals);
    // Rules of others come and go in the same chains and sets. There is no scrape between that and the packets.
    for step in 0..10 {
        let other = udp("other", 84).node_port(NODE_PORT + 3);
        let others = if step % 2 == 0 { std::slice::from_ref(&other) } else { &[] };
        change(&cluster, &[&all[..], others].concat());
        for family in Family::BOTH {
            cluster.pod(POD_9).send(empty().address(family), 3);
            cluster.outside_as(OUTSIDE_OTHERS[0]).send(VIP.at(family, PORT), 2);
        }
        for (service, reason, packets) in &mut totals {
            *packets += match (*service, *reason) {
                ("empty", _) => 3,
                ("ranged", "source_range") => 2,
                _ => 0,
            };
        }
        if traits.loses_counts {
            check(&cluster, &totals);
        }
    }
    check(&cluster, &totals);
    an_endpoint_comes_and_goes(&cluster, &mut totals);
    if !traits.loses_counts {
        a_proxy_is_replaced(&cluster, &mut totals);
    }
}

/// The total stays while nothing is refused, and goes on.
fn an_endpoint_comes_and_goes(cluster: &Cluster, totals: &mut [Total]) {
    let served = empty().endpoints([ready(POD_5)]);
    change(cluster, &[served.clone(), inner(), away(), ranged()]);
    for family in Family::BOTH {
        let _ = cluster.pod(POD_9).reach_times(Udp, served.address(family), 4);
    }
    check(cluster, totals);
    change(cluster, &[empty(), inner(), away(), ranged()]);
    for family in Family::BOTH {
        cluster.pod(POD_9).send(empty().address(family), 1);
        cluster.host().send(empty().address(family), 1);
    }
    totals[0].2 += 2;
    check(cluster, totals);
}

/// The kernel counts while there is no proxy, and a new one shows the kernel's counts.
fn a_proxy_is_replaced(cluster: &Cluster, totals: &mut [Total]) {
    cluster.kill();
    for family in Family::BOTH {
        cluster.pod(POD_9).send(inner().address(family), 5);
    }
    cluster.start();
    // What refused the packets before the endpoint came is gone from the kernel.
    totals[0].2 = 2;
    totals[1].2 += 5;
    check(cluster, totals);
}

pub(super) fn iptables_rules_count_refused_packets(cluster: Cluster) {
    let loses_counts = cluster.flavour() == Flavour::Legacy;
    refused_packets_are_counted(cluster, Traits { loses_counts, ..Traits::default() });
}

pub(super) fn elements_count_refused_packets(cluster: Cluster) {
    refused_packets_are_counted(cluster, Traits { knows_ports: true, ..Traits::default() });
}

pub(super) fn sets_count_refused_packets(cluster: Cluster) {
    refused_packets_are_counted(cluster, Traits { falls_back: true, knows_ports: true, ..Traits::default() });
}
