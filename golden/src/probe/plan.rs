//! The questions about a case: every address and port in its objects, and some others, from every client.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use ipnet::IpNet;
use serde_json::Value;

use super::node::{ADDRESSES, Entry};
use super::packet::Transport;

/// The maximum number of targets of a family; of a larger case every n-th one is used.
const MOST: usize = 160;
/// Addresses in the Service networks that no Service has, and one outside of them.
const UNKNOWN: [&str; 4] = ["10.96.200.200", "fd00:10:96::dead", "198.18.200.200", "fd00:18::200"];
/// A port that no Service has.
const WRONG: u16 = 9;

/// A client: a pool of equivalent addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// Its name in reports.
    pub name: String,
    /// Its entry to the node.
    pub entry: Entry,
    /// Its addresses, which rules treat alike; never empty.
    pub pool: Vec<IpAddr>,
}

/// A packet to sample.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Question {
    /// The client's name.
    pub client: String,
    /// The destination.
    pub to: SocketAddr,
    /// The protocol.
    pub transport: Transport,
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.client, self.transport, self.to)
    }
}

/// The questions about one state of a cluster.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The clients.
    pub clients: Vec<Client>,
    /// The destinations and protocols.
    pub targets: BTreeSet<(SocketAddr, Transport)>,
}

impl Plan {
    /// The plan for a file of stored objects.
    ///
    /// # Panics
    /// If it cannot be read.
    #[must_use]
    pub fn new(objects: &Path) -> Self {
        let text = std::fs::read_to_string(objects).unwrap_or_else(|e| panic!("{}: {e}", objects.display()));
        let objects: Vec<Value> = serde_saphyr::from_multiple(&text).expect("YAML");
        let of_kind = |kind: &'static str| objects.iter().filter(move |object| object["kind"] == kind);
        let mut targets = BTreeSet::new();
        let mut ranges = BTreeSet::new();
        for service in of_kind("Service") {
            targets_of(&service["spec"], &service["status"], &mut targets);
            ranges.extend(
                items(&service["spec"]["loadBalancerSourceRanges"]).filter_map(|v| text_of(v).parse::<IpNet>().ok()),
            );
        }
        let mut targets: BTreeSet<_> = [true, false].into_iter().flat_map(|v4| thinned(&targets, v4)).collect();
        for (address, port) in UNKNOWN.iter().flat_map(|unknown| [(unknown, 80), (unknown, WRONG)]) {
            targets.extend([Transport::Tcp, Transport::Udp].map(|t| (SocketAddr::new(ip(address), port), t)));
        }
        let endpoints = of_kind("EndpointSlice").flat_map(|slice| items(&slice["endpoints"]));
        let endpoints: BTreeSet<IpAddr> = endpoints
            .flat_map(|endpoint| items(&endpoint["addresses"]))
            .filter_map(|v| text_of(v).parse().ok())
            .collect();
        Self { clients: clients(&endpoints, &ranges), targets }
    }

    /// The clients of the target's family that can reach it.
    #[must_use]
    pub fn questions(&self, (to, transport): (SocketAddr, Transport)) -> Vec<(&Client, Question)> {
        let suits = |client: &&Client| {
            let one = client.pool[0];
            to.is_ipv4() == one.is_ipv4() && to.ip().is_loopback() == one.is_loopback()
        };
        let question = |client: &Client| Question { client: client.name.clone(), to, transport };
        self.clients.iter().filter(suits).map(|client| (client, question(client))).collect()
    }
}

fn targets_of(spec: &Value, status: &Value, targets: &mut BTreeSet<(SocketAddr, Transport)>) {
    let balancers = items(&status["loadBalancer"]["ingress"]).map(|ingress| &ingress["ip"]);
    let own = items(&spec["clusterIPs"]).chain(items(&spec["externalIPs"])).chain(balancers);
    let own: Vec<IpAddr> = own.filter_map(|v| text_of(v).parse().ok()).collect();
    let mut nodes = ADDRESSES.iter().map(|address| ip(address));
    let mut add = |address: IpAddr, port: &Value, transports: &[Transport]| {
        if let Some(port) = port.as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0) {
            targets.extend(transports.iter().map(|transport| (SocketAddr::new(address, port), *transport)));
        }
    };
    for address in &own {
        add(*address, &Value::from(WRONG), &[Transport::Tcp, Transport::Udp]);
        for port in items(&spec["ports"]) {
            add(*address, &port["port"], &Transport::ALL);
            add(*address, &port["nodePort"], &[Transport::named(text_of(&port["protocol"]))]);
        }
    }
    for address in &mut nodes {
        for port in items(&spec["ports"]) {
            add(address, &port["nodePort"], &Transport::ALL);
        }
        add(address, &spec["healthCheckNodePort"], &[Transport::Tcp]);
    }
}

