//! The kernel's conntrack table, in a network namespace per test, with flows of real sockets. Needs root.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};

use netfilter::IpFamily;
use netfilter::kernel::{ConntrackTable, Deletions, SystemConntrack, SystemHost};
use netfilter::{Flow, conntrack};
use proxier::cleaner::FlowCleaner;
use proxier::model::endpoint::NodeHint;
use proxier::model::{
    Endpoints, NamespacedName, NodeInfo, NodePortAddresses, Protocol, Scope, ServiceExtensions, ServicePort,
    ServicePortName, Slice, SliceEndpoint, SlicePort, Snapshot,
};

use crate::common::namespace::{in_namespace, run};

/// The addresses of one family.
struct FamilyAddresses {
    family: IpFamily,
    /// Any address.
    any: &'static str,
    /// Two servers.
    servers: [&'static str; 2],
    /// A Service's address whose endpoint is the first server.
    service: &'static str,
}

const BOTH_FAMILIES: [FamilyAddresses; 2] = [
    FamilyAddresses {
        family: IpFamily::V4,
        any: "0.0.0.0:0",
        servers: ["10.0.0.5:8053", "10.0.0.6:8053"],
        service: "10.96.0.10:53",
    },
    FamilyAddresses {
        family: IpFamily::V6,
        any: "[::]:0",
        servers: ["[fd00::5]:8053", "[fd00::6]:8053"],
        service: "[fd00:96::10]:53",
    },
];

/// Runs a test in a namespace of its own: addresses on `lo`, and a rule that makes Services work.
fn with_services(test: impl FnOnce() + Send + 'static) {
    in_namespace(|| {
        for address in ["10.0.0.5/32", "10.0.0.6/32", "10.96.0.10/32", "fd00::5/128", "fd00::6/128", "fd00:96::10/128"]
        {
            run(&format!("ip addr add {address} dev lo nodad"));
        }
        run("iptables-nft -t nat -A OUTPUT -p udp -d 10.96.0.10 --dport 53 -j DNAT --to-destination 10.0.0.5:8053");
        run("ip6tables-nft -t nat -A OUTPUT -p udp -d fd00:96::10 --dport 53 -j DNAT --to-destination [fd00::5]:8053");
        test();
    });
}

/// What `conntrack -L` prints of a protocol: only the fields that a [`Flow`] prints too, in order.
fn listed(family: IpFamily, protocol: &str) -> Vec<String> {
    let family = family.name().to_lowercase();
    let text = run(&format!("conntrack -L -f {family} -p {protocol}"));
    let kept = |word: &&str| ["src=", "dst=", "sport=", "dport="].iter().any(|field| word.starts_with(field));
    let line = |line: &str| {
        let mut start = line.split_whitespace();
        let (name, number) = (start.next().expect("a name"), start.next().expect("a number"));
        format!("{name:<8} {number} {}", start.filter(kept).collect::<Vec<_>>().join(" "))
    };
    let mut lines: Vec<String> = text.lines().map(line).collect();
    lines.sort();
    lines
}

fn delete(family: IpFamily, mut unwanted: impl FnMut(&Flow) -> bool) -> Deletions {
    let deleted = SystemConntrack.delete(family, conntrack::UDP, &mut unwanted).expect("a table");
    assert!(deleted.failed == 0 && !deleted.incomplete, "{deleted:?}");
    deleted
}

/// The UDP flows of a family, as we see them.
fn seen(family: IpFamily) -> Vec<Flow> {
    let mut flows = Vec::new();
    delete(family, |flow| {
        flows.push(*flow);
        false
    });
    flows.sort_by_key(Flow::to_string);
    flows
}

fn send(from: &UdpSocket, to: &str) {
    from.send_to(b"x", to.parse::<SocketAddr>().expect("an address")).unwrap_or_else(|e| panic!("{to}: {e}"));
}

fn socket(address: &str) -> UdpSocket {
    UdpSocket::bind(address).unwrap_or_else(|e| panic!("{address}: {e}"))
}

fn redirected(flow: &Flow) -> bool {
    flow.redirected()
}

#[test]
fn udp_flows_of_one_family_are_seen_as_conntrack_prints_them() {
    with_services(|| {
        let _servers = BOTH_FAMILIES.map(|place| place.servers.map(socket));
        for FamilyAddresses { family, any, servers, service } in BOTH_FAMILIES {
            let listener = TcpListener::bind(servers[0]).expect("a listener");
            let _connection = TcpStream::connect(listener.local_addr().expect("bound")).expect("a connection");
            let client = socket(any);
            send(&client, service);
            send(&client, servers[1]);
            let lines: Vec<String> = seen(family).iter().map(Flow::to_string).collect();
            assert_eq!(lines, listed(family, "udp"));
            let mut to: Vec<String> = seen(family).iter().map(|flow| flow.reply.source.to_string()).collect();
            to.sort();
            assert_eq!(to, servers, "one through the Service, one by itself: {lines:?}");
        }
    });
}

#[test]
fn only_unwanted_flows_are_deleted() {
    with_services(|| {
        let _servers = BOTH_FAMILIES.map(|place| place.servers.map(socket));
        for FamilyAddresses { any, servers, service, .. } in BOTH_FAMILIES {
            let client = socket(any);
            send(&client, service);
            send(&client, servers[1]);
        }
        for FamilyAddresses { family, servers, .. } in BOTH_FAMILIES {
            assert_eq!(delete(family, redirected).flows, 1);
            assert_eq!(listed(family, "udp").len(), 1);
            assert_eq!(seen(family)[0].original.destination.to_string(), servers[1]);
            assert_eq!(delete(family, redirected).flows, 0, "nothing is left to delete");
        }
    });
}

#[test]
fn many_flows_go_in_one_pass() {
    with_services(|| {
        let client = socket("0.0.0.0:0");
        let (other, many) = (socket("10.0.0.5:8053"), 5_000);
        for port in 0..many {
            send(&client, &format!("127.0.0.1:{}", 10_000 + port));
        }
        send(&client, "10.0.0.5:8053");
        let mut asked = 0;
        let deleted = delete(IpFamily::V4, |flow| {
            asked += 1;
            flow.original.destination.ip().is_loopback()
        });
        assert!(deleted.flows >= many && asked > many, "{deleted:?} of {asked}");
        assert_eq!(listed(IpFamily::V4, "udp").len(), 1);
        drop(other);
    });
}

#[test]
fn flows_that_went_by_themselves_count_as_deleted() {
    with_services(|| {
        let _server = socket("10.0.0.5:8053");
        send(&socket("0.0.0.0:0"), "10.96.0.10:53");
        let deleted = delete(IpFamily::V4, |_| {
            run("conntrack -F");
            true
        });
        assert_eq!(deleted.flows, 1);
    });
}

#[test]
fn flows_in_zones_are_deleted_too() {
    with_services(|| {
        run("iptables-nft -t raw -A OUTPUT -p udp --dport 9000 -j CT --zone 7");
        run("iptables-nft -t raw -A PREROUTING -p udp --dport 9000 -j CT --zone 7");
        let (_server, client) = (socket("10.0.0.6:9000"), socket("0.0.0.0:0"));
        send(&client, "10.0.0.6:9000");
        assert_eq!(delete(IpFamily::V4, |_| true).flows, 1);
        assert_eq!(seen(IpFamily::V4), []);
    });
}

/// One Service port with a node port and one endpoint.
struct Dns {
    ports: BTreeMap<ServicePortName, ServicePort>,
    endpoints: Endpoints,
    node: NodeInfo,
}

impl Dns {
    fn new(cluster_ip: &str, endpoint: SocketAddr) -> Self {
        let name =
            ServicePortName { service: NamespacedName::new("ns", "dns"), port: "dns".into(), protocol: Protocol::Udp };
        let endpoint_of = SliceEndpoint {
            ip: endpoint.ip(),
            ready: true,
            serving: true,
            terminating: false,
            local: false,
            node_hint: NodeHint::Elsewhere,
            zone_hints: None,
        };
        let port = SlicePort { name: name.port.clone(), protocol: name.protocol, port: endpoint.port() };
        let slice = Slice { ports: [port].into(), endpoints: [endpoint_of].into() };
        let (mut endpoints, mut ports) = (Endpoints::default(), BTreeMap::new());
        endpoints.insert(name.service.clone(), "slice".into(), slice);
        let port = ServicePort {
            cluster_ip: cluster_ip.parse().expect("an address"),
            port: 53,
            node_port: 30_053,
            external_ips: Box::default(),
            load_balancer_vips: Box::default(),
            source_ranges: Box::default(),
            affinity_seconds: None,
            internal_local: false,
            external_local: false,
            health_check_node_port: 0,
            hidden_external_ips: false,
            extensions: ServiceExtensions::default(),
        };
        ports.insert(name, port);
        Self { ports, endpoints, node: NodeInfo::default() }
    }

