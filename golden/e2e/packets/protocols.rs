//! UDP and SCTP through every kind of address.
//!
//! An endless UDP flow must not stay with a deleted endpoint. SCTP is sent raw, because the kernel may have no SCTP
//! sockets.

use golden::cluster::Protocol::Udp;
use golden::cluster::{
    Cluster, EXTERNAL_IP, FAR_5, Family, LOOPBACK, NODE, POD_5, POD_6, POD_9, PORT, Service, TARGET_PORT, VIP,
    eventually, is_node, ready,
};

use super::{PROMPT, SOON, pods};

const NODE_PORT: u16 = 30053;

fn dns() -> Service {
    Service::new("dns", 60).protocol("UDP").node_port(NODE_PORT).load_balancer(VIP).external_ip(EXTERNAL_IP)
}

pub(super) fn udp_through_every_entrance(cluster: Cluster) {
    let dns = dns().endpoints([ready(POD_5), ready(FAR_5)]);
    let cluster = cluster.running(std::slice::from_ref(&dns));
    for family in Family::BOTH {
        let answers = cluster.pod(POD_9).reach_times(Udp, dns.address(family), 40);
        assert_eq!(pods(&answers).len(), 2, "{answers:?}");
        assert!(answers.iter().all(|answer| answer.client == POD_9.address.of(family)), "{answers:?}");
        let own = cluster.pod(POD_5).reach_times(Udp, dns.address(family), 40);
        assert!(own.iter().all(|answer| is_node(answer.client) == (answer.pod == POD_5.name)), "hairpin: {own:?}");
        for to in [NODE.at(family, NODE_PORT), VIP.at(family, PORT), EXTERNAL_IP.at(family, PORT)] {
            for client in [cluster.outside(), cluster.host()] {
                let answers = client.reach_times(Udp, to, 20);
                assert_eq!(pods(&answers).len(), 2, "{to}: {answers:?}");
                assert!(answers.iter().all(|answer| is_node(answer.client)), "{to}: {answers:?}");
            }
        }
    }
}

pub(super) fn udp_node_port_on_localhost(cluster: Cluster) {
    let cluster = cluster.running(&[dns().endpoints([ready(POD_5), ready(FAR_5)])]);
    let answer = cluster.host().reach(Udp, LOOPBACK.at(Family::V4, NODE_PORT));
    assert!(is_node(answer.client), "{answer:?}");
}

pub(super) fn udp_refused_and_dropped(cluster: Cluster) {
    let empty = dns();
    let elsewhere = Service::new("elsewhere", 61).protocol("UDP").node_port(30054).external_local().internal_local();
    let elsewhere = elsewhere.endpoints([ready(FAR_5)]);
    let cluster = cluster.running(&[empty.clone(), elsewhere.clone()]);
    for family in Family::BOTH {
        cluster.pod(POD_9).refused(Udp, empty.address(family));
        cluster.outside().refused(Udp, NODE.at(family, NODE_PORT));
        cluster.outside().refused(Udp, VIP.at(family, PORT));
        cluster.pod(POD_9).dropped(Udp, elsewhere.address(family));
        cluster.outside().dropped(Udp, NODE.at(family, 30054));
    }
}

pub(super) fn udp_flow_leaves_a_gone_endpoint(cluster: Cluster) {
    let dns = dns();
    let before = dns.clone().endpoints([ready(POD_5)]);
    let after = dns.clone().endpoints([ready(POD_6)]);
    let cluster = cluster.running(std::slice::from_ref(&before));
    let mut flows = Vec::new();
    for family in Family::BOTH {
        flows.push(cluster.pod(POD_9).flow(dns.address(family)));
        flows.push(cluster.outside().flow(NODE.at(family, NODE_PORT)));
        flows.push(cluster.outside().flow(VIP.at(family, PORT)));
    }
    for flow in &flows {
        assert_eq!(flow.attempt().expect("an answer").pod, POD_5.name);
    }
    cluster.write(&[after]);
    eventually("every flow has moved to pod-6", PROMPT, || {
        flows.iter().all(|flow| flow.attempt().is_ok_and(|answer| answer.pod == POD_6.name))
    });
}

pub(super) fn sctp_rules_load_and_translate(cluster: Cluster) {
    let sigtran = Service::new("sigtran", 62).protocol("SCTP").node_port(30905).endpoints([ready(POD_5)]);
    let empty = Service::new("empty", 63).protocol("SCTP");
    let cluster = cluster.running(&[sigtran.clone(), empty.clone()]);
    for family in Family::BOTH {
        let sink = cluster.sctp_sink(POD_5, family);
        cluster.pod(POD_9).send_sctp_init(4001, sigtran.address(family));
        assert_eq!(sink.receive(SOON), Some((POD_9.address.of(family), TARGET_PORT)), "{family:?} from a pod");
        cluster.outside().send_sctp_init(4002, NODE.at(family, 30905));
        let (sender, port) = sink.receive(SOON).expect("an INIT from outside");
        assert!(is_node(sender) && port == TARGET_PORT, "{family:?} from outside: {sender} to {port}");

        let rejects = cluster.rules(family, "filter");
        let rule = rejects.of("KUBE-SERVICES").iter().find(|rule| rule.contains(&empty.full_name()));
        let rule = rule.expect("a rule that rejects what has no endpoints");
        assert!(rule.contains("-p sctp") && rule.contains("-j REJECT"), "{rule}");
    }
}
