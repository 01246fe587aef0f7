//! Walks to virtual servers that forward in ways that no kube-proxy configures, and by what the kernel answered.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use netfilter::IpFamily;
use netfilter::ipvs::{Connections, Flags, Forward, RealServer, Scheduler, ServerKey, Statistics, TCP, VirtualServer};
use netfilter::route::{RouteDecision, RouteQuery};

use super::{ConnState, Node, Origin, Packet, RecentLists, Trace, Verdict};
use crate::rules::Ruleset;
use proxier::ipvs::{ObservedRealServer, ObservedServer, ObservedState};
use proxier::model::Protocol;

const SERVER: &str = "192.0.2.6:80";
const REAL: &str = "10.9.9.1:80";

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// A packet of this node to a server with one real server, at `real`. Without rules its mark is 0.
fn trace(forward: Forward, real: &str, marks: &[u32]) -> Trace {
    let key = ServerKey { address: address(SERVER), protocol: TCP };
    let scheduler = Scheduler::new("rr");
    let server = VirtualServer { key, scheduler, flags: Flags::default(), persistence: None };
    let real = RealServer { address: address(real), forward, weight: 1 };
    let (connections, statistics) = (Connections::default(), Statistics::default());
    let reals = BTreeMap::from([(real.address, ObservedRealServer { server: real, connections, statistics })]);
    let servers = BTreeMap::from([(key, ObservedServer { server, reals, statistics })]);
    let marks = marks.iter().map(|mark| (*mark, scheduler)).collect();
    let held = ObservedState { servers, marks, ..ObservedState::default() };
    let node = Node { addresses: vec![address("10.0.0.1:0").ip()], held, ..Node::default() };
    let packet = Packet {
        source: address("10.0.0.1:40000"),
        destination: key.address,
        protocol: Protocol::Tcp,
        origin: Origin::Host,
        state: ConnState::New,
    };
    Ruleset::new(IpFamily::V4).trace(&packet, &node, &RecentLists::new()).expect("a trace")
}

#[test]
fn servers_without_translation_are_distinguished() {
    for (forward, real, verdict) in [
        (Forward::Masquerade, REAL, Verdict::Delivered(address(REAL))),
        (Forward::Tunnel, REAL, Verdict::Forwarded(address(REAL), Forward::Tunnel)),
        (Forward::Route, REAL, Verdict::Forwarded(address(REAL), Forward::Route)),
        (Forward::Masquerade, "10.0.0.1:80", Verdict::Delivered(address("10.0.0.1:80"))),
        (Forward::Route, "10.0.0.1:80", Verdict::Untouched),
    ] {
        let trace = trace(forward, real, &[]);
        let [branch] = &trace.branches[..] else { panic!("{trace}") };
        assert_eq!((branch.outcome.verdict, branch.outcome.masqueraded), (verdict, false), "{forward:?} {real}");
        assert_eq!(branch.steps.len(), 2, "the virtual server and the real one");
        assert_eq!(branch.doubts, []);
    }
    let text = trace(Forward::Tunnel, REAL, &[]).to_string();
    assert!(text.starts_with("10.9.9.1:80 by tunnel:"), "{text}");
}

#[test]
fn servers_of_marks_are_doubts_where_a_packet_has_the_mark() {
    let doubts = |marks: &[u32]| trace(Forward::Masquerade, REAL, marks).branches[0].doubts.clone();
    assert_eq!(doubts(&[5]), []);
    let found = doubts(&[0]);
    assert!(found.len() == 1 && found[0].rule == "-A -f 0 -s rr", "{found:?}");
}

/// A packet of this node to 192.0.2.9:443.
fn sent() -> Packet {
    Packet {
        source: address("10.0.0.1:40000"),
        destination: address("192.0.2.9:443"),
        protocol: Protocol::Tcp,
        origin: Origin::Host,
        state: ConnState::New,
    }
}

fn through(rules: &str, node: &Node) -> Trace {
    let mut ruleset = Ruleset::new(IpFamily::V4);
    assert_eq!(ruleset.read(rules), []);
    ruleset.trace(&sent(), node, &RecentLists::new()).expect("a trace")
}

#[test]
fn a_match_on_sockets_is_certain_only_where_no_socket_has_the_destination() {
    let rules =
        |options: &str| format!("*mangle\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -m socket {options} -j DROP\nCOMMIT\n");
    let of = |sockets: Option<&[&str]>| {
        let sockets = sockets.map(|all| all.iter().map(|at| (6, address(at))).collect::<BTreeSet<_>>());
        Node { addresses: vec![address("10.0.0.1:0").ip()], sockets, ..Node::default() }
    };
    let certain = |options: &str, sockets| through(&rules(options), &of(sockets)).is_certain();
    assert!(certain("--transparent", Some(&["0.0.0.0:443", "192.0.2.9:80"])));
    assert!(!certain("--transparent", Some(&["192.0.2.9:443"])));
    assert!(!certain("--nowildcard", Some(&["0.0.0.0:443"])));
    assert!(!certain("--transparent", None), "sockets that were not read");
}

#[test]
fn routes_are_the_kernels_answers_for_the_mark() {
    let marked = "*mangle\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -j MARK --set-xmark 0x7/0xffffffff\nCOMMIT\n\
        *nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -o wg0 -j MASQUERADE\nCOMMIT\n";
    let query = |mark| RouteQuery {
        to: sent().destination.ip(),
        from: Some(sent().source.ip()),
        mark,
        type_of_service: 0,
        transport: (6, 40000, 443),
        in_interface: None,
    };
    let mut node = Node { addresses: vec![address("10.0.0.1:0").ip()], ..Node::default() };
    assert_eq!(through(marked, &node).routes, [query(0), query(7)].into(), "both are to be asked");
    node.route_answers.insert(query(0), Ok(RouteDecision::Leaves("eth0".to_owned())));
    node.route_answers.insert(query(7), Ok(RouteDecision::Leaves("wg0".to_owned())));
    let trace = through(marked, &node);
    assert!(trace.branches[0].outcome.masqueraded && trace.routes.is_empty(), "{trace}");
    node.route_answers.insert(query(7), Ok(RouteDecision::Dropped("a blackhole route")));
    let trace = through(marked, &node);
    let unrouted = trace.branches[0].unrouted.as_ref().map(|unrouted| unrouted.why);
    assert_eq!((trace.branches[0].outcome.verdict, unrouted), (Verdict::Dropped, Some("a blackhole route")));
    node.route_answers.insert(query(7), Err("no answer".to_owned()));
    assert!(!through(marked, &node).is_certain());
}
