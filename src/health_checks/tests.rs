//! Health checks of Services, on real sockets of loopback addresses.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use ipnet::IpNet;

use super::page::{LocalEndpoints, handler};
use super::*;
use crate::events::event_queue;
use crate::http::serve::{ServerTimeouts, listen};

const CAPACITY: usize = 4;

fn unserved() -> IntGauge {
    IntGauge::new("unserved", "unserved").expect("a gauge")
}

/// Health check servers on a node whose addresses the test sets.
struct Node {
    servers: HealthCheckServers,
    addresses: Arc<Mutex<Vec<IpAddr>>>,
    listen: NodePortMatch,
}

fn ip(last: u8) -> IpAddr {
    Ipv4Addr::new(127, 0, 77, last).into()
}

/// A port that is free at the moment.
fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.77.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

fn name(name: &str) -> NamespacedName {
    NamespacedName::new("ns", name)
}

/// Each test uses its own addresses, so that ports do not collide.
fn node(health: Option<Arc<Health>>, addresses: &[IpAddr]) -> Node {
    let addresses = Arc::new(Mutex::new(addresses.to_vec()));
    let shared = addresses.clone();
    let ask: ListAddresses = Box::new(move |_| Ok(shared.lock().expect("unpoisoned").clone()));
    let clients = (ConnectionLimiter::new(50, ServerTimeouts::default()), CAPACITY);
    let servers = HealthCheckServers::new(health, ask, clients, event_queue().0, unserved());
    let network: IpNet = "127.0.77.0/24".parse().expect("a network");
    Node { servers, addresses, listen: NodePortMatch::Within(vec![network]) }
}

impl Node {
    async fn report(&mut self, all: bool, services: &[(&str, Option<(u16, usize)>)]) {
        let check = |(port, local_endpoints)| HealthCheck { port, local_endpoints };
        let services = services.iter().map(|(service, count)| (name(service), count.map(check))).collect();
        let checks = HealthChecks { all, services, listen: self.listen.clone() };
        self.servers.apply(IpFamily::V4, checks).await;
    }

    fn failed(&self) -> Vec<String> {
        self.servers.failed.iter().map(|(name, why)| format!("{name}: {why}")).collect()
    }
}

