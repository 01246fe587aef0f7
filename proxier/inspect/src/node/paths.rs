//! Traces packets through the rules in the kernel.
//!
//! Where that is cheaper, only the chains that a packet meets are read.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use ipnet::IpNet;
use netfilter::IpFamily;
use netfilter::kernel::node::Link;
use netfilter::kernel::{self, RouteTable, SystemIpSets, last_seen, node, policy_selectors};
use netfilter::route::PolicySelectors;
use proxier::model::Protocol;

use super::FamilyRules;
use crate::walk::{ConnState, KnownClient, Node, Origin, Packet, RecentLists, Trace};

/// The default source port of a client.
pub const CLIENT_PORT: u16 = 40000;

/// The address that the kernel would send from. Connecting a datagram socket sends nothing.
fn own_address(to: SocketAddr) -> Result<IpAddr, String> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).and_then(|socket| socket.connect(to).map(|()| socket));
    let address = socket.and_then(|socket| socket.local_addr());
    address.map(|address| address.ip()).map_err(|error| format!("this node has no way to {to}: {error}"))
}

/// The node that packets of a family meet.
#[must_use]
pub fn node_of(rules: &FamilyRules) -> Node {
    let held = rules.held.clone().unwrap_or_default();
    // The addresses of Services are local too, and the last that anything is masqueraded to.
    let mut addresses = held.node_addresses(&rules.addresses);
    addresses.extend(held.bound.iter().flatten());
    // Loopback addresses are always local; masquerading takes another one.
    addresses.retain(|ip| !ip.is_loopback());
    let interfaces = node::interfaces().unwrap_or_default();
    let (policies, policies_unread) = match kernel::xfrm::policies(rules.family) {
        Ok(policies) => (policies, None),
        Err(error) => (Vec::new(), Some(format!("they could not be read: {error}"))),
    };
    Node {
        addresses,
        routes: node::routes(rules.family),
        held,
        bridged: node::filtered_bridges(rules.family),
        groups: node::groups(&interfaces),
        queues: if rules.names("NFQUEUE") { node::queues() } else { None },
        sockets: if rules.names("socket") { kernel::open_sockets().ok() } else { None },
        unwalked: rules.unwalked.clone(),
        // If they cannot be read, they may be there.
        policy: policy_selectors(rules.family).unwrap_or(PolicySelectors::UNREAD),
        down: down(rules.family),
        closed: closed(rules.family, interfaces.keys()),
        interfaces,
        policies,
        policies_unread,
        ..Node::default()
    }
}

/// Why an interface with `disable_ipv6` takes and sends nothing.
pub const NO_IPV6: &str = "IPv6 is off on the interface (disable_ipv6)";

/// The interfaces that take no packets of a family.
fn closed<'a>(family: IpFamily, names: impl Iterator<Item = &'a String>) -> BTreeMap<String, &'static str> {
    names.filter(|name| !node::handles(family, name)).map(|name| (name.clone(), NO_IPV6)).collect()
}

/// The interfaces that send nothing of a family; none if interfaces cannot be read.
fn down(family: IpFamily) -> BTreeMap<String, &'static str> {
    let state = |link: Link| match (link.up, link.carrier) {
        (true, true) if !node::handles(family, &link.name) => Some((link.name, NO_IPV6)),
        (true, true) => None,
        (true, false) => Some((link.name, "the interface has no carrier")),
        (false, _) => Some((link.name, "the interface is down")),
    };
    node::links().unwrap_or_default().into_iter().filter_map(state).collect()
}

/// Routes to single addresses that no default route shares the interface of: as network plugins make for pods.
#[must_use]
pub fn pod_routes(family: IpFamily) -> Vec<(IpAddr, String)> {
    let routes = node::routes(family);
    let is_uplink = |name: &str| routes.iter().any(|(net, other)| net.prefix_len() == 0 && other == name);
    // A router of IPv6 answers at the first address of each of its networks, too.
    let is_anycast = |ip: IpAddr, name: &str| {
        let network = |(net, other): &(IpNet, String)| other == name && net.prefix_len() < net.max_prefix_len();
        ip.is_ipv6() && routes.iter().any(|route| network(route) && route.0.network() == ip)
    };
    let single = routes.iter().filter(|(net, name)| net.prefix_len() == net.max_prefix_len() && !is_uplink(name));
    let single = single.filter(|(net, name)| !is_anycast(net.addr(), name));
    single
        .filter(|(net, name)| name != "*" && name != "lo" && !is_link_local(net.addr()))
        .map(|(net, name)| (net.addr(), name.clone()))
        .collect()
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.is_multicast(),
    }
}

/// Asks the kernel what its sets say; whether there was anything to ask.
pub fn answer_sets(node: &mut Node, trace: &Trace) -> bool {
    if trace.queries.is_empty() {
        return false;
    }
    let mut sets = SystemIpSets::open().map_err(|error| format!("sets: {error}"));
    for query in &trace.queries {
        let asked = match &mut sets {
            Ok(sets) => sets.test(query).map_err(|error| error.to_string()),
            Err(why) => Err(why.clone()),
        };
        node.answers.insert(query.clone(), asked);
    }
    true
}

