//! Causes at an endpoint: it does not answer, or no process listens there. Real connections and the diagnosis must agree.

use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::time::Duration;

use golden::cluster::Protocol::{Tcp, Udp};
use golden::cluster::{Cluster, FAR_5, Family, POD_5, POD_6, Service, eventually, ready};
use golden::flavour::Flavour;
use serde_json::{Value, json};

use super::node::{json as parsed, printed};

const BINARY: &str = env!("CARGO_BIN_EXE_kube-proxy");
const SOON: Duration = Duration::from_secs(30);
/// The modes, and the flavour of iptables beside.
const MODES: [(&str, Flavour); 3] =
    [("iptables", Flavour::Nft), ("iptables", Flavour::Legacy), ("nftables", Flavour::Nft)];

fn cluster((mode, flavour): (&str, Flavour), services: &[Service]) -> Cluster {
    Cluster::new(flavour, Path::new(BINARY)).configured("mode", json!(mode)).running(services)
}

/// The causes that `diagnose` finds of connections of the node to an address, its exit status, and the text it prints.
fn diagnose(cluster: &Cluster, service: &Service, family: Family) -> (Vec<String>, i32, String) {
    let protocol = if service.full_name().ends_with("udp") { "udp" } else { "tcp" };
    super::settings::diagnose(cluster, &format!("{}/{protocol} --from host", service.address(family)))
}

#[track_caller]
fn is_healthy(cluster: &Cluster, service: &Service, family: Family) {
    let (causes, status, said) = diagnose(cluster, service, family);
    assert_eq!((causes, status), (vec![], 0), "{said}");
}

#[test]
fn endpoint_whose_route_is_lost_is_named_although_it_listens() {
    let service = Service::new("web", 20).endpoints([ready(POD_5), ready(POD_6)]);
    for mode in MODES {
        let cluster = cluster(mode, std::slice::from_ref(&service));
        for family in Family::BOTH {
            is_healthy(&cluster, &service, family);
            let flag = if family == Family::V4 { "-4" } else { "-6" };
            let _ = cluster.on_node(&format!("ip {flag} route del {} dev {}", POD_5.address.of(family), POD_5.name));
            let (causes, status, said) = diagnose(&cluster, &service, family);
            assert_eq!((&*causes, status), (&["no-route".to_owned()][..], 1), "{mode:?}: {said}");
            assert!(said.contains("50 % of connections fail"), "{said}");
        }
        let trace = cluster.on_node(&format!("{BINARY} trace --from host --to {}", service.address(Family::V4)));
        assert!(trace.contains("delivered"), "the rules are in order: {trace}");
    }
}

#[test]
fn pod_that_does_not_answer_neighbour_discovery_is_named() {
    for mode in MODES {
        let service = Service::new("web", 20).endpoints([ready(POD_5)]);
        let cluster = cluster(mode, std::slice::from_ref(&service));
        for family in Family::BOTH {
            let connect = || cluster.host().attempt(Tcp, service.address(family));
            assert_eq!(connect().map(|answer| answer.pod).as_deref(), Ok(POD_5.name));
            is_healthy(&cluster, &service, family);
        }
        // The pod has lost its addresses, as one whose processes were killed and whose link stayed.
        cluster.in_pod(POD_5, "ip addr flush dev eth0");
        for family in Family::BOTH {
            let flag = if family == Family::V4 { "-4" } else { "-6" };
            let _ = cluster.on_node(&format!("ip {flag} neigh flush dev {}", POD_5.name));
            assert!(cluster.host().attempt(Tcp, service.address(family)).is_err(), "nothing answers");
            let (causes, status, said) = diagnose(&cluster, &service, family);
            assert_eq!((&*causes, status), (&["neighbour-unreachable".to_owned()][..], 1), "{mode:?}: {said}");
            let words = format!("endpoint {} does not answer", POD_5.address.at(family, 8080));
            assert!(said.contains(&words) && said.contains(&format!("on {}", POD_5.name)), "{said}");
        }
    }
}

