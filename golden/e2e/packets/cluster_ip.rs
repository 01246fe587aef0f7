//! ClusterIP: the answering endpoint and the source address it sees.
//!
//! A pod's address must be kept, because NetworkPolicy and logs depend on it. Other addresses must be masqueraded, or
//! answers would not return through the node.

use golden::cluster::Protocol::Tcp;
use golden::cluster::{Cluster, FAR_5, Family, POD_5, POD_6, POD_9, Service, is_node, ready};

use super::pods;

fn web() -> Service {
    Service::new("web", 10).endpoints([ready(POD_5), ready(POD_6), ready(FAR_5)])
}

pub(super) fn cluster_ip_from_a_pod_keeps_the_source(cluster: Cluster) {
    let web = web();
    let cluster = cluster.running(std::slice::from_ref(&web));
    for family in Family::BOTH {
        let answers = cluster.pod(POD_9).reach_times(Tcp, web.address(family), 40);
        assert!(answers.iter().all(|answer| answer.client == POD_9.address.of(family)), "{answers:?}");
        assert_eq!(pods(&answers).len(), 3, "{answers:?}");
    }
}

pub(super) fn cluster_ip_from_the_host(cluster: Cluster) {
    let web = web();
    let cluster = cluster.running(std::slice::from_ref(&web));
    for family in Family::BOTH {
        let answers = cluster.host().reach_times(Tcp, web.address(family), 40);
        assert!(answers.iter().all(|answer| is_node(answer.client)), "{answers:?}");
        assert_eq!(pods(&answers).len(), 3, "{answers:?}");
    }
}

pub(super) fn cluster_ip_from_outside_is_masqueraded(cluster: Cluster) {
    let web = web();
    let cluster = cluster.running(std::slice::from_ref(&web));
    for family in Family::BOTH {
        let answers = cluster.outside().reach_times(Tcp, web.address(family), 40);
        assert!(answers.iter().all(|answer| is_node(answer.client)), "{answers:?}");
        assert_eq!(pods(&answers).len(), 3, "{answers:?}");
    }
}

pub(super) fn connections_spread_over_the_endpoints(cluster: Cluster) {
    let web = web();
    let cluster = cluster.running(std::slice::from_ref(&web));
    for family in Family::BOTH {
        let answers = cluster.pod(POD_9).reach_times(Tcp, web.address(family), 300);
        for pod in [POD_5, POD_6, FAR_5] {
            let count = answers.iter().filter(|answer| answer.pod == pod.name).count();
            // 100 expected, standard deviation 8.2: five of them is one false alarm in a million runs.
            assert!((60..=140).contains(&count), "{family:?}: {count} of 300 connections went to {}", pod.name);
        }
    }
}

pub(super) fn a_pod_reaches_itself_through_its_service(cluster: Cluster) {
    let own = Service::new("own", 11).endpoints([ready(POD_5)]);
    let cluster = cluster.running(std::slice::from_ref(&own));
    for family in Family::BOTH {
        let answer = cluster.pod(POD_5).reach(Tcp, own.address(family));
        assert_eq!(answer.pod, POD_5.name);
        assert!(is_node(answer.client), "a pod would drop packets from itself: {answer:?}");
    }
}