/// The rules of one family, for walking.
pub struct Paths<'a> {
    rules: &'a mut FamilyRules,
    node: Node,
}

impl<'a> Paths<'a> {
    /// Ways through these rules.
    #[must_use]
    pub fn of(rules: &'a mut FamilyRules) -> Self {
        let node = node_of(rules);
        Self { rules, node }
    }

    /// The node.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Takes the source of packets for that of a known client; without this it stands for any client.
    pub fn know_client(&mut self, client: KnownClient) {
        self.node.client = client;
    }

    /// Whether IPVS mode bound that address to its device.
    #[must_use]
    pub fn is_bound_by_ipvs(&self, ip: IpAddr) -> bool {
        self.node.held.bound.iter().flatten().any(|bound| *bound == ip)
    }

    /// A pod on this node: the first with a route of its own to an interface that is up and no tunnel.
    #[must_use]
    pub fn pod(&self, family: IpFamily, links: &[Link]) -> Option<IpAddr> {
        let is_link_of_pods = |name: &str| {
            let link = links.iter().find(|link| link.name == name);
            link.is_some_and(|link| {
                link.up && link.carrier && matches!(link.kind.as_deref(), None | Some("veth" | "netkit"))
            })
        };
        let mut routes = pod_routes(family).into_iter();
        routes.find(|(ip, name)| is_link_of_pods(name) && !self.node.is_local(*ip)).map(|(ip, _)| ip)
    }

    /// The packet that a client sends from `from`, or this node if that is `None`. What comes from elsewhere
    /// comes in where the way back leads, or on `interface`.
    ///
    /// # Errors
    /// If it is not known where it comes in, or the node has no address to send from.
    pub fn packet(
        &self,
        from: Option<SocketAddr>,
        (destination, protocol): (SocketAddr, Protocol),
        interface: Option<&str>,
    ) -> Result<Packet, String> {
        let source = match from {
            Some(source) if source.is_ipv4() != destination.is_ipv4() => {
                return Err(format!("{} and {destination} are of different families", source.ip()));
            }
            Some(source) => source,
            // What the host sends to one of its own addresses comes from that address.
            None if self.node.is_local(destination.ip()) => SocketAddr::new(destination.ip(), CLIENT_PORT),
            None => SocketAddr::new(own_address(destination)?, CLIENT_PORT),
        };
        let origin = match interface {
            Some(name) if self.node.interfaces.contains_key(name) => Origin::Interface(name.to_owned()),
            Some(name) => return Err(format!("this node has no interface {name}: ip link lists them")),
            None if self.node.is_local(source.ip()) => Origin::Host,
            None => {
                let name = self.node.out_interface(source.ip()).ok_or_else(|| {
                    let ip = source.ip();
                    format!(
                        "no route to {ip}, so the interface on which its packets arrive is unknown: name the interface"
                    )
                })?;
                Origin::Interface(name.to_owned())
            }
        };
        Ok(Packet { source, destination, protocol, origin, state: ConnState::New })
    }

    /// Asks the kernel where it routes packets; whether there was anything to ask.
    fn route(&mut self, trace: &Trace) -> bool {
        if trace.routes.is_empty() {
            return false;
        }
        let mut table = RouteTable::open(self.rules.family).map_err(|error| format!("routes: {error}"));
        for query in &trace.routes {
            let decided = match &mut table {
                Ok(table) => table.decide(query).map_err(|error| error.to_string()),
                Err(why) => Err(why.clone()),
            };
            self.node.route_answers.insert(query.clone(), decided);
        }
        true
    }

    /// Walks a packet, as one whose sender the kernel remembers where it does.
    ///
    /// # Errors
    /// If rules cannot be read, or are such as the kernel would not take.
    pub fn trace(&mut self, packet: &Packet) -> Result<Trace, String> {
        let mut memory = RecentLists::new();
        let mut tried: BTreeSet<(String, String)> = BTreeSet::new();
        loop {
            let trace = self.rules.walk(packet, &self.node, &memory)?;
            let new: BTreeSet<_> = trace.missing.difference(&tried).cloned().collect();
            if !new.is_empty() && self.rules.load(&new)? {
                tried.extend(new);
                continue;
            }
            if self.route(&trace) {
                continue;
            }
            // Once a list is known it stays so for this trace: its age grows while we look.
            if answer_sets(&mut self.node, &trace) {
                continue;
            }
            let mut remembered = RecentLists::new();
            for list in trace.asked.iter().filter(|list| !memory.contains_key(*list)) {
                // Whether the rules match that ask an unreadable list is not known.
                let seen = last_seen(list, packet.source.ip());
                let seen = seen.map_err(|error| format!("cannot read list {list:?} of recent: {error}"))?;
                remembered.extend(seen.map(|seconds| (list.clone(), seconds)));
            }
            if remembered.is_empty() {
                return Ok(trace);
            }
            memory.extend(remembered);
        }
    }
}
