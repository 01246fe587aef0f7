//! Connections to endpoints that are gone, of Services that ask for their end, and UDP flows of terminating endpoints.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use golden::cluster::Protocol::Tcp;
use golden::cluster::{
    Client, Cluster, EXTERNAL_IP, Family, NODE, POD_5, POD_6, POD_9, PORT, Pod, Service, Session, VIP, eventually,
    ready, stopping, terminating, unready,
};
use golden::node::METRICS;
use proxier::model::annotations::{END_STALE_CONNECTIONS, UDP_CONNECTION_HANDLING};

use super::PROMPT;

const NODE_PORT: u16 = 30080;
/// Longer than a pass takes to come after a change.
const PASS: Duration = Duration::from_millis(1500);

fn web() -> Service {
    let web = Service::new("web", 60).node_port(NODE_PORT).load_balancer(VIP).external_ip(EXTERNAL_IP);
    web.annotation(END_STALE_CONNECTIONS, "true")
}

/// Clients, each with an address of a Service with entrances like [`web`].
fn entrances<'a>(cluster: &'a Cluster, service: &Service) -> Vec<(Client<'a>, SocketAddr)> {
    let of = |family| {
        [
            (cluster.pod(POD_9), service.address(family)),
            (cluster.host(), service.address(family)),
            (cluster.outside(), NODE.at(family, NODE_PORT)),
            (cluster.outside(), VIP.at(family, PORT)),
            (cluster.outside(), EXTERNAL_IP.at(family, PORT)),
        ]
    };
    Family::BOTH.into_iter().flat_map(of).collect()
}

fn sessions(cluster: &Cluster, service: &Service, pod: Pod) -> Vec<Session> {
    let clients = [cluster.pod(POD_9), cluster.host()];
    let open = |family: Family| clients.iter().map(move |client| client.session(service.address(family)));
    let open: Vec<_> = Family::BOTH.into_iter().flat_map(open).collect();
    assert!(open.iter().all(|session| session.answer().pod == pod.name), "all go to {}", pod.name);
    open
}

/// How many connections the proxy has ended.
fn ended(cluster: &Cluster) -> usize {
    let (_, text) = cluster.node().enter(|| golden::node::get(METRICS, "/metrics")).expect("/metrics answers");
    let values = text.lines().filter_map(|line| line.strip_prefix("kubeproxy_ended_connections_total{"));
    values.map(|line| line.rsplit_once(' ').expect("a value").1.parse::<usize>().expect("a whole number")).sum()
}

/// Asserts that connections are reset soon, and returns how long the last one took.
fn are_reset(sessions: Vec<Session>) -> Duration {
    let start = Instant::now();
    for (number, mut session) in sessions.into_iter().enumerate() {
        assert!(session.is_reset(PROMPT.saturating_sub(start.elapsed())), "connection {number}");
    }
    start.elapsed()
}

pub(super) fn a_hung_connection_reconnects(cluster: Cluster) {
    let with = |pod| web().endpoints([ready(pod)]);
    let bystander = Service::new("bystander", 61).endpoints([ready(POD_6)]);
    let cluster = cluster.running(&[with(POD_5), bystander.clone()]);
    let entrances = entrances(&cluster, &web());
    let mut open: Vec<_> = entrances.iter().map(|(client, to)| client.session(*to)).collect();
    let mut others = sessions(&cluster, &bystander, POD_6);
    cluster.unplug(POD_5);
    // Every other connection waits for the answer to a request, the rest for a message of the server.
    open.iter_mut().step_by(2).for_each(Session::request);

    let start = Instant::now();
    cluster.write(&[with(POD_6), bystander.clone()]);
    are_reset(open);
    for (client, to) in &entrances {
        assert_eq!(client.reach(Tcp, *to).pod, POD_6.name, "{} reconnects to {to}", client.name());
    }
    let took = start.elapsed();
    eprintln!("{} clients reconnected {took:?} after the change", entrances.len());
    assert!(took < PROMPT, "{took:?}");
    others.iter_mut().for_each(Session::still_works);
    assert_eq!(ended(&cluster), entrances.len(), "each is counted once");
}

pub(super) fn connections_of_others_and_of_endpoints_that_are_left_stay(cluster: Cluster) {
    let moved = Service::new("moved", 61).annotation(END_STALE_CONNECTIONS, "true");
    let plain = Service::new("plain", 62);
    let with = |left: &[golden::cluster::Endpoint], moved_to: Pod| {
        let left = [ready(POD_6)].into_iter().chain(left.iter().cloned());
        let [moved, plain] = [&moved, &plain].map(|service| service.clone().endpoints([ready(moved_to)]));
        vec![web().endpoints(left), moved, plain]
    };
    let only = |pod| {
        vec![
            web().endpoints([ready(pod)]),
            moved.clone().endpoints([ready(pod)]),
            plain.clone().endpoints([ready(pod)]),
        ]
    };
    let cluster = cluster.running(&only(POD_5));
    let (mut left, mut others) = (sessions(&cluster, &web(), POD_5), sessions(&cluster, &plain, POD_5));
    for state in [terminating(POD_5), stopping(POD_5), unready(POD_5)] {
        cluster.write(&only(POD_5));
        eventually("new connections go to the old endpoint", PROMPT, || {
            Family::BOTH.iter().all(|family| {
                cluster.pod(POD_9).attempt(Tcp, moved.address(*family)).is_ok_and(|answer| answer.pod == POD_5.name)
            })
        });
        let gone = sessions(&cluster, &moved, POD_5);
        cluster.write(&with(&[state], POD_6));
        are_reset(gone);
        left.iter_mut().chain(&mut others).for_each(Session::still_works);
    }
}