/// The clients. Pools are large, because affinity gives each address one endpoint.
fn clients(endpoints: &BTreeSet<IpAddr>, ranges: &BTreeSet<IpNet>) -> Vec<Client> {
    let mut clients = Vec::new();
    let mut add = |name: &str, entry, nets: [&str; 2], first: usize| {
        for net in nets {
            let net: IpNet = net.parse().expect("a network");
            // An endpoint that chooses itself is masqueraded, too rarely for samples. It is a separate client.
            let pool = net.hosts().skip(first).filter(|own| !endpoints.contains(own)).take(1500).collect();
            clients.push(Client { name: name.to_owned(), entry, pool });
        }
    };
    add("pod", Entry::Pods, ["10.244.1.0/24", "fd00:10:244:1::/64"], 99);
    add("host", Entry::Host, ["192.168.98.0/24", "fd00:98::/64"], 1);
    add("loopback", Entry::Host, ["127.1.0.0/16", "::1/128"], 0);
    add("outside", Entry::Network, ["198.19.0.0/16", "fd00:19::/64"], 1);
    add("neighbour", Entry::Network, ["192.168.50.0/24", "fd00:50::/64"], 99);
    add("other node's pod", Entry::Network, ["10.244.77.0/24", "fd00:10:244:77::/64"], 9);
    for range in ranges.iter().filter(|range| range.prefix_len() > 0) {
        // A range of one address is that address. The first address of an IPv6 range is not a client, nor are the
        // node's own.
        let single = range.prefix_len() == range.max_prefix_len();
        let pool = range
            .hosts()
            .filter(|own| single || (*own != range.network() && !endpoints.contains(own)))
            .filter(|own| !ADDRESSES.map(ip).contains(own))
            .take(1500);
        let pool: Vec<IpAddr> = pool.collect();
        if !pool.is_empty() {
            clients.push(Client { name: format!("in {range}"), entry: Entry::Network, pool });
        }
        if let Some(beyond) = after(range.broadcast()) {
            clients.push(Client { name: format!("just after {range}"), entry: Entry::Network, pool: vec![beyond] });
        }
    }
    let pods = ["10.244.1.0/24", "fd00:10:244:1::/64"].map(|net| net.parse::<IpNet>().expect("a network"));
    for net in pods {
        for pod in endpoints.iter().filter(|endpoint| net.contains(*endpoint)).take(2) {
            clients.push(Client { name: format!("endpoint {pod}"), entry: Entry::Pods, pool: vec![*pod] });
        }
    }
    for own in ["192.168.50.2", "fd00:50::2"] {
        clients.push(Client { name: format!("host as {own}"), entry: Entry::Host, pool: vec![ip(own)] });
    }
    clients
}

fn thinned(targets: &BTreeSet<(SocketAddr, Transport)>, v4: bool) -> Vec<(SocketAddr, Transport)> {
    let all: Vec<_> = targets.iter().filter(|(to, _)| to.is_ipv4() == v4).copied().collect();
    // An odd step keeps all combinations of port and protocol.
    let step = (all.len().div_ceil(MOST) | 1).max(1);
    all.into_iter().step_by(step).collect()
}

fn after(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => Some(u32::from(v4).checked_add(1)?).map(|n| IpAddr::from(n.to_be_bytes())),
        IpAddr::V6(v6) => Some(u128::from(v6).checked_add(1)?).map(|n| IpAddr::from(n.to_be_bytes())),
    }
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn text_of(value: &Value) -> &str {
    value.as_str().unwrap_or_default().trim()
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}
