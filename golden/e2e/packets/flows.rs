//! UDP flows and TCP connections across changes of their Services: only affected flows move.

use std::net::SocketAddr;

use golden::cluster::Protocol::Udp;
use golden::cluster::{
    Cluster, EXTERNAL_IP, Failure, Family, Flow, NODE, POD_5, POD_6, POD_9, PORT, Pod, Service, VIP, eventually, ready,
    terminating,
};

use super::{PROMPT, SOON};

const NODE_PORT: u16 = 30053;

fn dns() -> Service {
    Service::new("dns", 64).protocol("UDP").node_port(NODE_PORT).load_balancer(VIP).external_ip(EXTERNAL_IP)
}

/// A Service that nothing happens to, with two pods: flows that began anew would spread over both.
fn kept() -> Service {
    Service::new("kept", 65).protocol("UDP").endpoints([ready(POD_5), ready(POD_6)])
}

/// Flows to these addresses of each family, from a pod and from outside.
fn flows(cluster: &Cluster, to: impl Fn(Family) -> Vec<SocketAddr>) -> Vec<Flow> {
    let clients = [cluster.pod(POD_9), cluster.outside()];
    let addresses: Vec<_> = Family::BOTH.into_iter().flat_map(to).collect();
    clients.iter().flat_map(|client| addresses.iter().map(|to| client.flow(*to))).collect()
}

fn everywhere(cluster: &Cluster, service: &Service) -> Vec<Flow> {
    flows(cluster, |family| [vec![service.address(family)], outer(family)].concat())
}

/// The addresses of [`dns`] besides its cluster IPs.
fn outer(family: Family) -> Vec<SocketAddr> {
    vec![NODE.at(family, NODE_PORT), VIP.at(family, PORT), EXTERNAL_IP.at(family, PORT)]
}

/// Who answers each flow now.
fn answers(flows: &[Flow]) -> Vec<Result<String, Failure>> {
    flows.iter().map(|flow| flow.attempt().map(|answer| answer.pod)).collect()
}

fn all_at(flows: &[Flow], pod: Pod) -> bool {
    answers(flows).iter().all(|answer| answer.as_deref() == Ok(pod.name))
}

pub(super) fn flows_come_back_with_the_endpoints(cluster: Cluster) {
    let cluster = cluster.running(&[dns().endpoints([ready(POD_5)])]);
    let old = everywhere(&cluster, &dns());
    assert!(all_at(&old, POD_5));

    cluster.write(&[dns()]);
    let refused = |flow: &Flow| flow.attempt() == Err(Failure::Refused);
    eventually("no endpoint serves", PROMPT, || everywhere(&cluster, &dns()).iter().all(refused));
    let new = everywhere(&cluster, &dns());
    assert!(new.iter().all(refused));
    eventually("old flows do not go to the old endpoint either", PROMPT, || old.iter().all(refused));

    cluster.write(&[dns().endpoints([ready(POD_6)])]);
    eventually("all flows go to the new one", PROMPT, || all_at(&old, POD_6) && all_at(&new, POD_6));
}

pub(super) fn earlier_flows_reach_a_new_service(cluster: Cluster) {
    let cluster = cluster.running(&[kept()]);
    let unanswered = flows(&cluster, |family| vec![dns().address(family), NODE.at(family, NODE_PORT)]);
    let answered = flows(&cluster, |family| vec![VIP.at(family, PORT), EXTERNAL_IP.at(family, PORT)]);
    assert!(answers(&unanswered).iter().all(|answer| *answer == Err(Failure::Refused)), "nothing redirects them");
    assert!(answers(&answered).iter().all(|answer| *answer == Err(Failure::Astray)), "nor them");
    cluster.write(&[kept(), dns().endpoints([ready(POD_5)])]);
    eventually("they are redirected", PROMPT, || all_at(&unanswered, POD_5));
    // Silent until now: a stranger's answer that is under way when the flow is deleted begins one of its own, backwards.
    assert!(all_at(&answered, POD_5), "so are the flows that another host answered");
}

