//! Compares what two tables with different layouts do to packets.
//!
//! A table of upstream kube-proxy names its chains otherwise than ours, so its rules cannot be compared one by one.
//! Instead, packets to each address are walked through both tables and their outcomes compared as [`Difference`]s.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use netfilter::IpFamily;
use netfilter::nft::ruleset::{Element, ElementLookup, Ruleset, Set, Table, TableId};

use super::shape::shape;
use super::{Difference, DifferenceKind};
use crate::rules::Ruleset as Iptables;
use crate::services::nftables::dispatch::{Destination, DispatchSummary, ip, octets, summarize};
use crate::services::nftables::{
    NO_ENDPOINTS, RESTRICTED, SERVICES, allowed_networks, destination, is_local, node_port_ips, ranges, spelled,
    verdict,
};
use crate::walk::{ConnState, Node, NodeRules, Origin, Outcome, Packet, RecentLists, Verdict};
use proxier::model::Protocol;
use proxier::model::config::LocalTraffic;
use proxier::nftables::{Expected, TABLE};

/// Sets with the same meaning in both layouts, whose elements are compared directly.
const MEMBERS: [&str; 3] = ["cluster-ips", "nodeport-ips", "hairpin-connections"];
/// Clients outside the cluster: documentation addresses.
const OUTSIDE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7))];
/// The source port of all clients.
const CLIENT_PORT: u16 = 40000;
/// The index of the tested pod's address within the pod network of this node.
const POD: usize = 200;
/// Probabilities that differ by less are equal.
const ALIKE: f64 = 1e-6;

/// The senders of the compared packets, and the node.
#[derive(Clone, Copy, Debug)]
pub struct TrafficSources<'a> {
    /// The node.
    pub node: &'a Node,
    /// How traffic of the node's pods is detected.
    pub pods: Option<&'a LocalTraffic>,
}

/// Compares destinations of Service ports with `wanted` names, and destinations that no Service port has.
///
/// # Errors
/// If a table has rules that the kernel would refuse.
pub fn differences(
    family: IpFamily,
    expected: &Expected,
    found: &Table,
    world: TrafficSources<'_>,
    wanted: &dyn Fn(&str) -> bool,
) -> Result<Vec<Difference>, String> {
    let should_be = expected.as_held();
    let owners = owners(expected, &should_be);
    let allowed = allowed_networks(&should_be);
    let mut search = Search {
        family,
        id: TableId::of(family, TABLE),
        world,
        iptables: Iptables::new(family),
        should_be: alone(family, should_be),
        is: alone(family, found.clone()),
        allowed,
        unlisted: BTreeSet::new(),
        walked: HashMap::new(),
        found: Vec::new(),
    };
    search.members(expected, found);
    for name in SERVICES.iter().chain(&NO_ENDPOINTS).chain([&RESTRICTED]) {
        search.strays(name, &owners);
    }
    for (to, owner) in owners.iter().filter(|(_, owner)| owner.as_deref().is_none_or(wanted)) {
        search.destination(*to, owner.as_deref())?;
    }
    search.found.sort();
    Ok(search.found)
}

fn alone(family: IpFamily, table: Table) -> Ruleset {
    Ruleset { tables: [(TableId::of(family, TABLE), table)].into(), ..Ruleset::new(family) }
}

/// The expected destinations, with the Service ports that own them.
fn owners(expected: &Expected, should_be: &Table) -> BTreeMap<Destination, Option<String>> {
    let mut owners = BTreeMap::new();
    for name in SERVICES.iter().chain(&NO_ENDPOINTS).chain([&RESTRICTED]) {
        let (Some(set), Some(of)) = (should_be.sets.get(*name), expected.sets.get(*name)) else { continue };
        for (key, (_, owner)) in &of.elements {
            if let Some(to) = destination(set, key) {
                owners.insert(to, owner.as_ref().map(ToString::to_string));
            }
        }
    }
    owners
}

/// The outcomes of one client's packets, with probabilities.
type Ends = BTreeMap<(Verdict, bool), f64>;