/// Status, weight and body; `None` if nothing listens.
async fn ask(address: IpAddr, port: u16) -> Option<(u16, String, String)> {
    let ask = move || {
        let mut client = TcpStream::connect((address, port)).ok()?;
        client.write_all(b"GET /any HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("to send");
        let mut answer = String::new();
        client.read_to_string(&mut answer).expect("an answer");
        let weight = answer.split("X-Load-Balancing-Endpoint-Weight: ").nth(1)?.split('\r').next()?.to_owned();
        let status = answer.split(' ').nth(1)?.parse().ok()?;
        Some((status, weight, answer.split("\r\n\r\n").nth(1)?.to_owned()))
    };
    tokio::task::spawn_blocking(ask).await.expect("no panic")
}

async fn status(address: IpAddr, port: u16) -> Option<u16> {
    ask(address, port).await.map(|(status, ..)| status)
}

#[tokio::test]
async fn a_service_is_served_from_the_sync_that_brings_it_to_the_one_that_takes_it() {
    let (mut node, port, other) = (node(None, &[ip(1)]), free_port(), free_port());
    node.report(true, &[("web", Some((port, 0)))]).await;
    let (code, weight, body) = ask(ip(1), port).await.expect("it is served");
    assert_eq!((code, &*weight), (503, "0"));
    assert!(body.contains("\"localEndpoints\": 0,\n\t\"serviceProxyHealthy\": true"), "{body}");
    node.report(false, &[("web", Some((port, 3)))]).await;
    let (code, weight, _) = ask(ip(1), port).await.expect("it is served");
    assert_eq!((code, &*weight), (200, "3"));
    // Reports about other Services do not affect this one.
    node.report(false, &[("other", None)]).await;
    assert_eq!(status(ip(1), port).await, Some(200));
    node.report(false, &[("web", Some((other, 3)))]).await;
    assert_eq!((status(ip(1), port).await, status(ip(1), other).await), (None, Some(200)));
    // A full report removes Services that are not in it.
    node.report(true, &[]).await;
    assert_eq!(status(ip(1), other).await, None);
}

#[tokio::test]
async fn a_port_may_go_from_one_service_to_another_in_one_sync() {
    let (mut node, a, b) = (node(None, &[ip(2)]), free_port(), free_port());
    node.report(true, &[("a", Some((a, 1))), ("b", Some((b, 2)))]).await;
    node.report(false, &[("a", Some((b, 1))), ("b", Some((a, 2)))]).await;
    assert_eq!(ask(ip(2), a).await.expect("it is served").1, "2");
    assert_eq!(ask(ip(2), b).await.expect("it is served").1, "1");
    assert_eq!(node.failed(), [] as [&str; 0]);
}

#[tokio::test]
async fn a_taken_port_is_named_with_its_service_and_tried_again_with_the_next_sync() {
    let (mut node, port, fine) = (node(None, &[ip(3)]), free_port(), free_port());
    let taken = std::net::TcpListener::bind((ip(3), port)).expect("the port");
    node.report(true, &[("web", Some((port, 1))), ("fine", Some((fine, 1)))]).await;
    let failed = node.failed();
    assert!(matches!(&failed[..], [one] if one.starts_with(&format!("ns/web: 127.0.77.3:{port}: "))), "{failed:?}");
    assert_eq!(status(ip(3), fine).await, Some(200));
    drop(taken);
    node.report(false, &[]).await;
    assert_eq!((status(ip(3), port).await, node.failed().len()), (Some(200), 0));
}

#[tokio::test]
async fn sockets_follow_the_addresses_of_the_node() {
    let (mut node, port) = (node(None, &[]), free_port());
    node.report(true, &[("web", Some((port, 1)))]).await;
    assert!(node.servers.families[&IpFamily::V4].no_address, "this is worth a line in the log");
    let set = |node: &Node, addresses: &[IpAddr]| *node.addresses.lock().expect("unpoisoned") = addresses.to_vec();
    let outside: IpAddr = Ipv4Addr::new(127, 0, 78, 1).into();
    set(&node, &[ip(4), ip(5), outside]);
    node.report(false, &[]).await;
    let all = [ip(4), ip(5), outside];
    let mut answers = Vec::new();
    for address in all {
        answers.push(status(address, port).await);
    }
    assert_eq!(answers, [Some(200), Some(200), None]);
    set(&node, &[ip(5), ip(6)]);
    node.servers.update(&[IpFamily::V4], BTreeSet::new()).await;
    assert_eq!(
        (status(ip(4), port).await, status(ip(5), port).await, status(ip(6), port).await),
        (None, Some(200), Some(200))
    );
    // A change of nodePortAddresses counts as an address change.
    node.listen = NodePortMatch::Within(vec!["127.0.77.6/32".parse().expect("a network")]);
    node.report(false, &[]).await;
    assert_eq!((status(ip(5), port).await, status(ip(6), port).await), (None, Some(200)));
}

#[tokio::test]
async fn an_unhealthy_proxy_responds_503_whatever_the_node() {
    let health = Arc::new(Health::new(Duration::ZERO, false));
    health.started(IpFamily::V4);
    let (mut node, port) = (node(Some(health.clone()), &[ip(7)]), free_port());
    node.report(true, &[("web", Some((port, 1)))]).await;
    assert_eq!(status(ip(7), port).await, Some(200), "the node's taints do not count");
    health.queued(IpFamily::V4);
    let (code, weight, body) = ask(ip(7), port).await.expect("it is served");
    assert_eq!((code, &*weight), (503, "1"));
    assert!(body.ends_with("\"serviceProxyHealthy\": false\n}"), "{body}");
}

#[tokio::test]
async fn clients_connected_when_a_service_is_deleted_get_503() {
    let (endpoints, closing) = (Arc::<LocalEndpoints>::default(), Arc::<AtomicBool>::default());
    endpoints.set(IpFamily::V4, 2);
    let page = handler(&name("web"), endpoints, closing.clone(), None);
    let request = hyper::Request::get("/").body(bytes::Bytes::new()).expect("a request");
    assert_eq!(page(&request).status(), 200);
    closing.store(true, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(page(&request).status(), 503);
}

#[tokio::test]
async fn sockets_beyond_the_capacity_are_named_counted_and_opened_when_there_is_room() {
    let mut node = node(None, &[ip(9)]);
    let ports: Vec<u16> = std::iter::repeat_with(free_port).take(CAPACITY + 1).collect();
    let services: Vec<String> = (0..=CAPACITY).map(|number| format!("web-{number}")).collect();
    let all: Vec<_> = services.iter().zip(&ports).map(|(name, port)| (name.as_str(), Some((*port, 1)))).collect();
    node.report(true, &all).await;
    let failed = node.failed();
    assert!(matches!(&failed[..], [one] if one.contains("web-4") && one.contains("RLIMIT_NOFILE")), "{failed:?}");
    assert_eq!(node.servers.unserved.get(), 1);
    assert_eq!((status(ip(9), ports[0]).await, status(ip(9), ports[CAPACITY]).await), (Some(200), None));
    node.report(false, &[(&services[0], None)]).await;
    assert_eq!((status(ip(9), ports[0]).await, status(ip(9), ports[CAPACITY]).await), (None, Some(200)));
    assert_eq!((node.servers.unserved.get(), node.failed().len()), (0, 0));
}

#[tokio::test]
async fn port_taken_in_one_family_is_served_in_the_other_and_in_both_when_it_is_free() {
    let (mut node, port) = (node(None, &[]), free_port());
    node.listen = NodePortMatch::All;
    let taken = listen(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port), false).expect("the port in IPv6");
    let check = HealthCheck { port, local_endpoints: 1 };
    for family in IpFamily::ALL {
        let checks =
            HealthChecks { all: true, services: [(name("web"), Some(check))].into(), listen: NodePortMatch::All };
        node.servers.apply(family, checks).await;
    }
    let failed = node.failed();
    assert!(matches!(&failed[..], [one] if one.starts_with(&format!("ns/web: [::]:{port}: "))), "{failed:?}");
    assert_eq!(status(Ipv4Addr::LOCALHOST.into(), port).await, Some(200));
    drop(taken);
    node.report(false, &[]).await;
    assert_eq!((status(Ipv6Addr::LOCALHOST.into(), port).await, node.failed().len()), (Some(200), 0));
    assert_eq!(node.servers.shared.open, 2);
}

#[tokio::test(start_paused = true)]
async fn failed_port_is_retried_every_half_minute_while_only_the_other_family_reports() {
    let (node, port) = (node(None, &[ip(10)]), free_port());
    let taken = std::net::TcpListener::bind((ip(10), port)).expect("the port");
    let (sender, reports) = tokio::sync::mpsc::unbounded_channel();
    let running = tokio::spawn(node.servers.run(reports));
    let report = |all, services: &[(&str, HealthCheck)]| {
        let services = services.iter().map(|(service, check)| (name(service), Some(*check))).collect();
        HealthChecks { all, services, listen: node.listen.clone() }
    };
    sender
        .send((IpFamily::V4, report(true, &[("web", HealthCheck { port, local_endpoints: 1 })])))
        .expect("it listens");
    tokio::time::sleep(Duration::from_secs(1)).await;
    drop(taken);
    for _ in 0..8 {
        sender.send((IpFamily::V6, report(false, &[]))).expect("it listens");
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    let client = TcpStream::connect((ip(10), port));
    assert!(client.is_ok(), "{client:?}");
    drop(sender);
    running.await.expect("no panic");
}

#[tokio::test]
async fn all_servers_stop_when_the_last_sender_is_dropped() {
    let (node, port) = (node(None, &[ip(8)]), free_port());
    let (sender, reports) = tokio::sync::mpsc::unbounded_channel();
    let running = tokio::spawn(node.servers.run(reports));
    let check = HealthCheck { port, local_endpoints: 1 };
    let checks = HealthChecks { all: true, services: [(name("web"), Some(check))].into(), listen: node.listen };
    sender.send((IpFamily::V4, checks)).expect("it listens");
    let served = async {
        while status(ip(8), port).await.is_none() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), served).await.expect("it is served");
    drop(sender);
    running.await.expect("no panic");
    assert_eq!(status(ip(8), port).await, None);
}
