//! Reads Service ports from the virtual servers and sets of IPVS mode, ours and upstream's.
//!
//! The expected state, where known, names the Service ports. A virtual server without a known owner becomes a
//! [`ServicePortView`] of its own, named by its address.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use ipnet::IpNet;
use netfilter::IpFamily;
use netfilter::ipset::{Entry, IpPortProto};
use netfilter::ipvs::{Forward, ServerKey, Statistics};

use super::{
    Address, AddressKind, AddressVerdict, EndpointView, KernelObject, Policy, RealView, ServerView, ServicePortView,
};
use crate::rules::Counters;
use proxier::ipvs::{Expected, ObservedRealServer, ObservedServer, ObservedState};
use proxier::model::{Protocol, ServicePort, Snapshot};

/// Prefixes of set names after `KUBE-` or `KUBE-6-`, with the kind of address of their entries.
const KINDS: [(&str, AddressKind); 4] = [
    ("CLUSTER-IP", AddressKind::ClusterIp),
    ("EXTERNAL-IP", AddressKind::ExternalIp),
    ("LOAD-BALANCER", AddressKind::LoadBalancer),
    ("NODE-PORT", AddressKind::NodePort),
];
/// Schedulers that only distinguish weight 0.
const WITHOUT_WEIGHTS: [&str; 4] = ["rr", "lc", "nq", "dh"];
/// Schedulers that hash the client's address.
pub const BY_SOURCE: [&str; 2] = ["sh", "mh"];