struct Search<'a> {
    family: IpFamily,
    id: TableId,
    world: TrafficSources<'a>,
    iptables: Iptables,
    should_be: Ruleset,
    is: Ruleset,
    /// Expected source ranges, by destination.
    allowed: HashMap<Vec<u8>, Vec<IpNet>>,
    /// Cluster IPs missing from their set; that packets to them are not masqueraded is reported already.
    unlisted: BTreeSet<IpAddr>,
    /// Shapes that were walked; if one differs, the destination that was reported for it.
    walked: HashMap<Kind, Option<String>>,
    found: Vec<Difference>,
}

/// The shapes of a destination, expected and found.
#[derive(PartialEq, Eq, Hash)]
struct Kind {
    node_port: bool,
    cluster_ip: bool,
    no_endpoints: [Option<String>; 2],
    shapes: [Vec<String>; 2],
}

impl Search<'_> {
    fn note(&mut self, kind: DifferenceKind, at: String, texts: [Option<String>; 2], service: Option<String>) {
        let [expected, found] = texts;
        let (family, table) = (self.family.name(), self.id.to_string());
        self.found.push(Difference { family, kind, table, chain: at, expected, found, service });
    }

    /// Compares the sets that both layouts have.
    fn members(&mut self, expected: &Expected, found: &Table) {
        for name in MEMBERS {
            let Some(wanted) = expected.sets.get(name) else { continue };
            let Some(set) = found.sets.get(name) else {
                if wanted.elements.is_empty() {
                    continue;
                }
                self.note(DifferenceKind::MissingSet, name.to_owned(), [None, None], None);
                continue;
            };
            for (key, (element, owner)) in &wanted.elements {
                if !has(set, key) {
                    self.unlisted.extend(ip(key));
                    let text = element.of(&wanted.set).to_string();
                    let owner = owner.as_ref().map(ToString::to_string);
                    self.note(DifferenceKind::MissingElement, name.to_owned(), [Some(text), None], owner);
                }
            }
            for element in set.elements.iter().filter(|element| !wanted.elements.contains_key(&element.key)) {
                let text = set.text(element).to_string();
                self.note(DifferenceKind::UnexpectedElement, name.to_owned(), [None, Some(text)], None);
            }
        }
    }

    /// Destinations that no Service has.
    fn strays(&mut self, name: &str, owners: &BTreeMap<Destination, Option<String>>) {
        let Some(set) = self.table(false).sets.get(name) else { return };
        let unknown = |element: &&Element| destination(set, &element.key).is_none_or(|to| !owners.contains_key(&to));
        let texts: Vec<String> =
            set.elements.iter().filter(unknown).map(|element| set.text(element).to_string()).collect();
        for text in texts {
            self.note(DifferenceKind::UnexpectedElement, name.to_owned(), [None, Some(text)], None);
        }
    }

    fn table(&self, expected: bool) -> &Table {
        let ruleset = if expected { &self.should_be } else { &self.is };
        &ruleset.tables[&self.id]
    }

    /// The kind of a destination: all of one kind have the same outcomes if their endpoints are as expected.
    fn kind(&self, to: Destination) -> Option<Kind> {
        let [should_be, is] = [true, false].map(|expected| self.summarize(to, expected));
        let has_ranges =
            [true, false].into_iter().any(|expected| entry(self.table(expected), RESTRICTED, to).is_some());
        if has_ranges || affinity(&should_be) != affinity(&is) || !same_endpoints(&should_be, &is) {
            return None;
        }
        let node_port = to.ip.is_none();
        let cluster_ips = self.table(false).sets.get(MEMBERS[0]);
        let no_endpoints = [true, false].map(|expected| {
            let refused = entry(self.table(expected), NO_ENDPOINTS[usize::from(node_port)], to);
            refused.and_then(verdict).map(ToString::to_string)
        });
        Some(Kind {
            node_port,
            cluster_ip: to.ip.is_some_and(|ip| cluster_ips.is_some_and(|set| has(set, &octets(ip)))),
            no_endpoints,
            shapes: [shape(self.table(true), &should_be), shape(self.table(false), &is)],
        })
    }

    /// Compares the outcomes of packets to one destination. One difference covers all of them.
    fn destination(&mut self, to: Destination, owner: Option<&str>) -> Result<(), String> {
        let kind = self.kind(to);
        match kind.as_ref().and_then(|kind| self.walked.get(kind)) {
            Some(None) => return Ok(()),
            Some(Some(first)) => {
                let text = Some(format!("otherwise in the same way as {first}"));
                self.note(DifferenceKind::AlteredBehaviour, spelled(to), [None, text], owner.map(str::to_owned));
                return Ok(());
            }
            None => {}
        }
        let Some(protocol) = Protocol::of_number(to.protocol) else { return Ok(()) };
        let Some(ip) = to.ip.or_else(|| self.node_port_ip()) else { return Ok(()) };
        let address = SocketAddr::new(ip, to.port);
        let [mut wanted, mut held] = [Vec::new(), Vec::new()];
        for (who, source, origin) in self.clients(to, ip) {
            let packet = Packet { source, destination: address, protocol, origin, state: ConnState::New };
            let [should_be, is] = [self.ends(&packet, true)?, self.ends(&packet, false)?];
            if !same(&should_be, &is) {
                wanted.push(format!("from {who}: {}", describe(&should_be)));
                held.push(format!("from {who}: {}", describe(&is)));
            }
        }
        let [should_be, is] = [affinity(&self.summarize(to, true)), affinity(&self.summarize(to, false))];
        if should_be != is {
            wanted.push(should_be);
            held.push(is);
        }
        self.walked.extend(kind.map(|kind| (kind, (!wanted.is_empty()).then(|| spelled(to)))));
        if !wanted.is_empty() {
            let texts = [Some(wanted.join("; ")), Some(held.join("; "))];
            self.note(DifferenceKind::AlteredBehaviour, spelled(to), texts, owner.map(str::to_owned));
        }
        Ok(())
    }

    /// The dispatch of packets to a destination in one of the tables.
    fn summarize(&self, to: Destination, expected: bool) -> DispatchSummary<'_> {
        let table = self.table(expected);
        let chain =
            entry(table, SERVICES[usize::from(to.ip.is_none())], to).and_then(|element| verdict(element)?.chain());
        chain.map(|chain| summarize(self.family, table, to, chain)).unwrap_or_default()
    }

    fn ends(&self, packet: &Packet, expected: bool) -> Result<Ends, String> {
        let nftables = Some(if expected { &self.should_be } else { &self.is });
        let rules = NodeRules { iptables: &self.iptables, other: None, nftables };
        let trace = rules.trace(packet, self.world.node, &RecentLists::new())?;
        let unlisted = self.unlisted.contains(&packet.destination.ip());
        let mut ends = Ends::new();
        for Outcome { verdict, masqueraded, probability } in trace.branches.into_iter().map(|branch| branch.outcome) {
            *ends.entry((verdict, masqueraded && !unlisted)).or_default() += probability;
        }
        Ok(ends)
    }

    /// An address that serves node ports.
    fn node_port_ip(&self) -> Option<IpAddr> {
        let listed = |expected: bool| node_port_ips(self.table(expected)).unwrap_or_default();
        let (wanted, held) = (listed(true), listed(false));
        let both = wanted.iter().copied().find(|ip| held.contains(ip));
        both.or(wanted.first().copied()).or_else(|| self.world.node.masquerade_address(self.family.localhost()))
    }

    /// One client of each kind that the rules may distinguish.
    fn clients(&self, to: Destination, ip: IpAddr) -> Vec<(String, SocketAddr, Origin)> {
        let node = self.world.node;
        let mut clients = Vec::new();
        let outside = OUTSIDE.into_iter().find(|ip| IpFamily::of(ip) == self.family);
        let interface = |ip: IpAddr| Origin::Interface(node.out_interface(ip).unwrap_or("eth0").to_owned());
        let mut add = |who: String, ip: IpAddr, origin: Origin| {
            clients.push((who, SocketAddr::new(ip, CLIENT_PORT), origin));
        };
        if let Some(outside) = outside {
            add("outside".to_owned(), outside, interface(outside));
            match self.world.pods {
                Some(LocalTraffic::From(net)) => {
                    let pod = net.hosts().nth(POD).unwrap_or(net.addr());
                    add("a pod here".to_owned(), pod, interface(pod));
                }
                Some(LocalTraffic::Interface(name)) => {
                    add("a pod here".to_owned(), outside, Origin::Interface(name.clone()));
                }
                Some(LocalTraffic::InterfacePrefix(name)) => {
                    add("a pod here".to_owned(), outside, Origin::Interface(format!("{name}0")));
                }
                None => {}
            }
        }
        // What the host sends to one of its own addresses comes from that address.
        let own = if node.is_local(ip) { Some(ip) } else { node.masquerade_address(ip) };
        own.into_iter().for_each(|own| add("this node".to_owned(), own, Origin::Host));
        for border in self.borders(to) {
            add(border.to_string(), border, interface(border));
        }
        clients
    }

    /// The first and last addresses of source ranges, and the addresses before and after them.
    fn borders(&self, to: Destination) -> BTreeSet<IpAddr> {
        let mut borders = BTreeSet::new();
        let wanted = self.allowed.get(&*to.key()).cloned().unwrap_or_default();
        let restricted = entry(self.table(false), RESTRICTED, to);
        let held = restricted.map(|element| ranges(self.family, self.table(false), to, element).0);
        for range in wanted.into_iter().chain(held.unwrap_or_default()) {
            let (first, last) = (range.network(), range.broadcast());
            borders.extend([Some(first), Some(last), step(first, false), step(last, true)].into_iter().flatten());
        }
        borders.retain(|ip| !ip.is_unspecified() && !ip.is_loopback());
        borders
    }
}