#[test]
fn next_hop_that_does_not_answer_is_named() {
    let service = Service::new("web", 20).endpoints([ready(FAR_5)]);
    let cluster = cluster(MODES[2], std::slice::from_ref(&service));
    for family in Family::BOTH {
        assert!(cluster.host().attempt(Tcp, service.address(family)).is_ok());
        is_healthy(&cluster, &service, family);
    }
    // The node of the pod is gone.
    cluster.in_pod(FAR_5, "ip addr flush dev eth0");
    for (family, flag) in [(Family::V4, "-4"), (Family::V6, "-6")] {
        let _ = cluster.on_node(&format!("ip {flag} neigh flush dev eth0"));
        assert!(cluster.host().attempt(Tcp, service.address(family)).is_err(), "nothing answers");
        let (causes, status, said) = diagnose(&cluster, &service, family);
        assert_eq!((&*causes, status), (&["neighbour-unreachable".to_owned()][..], 1), "{said}");
        assert!(said.contains("the next hop") && said.contains("does not answer"), "{said}");
    }
}

#[test]
fn port_on_which_no_process_listens_is_named_with_those_that_are_open() {
    for mode in MODES {
        let services = [
            Service::new("web", 20).target_port(9090).endpoints([ready(POD_5)]),
            Service::new("web-udp", 21).protocol("UDP").target_port(9090).endpoints([ready(POD_5)]),
        ];
        let cluster = cluster(mode, &services);
        for (service, protocol) in services.iter().zip([Tcp, Udp]) {
            for family in Family::BOTH {
                assert!(cluster.host().attempt(protocol, service.address(family)).is_err());
                let (causes, status, said) = diagnose(&cluster, service, family);
                assert_eq!((&*causes, status), (&["not-listening".to_owned()][..], 1), "{mode:?}: {said}");
                let at = POD_5.address.at(family, 9090);
                assert!(said.contains(&format!("no process listens on {at}")), "{said}");
                assert!(said.contains("in its network namespace (process ") && said.contains("port 8080"), "{said}");
            }
        }
        cluster.serve(POD_5, 9090);
        for (service, protocol) in services.iter().zip([Tcp, Udp]) {
            for family in Family::BOTH {
                assert!(cluster.host().attempt(protocol, service.address(family)).is_ok());
                is_healthy(&cluster, service, family);
            }
        }
    }
}

#[test]
fn sockets_that_do_not_take_the_packets_of_a_service_are_told_from_those_that_do() {
    let services = [
        Service::new("web", 20).target_port(9090).endpoints([ready(POD_5)]),
        Service::new("web-udp", 21).protocol("UDP").target_port(9090).endpoints([ready(POD_5)]),
    ];
    let cluster = cluster(MODES[0], &services);
    let [web, udp] = &services;
    let in_pod = |bound: &str| cluster.enter_pod(POD_5, || TcpListener::bind(bound).expect("a port"));
    // Loopback alone.
    let (local, local6) = (in_pod("127.0.0.1:9090"), in_pod("[::1]:9090"));
    for (family, only) in [(Family::V4, "127.0.0.1"), (Family::V6, "::1")] {
        let (causes, status, said) = diagnose(&cluster, web, family);
        assert_eq!((&*causes, status), (&["not-listening".to_owned()][..], 1), "{said}");
        assert!(said.contains("only") && said.contains(only), "{said}");
        assert!(cluster.host().attempt(Tcp, web.address(family)).is_err());
    }
    drop((local, local6));
    // A socket of both families.
    let both = in_pod("[::]:9090");
    Family::BOTH.iter().for_each(|family| is_healthy(&cluster, web, *family));
    drop(both);
    // One of IPv6 alone.
    let only = cluster.enter_pod(POD_5, || {
        let socket = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None).expect("a socket");
        socket.set_only_v6(true).expect("an option");
        socket.bind(&"[::]:9090".parse::<std::net::SocketAddr>().expect("an address").into()).expect("a port");
        socket.listen(8).expect("it listens");
        socket
    });
    is_healthy(&cluster, web, Family::V6);
    assert!(cluster.host().attempt(Tcp, web.address(Family::V4)).is_err());
    let (causes, status, said) = diagnose(&cluster, web, Family::V4);
    assert_eq!((&*causes, status), (&["not-listening".to_owned()][..], 1), "{said}");
    drop(only);
    // A UDP socket that takes packets of one client, and one bound to another interface: worth a look.
    let connected = cluster.enter_pod(POD_5, || {
        let socket = UdpSocket::bind("0.0.0.0:9090").expect("a port");
        socket.connect("10.244.1.1:5353").expect("connected");
        socket
    });
    let (causes, status, said) = diagnose(&cluster, udp, Family::V4);
    assert_eq!((&*causes, status), (&["not-listening?".to_owned()][..], 2), "{said}");
    assert!(said.contains("connected socket"), "{said}");
    drop(connected);
    let bound = cluster.enter_pod(POD_5, || {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        socket.bind_device(Some(b"lo")).expect("an interface");
        socket.bind(&"0.0.0.0:9090".parse::<std::net::SocketAddr>().expect("an address").into()).expect("a port");
        socket.listen(8).expect("it listens");
        socket
    });
    assert!(cluster.host().attempt(Tcp, web.address(Family::V4)).is_err());
    let (causes, status, said) = diagnose(&cluster, web, Family::V4);
    assert_eq!((&*causes, status), (&["not-listening?".to_owned()][..], 2), "{said}");
    drop(bound);
    // Rules in the pod's namespace that may take the packets to another port.
    cluster.in_pod(POD_5, "nft add table ip mesh");
    let (causes, status, said) = diagnose(&cluster, web, Family::V4);
    assert_eq!((&*causes, status), (&["not-listening?".to_owned()][..], 2), "{said}");
    assert!(said.contains("packet filter rules"), "{said}");
}