/// The Service ports, in the order of their names.
#[must_use]
pub fn read(family: IpFamily, held: &ObservedState, known: Option<(&Snapshot<'_>, &Expected)>) -> Vec<ServicePortView> {
    let mut views: BTreeMap<(String, &'static str), ServicePortView> = BTreeMap::new();
    for server in held.servers.values() {
        let key = server.server.key;
        let Some(protocol) = Protocol::of_number(key.protocol) else { continue };
        let sets = sets_of(held, key);
        let owner = known.and_then(|(_, expected)| expected.servers.get(&key)).map(|server| &server.owner);
        let port = known.zip(owner).and_then(|((snapshot, _), owner)| snapshot.ports.get(owner));
        let kind = port.map_or_else(|| kind_by_sets(&sets), |port| kind_by_object(port, key.address));
        let name = owner.map_or_else(|| unnamed(kind, key), ToString::to_string);
        let view =
            views.entry((name.clone(), protocol.name())).or_insert_with(|| ServicePortView::of(name, family, protocol));
        if known.is_some() && owner.is_none() {
            view.notes.push(format!("no Service has the virtual server {key}"));
        }
        let one = VirtualServer {
            server,
            kind,
            sets,
            bound: held.bound.as_ref().is_some_and(|ips| ips.contains(&key.address.ip())),
        };
        one.add(view, port);
        let ranges = source_ranges(held, key).filter(|range| !view.source_ranges.contains(range)).collect::<Vec<_>>();
        view.source_ranges.extend(ranges);
    }
    if let Some((snapshot, expected)) = known {
        for (name, port) in snapshot.ports.iter().filter(|(_, port)| port.health_check_node_port != 0) {
            if let Some(view) = views.get_mut(&(name.to_string(), name.protocol.name())) {
                health_check(view, held, expected, port.health_check_node_port);
            }
        }
    }
    let mut views: Vec<ServicePortView> = views.into_values().collect();
    for view in &mut views {
        view.addresses.sort_by_key(|address| (address.kind, address.ip, address.port));
        view.endpoints.sort_by_key(|endpoint| endpoint.address);
    }
    views
}

/// Marks endpoints that are draining. Call it after [`super::add_model`].
pub fn note_draining(views: &mut [ServicePortView]) {
    for endpoint in views.iter_mut().flat_map(|view| &mut view.endpoints) {
        if !endpoint.servers.is_empty() && endpoint.servers.iter().all(|server| server.weight == 0) {
            let left: u64 = endpoint.servers.iter().map(|one| u64::from(one.active) + u64::from(one.inactive)).sum();
            endpoint.unused = Some(format!("it is draining: weight 0, {left} connections left"));
        }
    }
}

/// The long-term shares of a virtual server's connections, 0 to 1: by weight where the scheduler uses weights, else
/// equal. Weight 0 gets none.
#[must_use]
pub fn shares(server: &ObservedServer) -> Vec<(SocketAddr, f64)> {
    let alike = WITHOUT_WEIGHTS.contains(&server.server.scheduler.as_str());
    let weight = |weight: u32| f64::from(if alike { weight.min(1) } else { weight });
    let total: f64 = server.reals.values().map(|real| weight(real.server.weight)).sum();
    let some = server.reals.iter().filter(|(_, real)| real.server.weight > 0);
    some.map(|(address, real)| (*address, weight(real.server.weight) / total)).collect()
}

/// The sets that have the virtual server's address as an entry.
fn sets_of(held: &ObservedState, key: ServerKey) -> Vec<String> {
    let place = IpPortProto { ip: key.address.ip(), protocol: key.protocol, port: key.address.port() };
    let bound = held.bound.as_ref().is_some_and(|ips| ips.contains(&place.ip));
    let protocol = Protocol::of_number(key.protocol).map(Protocol::name).unwrap_or_default().to_uppercase();
    let has = |name: &str, entry: &Entry| match entry {
        Entry::IpPort(one) | Entry::IpPortIp(one, _) | Entry::IpPortNet(one, _) => *one == place,
        // Entries of port sets have no protocol, and addresses of kube-ipvs0 serve no node ports.
        Entry::Port(port) => *port == place.port && !bound && name.ends_with(&protocol),
        Entry::Ip(ip) => *ip == place.ip,
    };
    let of_kube = held.sets.iter().filter(|(name, _)| name.starts_with("KUBE-") && !name.contains("LOOP-BACK"));
    of_kube
        .filter(|(name, set)| set.entries.iter().any(|entry| has(name, entry)))
        .map(|(name, _)| name.clone())
        .collect()
}

/// Source ranges of a load balancer's address. Two halves stand for a zero-length prefix, which the kernel refuses.
fn source_ranges(held: &ObservedState, key: ServerKey) -> impl Iterator<Item = IpNet> {
    let place = IpPortProto { ip: key.address.ip(), protocol: key.protocol, port: key.address.port() };
    let sets = held.sets.iter().filter(|(name, _)| name.contains("LOAD-BALANCER-SOURCE-CID"));
    sets.flat_map(|(_, set)| &set.entries).filter_map(move |entry| match entry {
        Entry::IpPortNet(one, net) if *one == place => Some(*net),
        _ => None,
    })
}

fn kind_by_sets(sets: &[String]) -> AddressKind {
    let is = |name: &String, beginning: &str| {
        name.strip_prefix("KUBE-6-").or(name.strip_prefix("KUBE-")).is_some_and(|rest| rest.starts_with(beginning))
    };
    let found = KINDS.iter().find(|(beginning, _)| sets.iter().any(|name| is(name, beginning)));
    found.map_or(AddressKind::ClusterIp, |(_, kind)| *kind)
}

fn kind_by_object(port: &ServicePort, address: SocketAddr) -> AddressKind {
    let ip = address.ip();
    let of_port = address.port() == port.port;
    match () {
        () if of_port && port.cluster_ip == ip => AddressKind::ClusterIp,
        () if of_port && port.load_balancer_vips.contains(&ip) => AddressKind::LoadBalancer,
        () if of_port && port.external_ips.contains(&ip) => AddressKind::ExternalIp,
        () => AddressKind::NodePort,
    }
}

fn unnamed(kind: AddressKind, key: ServerKey) -> String {
    match kind {
        AddressKind::NodePort => format!("node port {}", key.address.port()),
        _ => key.address.to_string(),
    }
}

fn health_check(view: &mut ServicePortView, held: &ObservedState, expected: &Expected, port: u16) {
    let mut sets = expected.sets.keys().filter(|name| name.contains("HEALTH-CHECK"));
    let set = sets.find(|name| held.sets.get(**name).is_some_and(|set| set.entries.contains(&Entry::Port(port))));
    view.addresses.extend(set.map(|_| Address::of_health_checks(port)));
}

fn counters(of: &Statistics) -> Counters {
    Counters { packets: of.packets, bytes: of.bytes }
}

fn answers(of: &Statistics) -> Counters {
    Counters { packets: of.packets_back, bytes: of.bytes_back }
}

/// One virtual server of a Service port.
struct VirtualServer<'a> {
    server: &'a ObservedServer,
    kind: AddressKind,
    sets: Vec<String>,
    bound: bool,
}

impl VirtualServer<'_> {
    /// Adds the server as an address of the view, with its endpoints and its kernel object.
    fn add(self, view: &mut ServicePortView, port: Option<&ServicePort>) {
        let key = self.server.server.key;
        let (ip, number) = (key.address.ip(), key.address.port());
        let shares = shares(self.server);
        let internal = self.kind == AddressKind::ClusterIp;
        let local_by_sets = !internal && self.sets.iter().any(|set| set.contains("-LOCAL"));
        let local = port.map_or(local_by_sets, |port| if internal { port.internal_local } else { port.external_local });
        if !internal && port.is_none() {
            view.external_policy = Some(if local { Policy::Local } else { Policy::Cluster });
        }
        let persistence = self.server.server.persistence;
        view.affinity_seconds = view.affinity_seconds.or(persistence.map(|persistence| persistence.seconds));
        self.add_real_servers(view, &shares, local);
        let scheduler = self.server.server.scheduler.to_string();
        if BY_SOURCE.contains(&&*scheduler) {
            let note = format!("scheduler {scheduler}: each client has its endpoint; shares are of all clients");
            if !view.notes.contains(&note) {
                view.notes.push(note);
            }
        }
        let text = key.to_string();
        view.parts.push(KernelObject {
            table: "ipvs",
            chain: text,
            element: None,
            rules: self.server.reals.len(),
            counters: Some(counters(&self.server.statistics)),
        });
        view.addresses.push(Address {
            kind: self.kind,
            ip: Some(ip),
            port: number,
            verdict: if shares.is_empty() { AddressVerdict::Rejected } else { AddressVerdict::Endpoints },
            chain: None,
            counters: Some(counters(&self.server.statistics)),
            counters_incomplete: false,
            server: Some(ServerView {
                scheduler,
                connections: self.server.statistics.connections,
                answers: answers(&self.server.statistics),
                text: self.server.server.to_string(),
                affinity_seconds: persistence.map(|persistence| persistence.seconds),
                on_device: self.bound,
                sets: self.sets,
            }),
        });
    }
    /// Adds the real servers to the view's endpoints. `local`: their shares are those under policy `Local`.
    fn add_real_servers(&self, view: &mut ServicePortView, shares: &[(SocketAddr, f64)], local: bool) {
        let key = self.server.server.key;
        for (address, real) in &self.server.reals {
            let at = view.endpoints.iter().position(|known| known.address == Some(*address)).unwrap_or_else(|| {
                view.endpoints.push(EndpointView::at(Some(*address)));
                view.endpoints.len() - 1
            });
            let endpoint = &mut view.endpoints[at];
            let slot = if local { &mut endpoint.local_share } else { &mut endpoint.share };
            let share = shares.iter().find(|(to, _)| to == address).map(|(_, share)| *share);
            *slot = slot.or(share);
            let ObservedRealServer { server, connections: held, statistics } = real;
            *endpoint.counters.get_or_insert_default() += counters(statistics);
            endpoint.servers.push(RealView {
                server: key.to_string(),
                forward: server.forward.name(),
                weight: server.weight,
                active: held.active,
                inactive: held.inactive,
                persistent: held.persistent,
                connections: statistics.connections,
                counters: counters(statistics),
                answers: answers(statistics),
            });
            if server.forward != Forward::Masquerade {
                let how = server.forward.name();
                view.notes.push(format!("{key} forwards to {address} by {how}, which no kube-proxy sets up"));
            }
        }
    }
}