/// The next address, or the one before.
fn step(ip: IpAddr, up: bool) -> Option<IpAddr> {
    let next = |bits: u128| if up { bits.checked_add(1) } else { bits.checked_sub(1) };
    match ip {
        IpAddr::V4(ip) => {
            let bits = u32::try_from(next(u128::from(ip.to_bits()))?).ok()?;
            Some(IpAddr::V4(Ipv4Addr::from_bits(bits)))
        }
        IpAddr::V6(ip) => next(ip.to_bits()).map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits))),
    }
}

fn entry<'a>(table: &'a Table, map: &str, to: Destination) -> Option<&'a Element> {
    let set = table.sets.get(map)?;
    match set.find(&to.key()) {
        ElementLookup::Present(element) => Some(element),
        ElementLookup::Absent | ElementLookup::Unread => None,
    }
}

fn has(set: &Set, key: &[u8]) -> bool {
    matches!(set.find(key), ElementLookup::Present(_))
}

/// Whether both tables have the same endpoints with the same probabilities, under each policy.
fn same_endpoints(a: &DispatchSummary<'_>, b: &DispatchSummary<'_>) -> bool {
    let shares = |summary: &DispatchSummary<'_>| {
        let mut shares: BTreeMap<(bool, SocketAddr), f64> = BTreeMap::new();
        for chooser in &summary.choosers {
            for choice in &chooser.choices {
                *shares.entry((is_local(&chooser.chain), choice.to)).or_default() += choice.share;
            }
        }
        shares
    };
    let (a, b) = (shares(a), shares(b));
    a.len() == b.len() && a.iter().zip(&b).all(|((x, p), (y, q))| x == y && (p - q).abs() < ALIKE)
}

fn same(a: &Ends, b: &Ends) -> bool {
    let share = |ends: &Ends, end| ends.get(end).copied().unwrap_or(0.0);
    let mut all = a.keys().chain(b.keys());
    all.all(|end| (share(a, end) - share(b, end)).abs() < ALIKE)
}

fn describe(ends: &Ends) -> String {
    let one = |((verdict, masqueraded), probability): (&(Verdict, bool), &f64)| {
        Outcome { verdict: *verdict, masqueraded: *masqueraded, probability: *probability }.to_string()
    };
    ends.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Describes a table's session affinity.
fn affinity(summary: &DispatchSummary<'_>) -> String {
    let Some(seconds) = summary.affinity else {
        return if summary.remembered.is_empty() { String::new() } else { "clients are never remembered".to_owned() };
    };
    let to = |local: bool| {
        let found = summary.remembered.iter().filter(|(of, _)| *of == local).map(|(_, endpoint)| endpoint.to_string());
        found.collect::<Vec<_>>().join(" ")
    };
    let by: Vec<String> = summary.remembering.iter().map(ToString::to_string).collect();
    format!(
        "clients of {} are remembered for {seconds} s and sent to {} (of this node: {})",
        by.join(" "),
        to(false),
        to(true)
    )
}