    fn clean(&self, cleaner: &mut FlowCleaner, node_ip: &str, scope: &Scope) -> Option<usize> {
        let node_ip = node_ip.parse().expect("an address");
        let Self { ports, endpoints, node } = self;
        let snapshot = Snapshot { ports, endpoints, node, node_ip, service_cidrs: &[] };
        cleaner.clean(&snapshot, scope, BTreeSet::new()).map(|cleaned| cleaned.deleted)
    }
}

#[test]
fn flows_at_an_address_that_the_node_gave_up_are_deleted() {
    for (at, family) in IpFamily::ALL.into_iter().enumerate() {
        with_services(move || {
            let iptables = ["iptables-nft", "ip6tables-nft"][at];
            let ips = [["192.0.2.1", "192.0.2.2"], ["2001:db8::1", "2001:db8::2"]][at];
            let place = &BOTH_FAMILIES[at];
            for ip in [ips[0], ips[1], "fe80::99/64"] {
                run(&format!("ip addr add {ip} dev lo"));
            }
            run(&format!(
                "{iptables} -t nat -A OUTPUT -p udp --dport 30053 -m addrtype --dst-type LOCAL -j DNAT --to-destination {}",
                place.servers[0]
            ));
            let (_server, client) = (socket(place.servers[0]), socket(place.any));
            let node_port = |ip: &str| SocketAddr::new(ip.parse().expect("an address"), 30_053).to_string();
            for ip in ips {
                send(&client, &node_port(ip));
            }
            let endpoint = place.servers[0].parse().expect("an address");
            let dns = Dns::new(["10.96.0.99", "fd00:96::99"][at], endpoint);
            let everywhere = NodePortAddresses::default();
            let mut cleaner = FlowCleaner::new(family, everywhere, Box::new(SystemConntrack), Box::new(SystemHost));
            assert_eq!(dns.clean(&mut cleaner, ips[0], &Scope::Full), Some(0), "they go where they should");
            // As the interface of a pod that ends.
            run("ip addr del fe80::99/64 dev lo");
            assert!(!cleaner.lost_node_port_address(ips[0].parse().expect("an address")), "no full sync for that");
            run(&format!("ip addr del {} dev lo", ips[1]));
            assert!(cleaner.lost_node_port_address(ips[0].parse().expect("an address")));
            assert_eq!(dns.clean(&mut cleaner, ips[0], &Scope::Full), Some(1));
            let left = seen(family);
            assert!(left.len() == 1 && left[0].original.destination.ip().to_string() == ips[0], "{left:?}");
            assert!(!cleaner.lost_node_port_address(ips[0].parse().expect("an address")), "once is enough");
        });
    }
}