pub(super) fn connections_end_once_an_endpoint_can_reset_them(cluster: Cluster) {
    let cluster = cluster.running(&[web().endpoints([ready(POD_5)])]);
    let open = sessions(&cluster, &web(), POD_5);
    cluster.unplug(POD_5);
    cluster.write(&[web()]);
    std::thread::sleep(PASS);
    assert_eq!(ended(&cluster), 0);
    cluster.write(&[web().endpoints([ready(POD_6)])]);
    are_reset(open);
}

pub(super) fn a_start_ends_connections_to_endpoints_that_went_meanwhile(cluster: Cluster) {
    let cluster = cluster.running(&[web().endpoints([ready(POD_5)])]);
    let open = sessions(&cluster, &web(), POD_5);
    cluster.unplug(POD_5);
    cluster.kill();
    cluster.write(&[web().endpoints([ready(POD_6)])]);
    cluster.start();
    are_reset(open);
}

pub(super) fn udp_flows_of_terminating_endpoints_stay_if_asked(cluster: Cluster) {
    let [dns, plain] = [Service::new("dns", 61), Service::new("plain", 62)].map(|service| service.protocol("UDP"));
    let dns = dns.annotation(UDP_CONNECTION_HANDLING, "PreserveDuringTermination");
    let with = |pods: &[golden::cluster::Endpoint]| {
        [&dns, &plain].map(|service| service.clone().endpoints(pods.iter().cloned()))
    };
    let cluster = cluster.running(&with(&[ready(POD_5)]));
    let flows = |service: &Service| -> Vec<_> {
        Family::BOTH.iter().map(|family| cluster.pod(POD_9).flow(service.address(*family))).collect()
    };
    let (kept, moving) = (flows(&dns), flows(&plain));
    let at = |flows: &[golden::cluster::Flow], pod: Pod| {
        flows.iter().all(|flow| flow.attempt().is_ok_and(|answer| answer.pod == pod.name))
    };
    assert!(at(&kept, POD_5) && at(&moving, POD_5));
    cluster.write(&with(&[stopping(POD_5), ready(POD_6)]));
    eventually("flows of the Service that does not ask move", PROMPT, || at(&moving, POD_6));
    assert!(at(&kept, POD_5), "the terminating endpoint keeps its flows");
    assert!(at(&flows(&dns), POD_6), "and gets no new ones");
    cluster.write(&with(&[ready(POD_6)]));
    eventually("once it is gone they move", PROMPT, || at(&kept, POD_6));
}

/// A Service that is deleted asks for nothing, and its pods may be alive; the one that is made anew asks again.
pub(super) fn connections_of_a_deleted_service_stay_until_it_is_made_anew_without_their_endpoint(cluster: Cluster) {
    let cluster = cluster.running(&[web().endpoints([ready(POD_5)])]);
    let mut open = sessions(&cluster, &web(), POD_5);
    cluster.write(&[]);
    eventually("the Service is gone", PROMPT, || {
        Family::BOTH.iter().all(|family| cluster.pod(POD_9).attempt(Tcp, web().address(*family)).is_err())
    });
    std::thread::sleep(PASS);
    open.iter_mut().for_each(Session::still_works);
    assert_eq!(ended(&cluster), 0);
    cluster.write(&[web().endpoints([ready(POD_6)])]);
    are_reset(open);
}

/// The entry of an association is deleted: its next packet goes to an endpoint that is left.
pub(super) fn sctp_associations_leave_an_endpoint_that_is_gone(cluster: Cluster) {
    const FROM: u16 = 4001;
    let [asks, plain] =
        [64, 65].map(|number| Service::new(if number == 64 { "sigtran" } else { "plain" }, number).protocol("SCTP"));
    let asks = asks.annotation(END_STALE_CONNECTIONS, "true");
    let with = |pod| [&asks, &plain].map(|service| service.clone().endpoints([ready(pod)]));
    let cluster = cluster.running(&with(POD_5));
    let sinks = |family| [POD_5, POD_6].map(|pod| cluster.sctp_sink(pod, family));
    let goes_to = |family, service: &Service| {
        let sinks = sinks(family);
        cluster.pod(POD_9).send_sctp_init(FROM, service.address(family));
        sinks.map(|sink| sink.receive(Duration::from_millis(500)).is_some())
    };
    for family in Family::BOTH {
        for service in [&asks, &plain] {
            assert_eq!(goes_to(family, service), [true, false], "{family:?} {}", service.full_name());
        }
    }
    cluster.write(&with(POD_6));
    eventually("each association of the Service that asks is ended", PROMPT, || ended(&cluster) == 2);
    for family in Family::BOTH {
        assert_eq!(goes_to(family, &asks), [false, true], "{family:?}: to the endpoint that is left");
        assert_eq!(goes_to(family, &plain), [true, false], "{family:?}: others stay");
    }
}