#[test]
fn endpoint_of_the_node_itself_is_read_in_its_own_namespace() {
    let mut node = golden::node::Node::new(BINARY);
    let api = node.api_server_with_web(&["192.0.2.77"]);
    for line in [
        "ip addr add 192.0.2.77/32 dev lo",
        "ip link add uplink type veth peer name far",
        "ip link set far up",
        "ip link set uplink up",
        "ip route add default dev uplink",
        "sysctl -q -w net.ipv4.ip_forward=1",
    ] {
        node.netns().run(line);
    }
    node.start(&["--master", &api.url(), "--proxy-mode", "iptables"]);
    node.until_endpoints("default/web:http", &["192.0.2.77:8080"]);
    let diagnose = || {
        let output =
            node.netns().command(BINARY).args(["diagnose", "default/web", "-o", "json"]).output().expect("it runs");
        let found = parsed(&output);
        let causes: Vec<Value> = found["findings"].as_array().cloned().unwrap_or_default();
        (causes.iter().map(|one| one["cause"].clone()).collect::<Vec<_>>(), found)
    };
    let (causes, found) = diagnose();
    assert!(causes.contains(&json!("not-listening")), "{found:#}");
    assert!(found.to_string().contains("no process listens on 192.0.2.77:8080/tcp on this node"), "{found:#}");
    let listener = node.netns().enter(|| TcpListener::bind("0.0.0.0:8080").expect("a port"));
    let (causes, found) = diagnose();
    assert!(!causes.contains(&json!("not-listening")), "{found:#}");
    drop(listener);
}

#[test]
fn without_rights_listeners_are_assumed() {
    let service = Service::new("web", 20).target_port(9090).endpoints([ready(POD_5), ready(POD_6)]);
    let cluster = cluster(MODES[2], std::slice::from_ref(&service));
    // What a container with the rights of kube-proxy has.
    let line = format!(
        "setpriv --bounding-set -all,+net_admin,+net_raw --inh-caps -all,+net_admin,+net_raw {BINARY} diagnose default/web"
    );
    let output = cluster.node().try_run(&line);
    let said = printed(&output);
    assert_eq!(output.status.code(), Some(0), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let assumed = "Assumed: a process listens at endpoint 10.244.1.5:9090, whose sockets were not read:";
    assert!(said.contains(assumed) && !said.contains("CAUSE"), "{said}");
}

#[test]
fn five_hundred_pods_are_read_within_a_second() {
    let service = Service::new("web", 20).target_port(9090).endpoints([ready(POD_5)]);
    let cluster = cluster(MODES[2], std::slice::from_ref(&service));
    let pods: Vec<golden::netns::Netns> = (0..500).map(|_| golden::netns::Netns::new()).collect();
    let mut lines = String::new();
    for (at, pod) in pods.iter().enumerate() {
        lines += &format!("link add many{at} type veth peer name eth0 netns {}\n", pod.pid());
    }
    std::fs::write(cluster.directory().join("many"), lines).expect("a file");
    let _ = cluster.on_node(&format!("ip -batch {}/many", cluster.directory().display()));
    eventually("all are read in time", SOON, || {
        let (causes, status, said) = diagnose(&cluster, &service, Family::V4);
        println!("{said}");
        (&*causes, status) == (&["not-listening".to_owned()][..], 1)
    });
}