pub(super) fn flows_leave_a_deleted_service(cluster: Cluster) {
    let cluster = cluster.running(&[kept(), dns().endpoints([ready(POD_5)])]);
    let gone = everywhere(&cluster, &dns());
    assert!(all_at(&gone, POD_5));
    let neighbours: Vec<_> = (0..4).flat_map(|_| flows(&cluster, |family| vec![kept().address(family)])).collect();
    let before = answers(&neighbours);
    assert!(before.iter().all(Result::is_ok), "{before:?}");

    cluster.write(&[kept()]);
    eventually("no flow goes on to the pod", PROMPT, || answers(&gone).iter().all(Result::is_err));
    assert_eq!(answers(&neighbours), before, "the neighbour's flows stay where they are");
}

pub(super) fn flows_leave_an_address_removed_from_their_service(cluster: Cluster) {
    let pods = [ready(POD_5), ready(POD_6)];
    let cluster = cluster.running(&[dns().endpoints(pods.clone())]);
    let given_up = flows(&cluster, outer);
    let inner: Vec<_> = (0..4).flat_map(|_| flows(&cluster, |family| vec![dns().address(family)])).collect();
    let before = answers(&inner);
    assert!(before.iter().chain(&answers(&given_up)).all(Result::is_ok));

    cluster.write(&[Service::new("dns", 64).protocol("UDP").endpoints(pods)]);
    eventually("flows leave the addresses", PROMPT, || answers(&given_up).iter().all(Result::is_err));
    assert_eq!(answers(&inner), before, "flows to the cluster IP stay where they are");
}

pub(super) fn a_start_finds_stale_flows(cluster: Cluster) {
    let cluster = cluster.running(&[dns().endpoints([ready(POD_5)])]);
    let old = everywhere(&cluster, &dns());
    assert!(all_at(&old, POD_5));
    cluster.kill();
    cluster.write(&[dns().endpoints([ready(POD_6)])]);
    cluster.start();
    eventually("what changed meanwhile counts for flows too", SOON, || all_at(&old, POD_6));
    cluster.kill();
    cluster.write(&[dns()]);
    cluster.start();
    let refused = |flow: &Flow| flow.attempt() == Err(Failure::Refused);
    eventually("so does the last endpoint that went meanwhile", SOON, || old.iter().all(refused));
}

pub(super) fn flows_of_terminating_endpoints_stay(cluster: Cluster) {
    let web = Service::new("web", 66).node_port(30080);
    let moved = Service::new("moved", 67).protocol("UDP");
    let with = |pods: &[golden::cluster::Endpoint], moved_to: Pod| {
        let services = [dns(), web.clone()].map(|service| service.endpoints(pods.iter().cloned()));
        cluster_of(services, moved.clone().endpoints([ready(moved_to)]))
    };
    let cluster = cluster.running(&with(&[ready(POD_5)], POD_5));
    let mut sessions: Vec<_> = Family::BOTH
        .into_iter()
        .flat_map(|family| {
            let (pod, outside) = (cluster.pod(POD_9), cluster.outside());
            [pod.session(web.address(family)), outside.session(NODE.at(family, 30080))]
        })
        .collect();
    let old = everywhere(&cluster, &dns());
    let to_moved = flows(&cluster, |family| vec![moved.address(family)]);
    assert!(all_at(&old, POD_5) && all_at(&to_moved, POD_5));

    cluster.write(&with(&[terminating(POD_5), ready(POD_6)], POD_6));
    // Its flows move in the same pass, so that it is seen to have been.
    eventually("the neighbour's flows have moved", PROMPT, || all_at(&to_moved, POD_6));
    assert!(all_at(&old, POD_5), "the terminating pod keeps its flows");
    assert_eq!(cluster.pod(POD_9).reach(Udp, dns().address(Family::V4)).pod, POD_6.name, "but gets no new ones");

    cluster.write(&with(&[ready(POD_6)], POD_6));
    eventually("once it is gone they move", PROMPT, || all_at(&old, POD_6));
    sessions.iter_mut().for_each(|session| session.still_works());
}

fn cluster_of(services: [Service; 2], one_more: Service) -> Vec<Service> {
    services.into_iter().chain([one_more]).collect()
}
