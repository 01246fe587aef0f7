//! Changes of objects while the proxy runs: traffic and rules follow, and other Services are unaffected.

use std::time::Duration;

use golden::cluster::Protocol::Tcp;
use golden::cluster::{
    Cluster, FAR_5, Failure, Family, NODE, POD_5, POD_6, POD_9, PORT, Service, VIP, eventually, ready, terminating,
    unready,
};

use super::restart::unnoticed;
use super::{PROMPT, SOON, pods};

/// Whether so many connections in each family all end at exactly these pods. Twelve tell two endpoints apart from one.
fn served_by(cluster: &Cluster, service: &Service, expected: &[&str]) -> bool {
    Family::BOTH.iter().all(|family| {
        let client = cluster.pod(POD_9);
        let answers: Result<Vec<_>, Failure> =
            (0..12).map(|_| client.try_within(Tcp, service.address(*family), Duration::from_millis(300))).collect();
        answers.is_ok_and(|answers| pods(&answers).into_iter().eq(expected.iter().copied()))
    })
}

pub(super) fn readiness_moves_traffic(cluster: Cluster) {
    let web = Service::new("web", 70);
    let cluster = cluster.running(&[web.clone().endpoints([ready(POD_5), unready(POD_6)])]);
    assert!(served_by(&cluster, &web, &[POD_5.name]), "only the ready one at first");
    cluster.write(&[web.clone().endpoints([unready(POD_5), ready(POD_6)])]);
    eventually("traffic moves to pod-6", PROMPT, || served_by(&cluster, &web, &[POD_6.name]));
    cluster.write(&[web.clone().endpoints([unready(POD_5), unready(POD_6)])]);
    eventually("no endpoint is ready: refused", PROMPT, || {
        let attempt = |family: &Family| cluster.pod(POD_9).attempt(Tcp, web.address(*family));
        Family::BOTH.iter().all(|family| attempt(family) == Err(Failure::Refused))
    });
    cluster.write(&[web.clone().endpoints([ready(POD_5), unready(POD_6)])]);
    eventually("traffic comes back to pod-5", PROMPT, || served_by(&cluster, &web, &[POD_5.name]));
}

pub(super) fn terminating_endpoints_are_the_last_resort(cluster: Cluster) {
    let web = Service::new("web", 71).node_port(30080).external_local();
    let cluster = cluster.running(&[web.clone().endpoints([ready(POD_5), ready(FAR_5)])]);
    let mut sessions: Vec<_> =
        Family::BOTH.iter().map(|family| cluster.outside().session(NODE.at(*family, 30080))).collect();

    cluster.write(&[web.clone().endpoints([terminating(POD_5), ready(FAR_5)])]);
    eventually("new connections avoid the terminating pod", PROMPT, || served_by(&cluster, &web, &[FAR_5.name]));
    for (session, family) in sessions.iter_mut().zip(Family::BOTH) {
        assert_eq!(session.answer().pod, POD_5.name);
        session.still_works();
        let answer = cluster.outside().reach(Tcp, NODE.at(family, 30080));
        assert_eq!(answer.pod, POD_5.name, "policy Local: the terminating pod is all this node has");
    }

    cluster.write(&[web.clone().endpoints([terminating(POD_5)])]);
    eventually("the terminating pod serves when alone", PROMPT, || served_by(&cluster, &web, &[POD_5.name]));
    for session in &mut sessions {
        session.still_works();
    }
}

pub(super) fn a_deleted_service_leaves_nothing(cluster: Cluster) {
    let kept = Service::new("kept", 72).endpoints([ready(POD_6)]);
    let gone = Service::new("gone", 73).node_port(30080).load_balancer(VIP).source_ranges(&["192.168.50.0/24"]);
    let gone = gone.external_local().affinity(60).endpoints([ready(POD_5), ready(FAR_5)]);
    let rejected = Service::new("gone-and-empty", 74);
    for family in Family::BOTH {
        cluster.iptables(family, "-t nat -N SOMEONE-ELSES");
        cluster.iptables(family, "-t nat -A SOMEONE-ELSES -p tcp -j RETURN");
    }
    let cluster = cluster.running(std::slice::from_ref(&kept));
    let state = |family| ["nat", "filter"].map(|table| cluster.rules(family, table));
    let before = Family::BOTH.map(state);

    cluster.write(&[kept.clone(), gone.clone(), rejected]);
    eventually("the new Service works", SOON, || {
        Family::BOTH.iter().all(|family| cluster.outside().attempt(Tcp, NODE.at(*family, 30080)).is_ok())
    });
    cluster.write(std::slice::from_ref(&kept));
    eventually("its rules and chains are gone, and only they", SOON, || Family::BOTH.map(state) == before);
    for (family, [nat, _]) in Family::BOTH.into_iter().zip(&before) {
        assert_eq!(nat.of("SOMEONE-ELSES").len(), 1, "other people's chains are theirs");
        for client in [cluster.pod(POD_9), cluster.host(), cluster.outside()] {
            for to in [gone.address(family), VIP.at(family, PORT)] {
                assert_eq!(client.attempt(Tcp, to), Err(Failure::Astray), "{to} is still a Service's address");
            }
            client.refused(Tcp, NODE.at(family, 30080));
        }
        assert_eq!(cluster.pod(POD_9).reach(Tcp, kept.address(family)).pod, POD_6.name);
    }
}

pub(super) fn a_changed_service_keeps_its_neighbours_connected(cluster: Cluster) {
    let kept = Service::new("kept", 75).node_port(30080).endpoints([ready(POD_6)]);
    let other = Service::new("other", 76).node_port(30081);
    let shapes = [vec![ready(POD_5)], vec![], vec![ready(POD_5), ready(FAR_5)], vec![ready(FAR_5)]];
    let cluster = cluster.running(std::slice::from_ref(&kept));
    unnoticed(&cluster, &kept, 30080, || {
        for shape in shapes.iter().cycle().take(12) {
            cluster.write(&[kept.clone(), other.clone().endpoints(shape.iter().cloned())]);
            eventually("the change is there", SOON, || {
                let rules = cluster.rules(Family::V6, "nat");
                rules.chains_with("KUBE-SEP-", &other.full_name()).len() == shape.len()
            });
        }
        cluster.write(std::slice::from_ref(&kept));
        eventually("the neighbour is gone", SOON, || !cluster.rules(Family::V6, "nat").mention(&other.full_name()));
    });
}
