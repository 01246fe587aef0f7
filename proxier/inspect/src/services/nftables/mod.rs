//! Reads Service ports from a table of nftables mode, ours or upstream's.
//!
//! The result is a [`ServicePortView`] for each Service port with an address in the table's maps. Both layouts have the same
//! address maps; the chains that these refer to are followed, so their layout does not matter.

pub(crate) mod dispatch;
mod port_reader;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;
use netfilter::IpFamily;
use netfilter::nft::ruleset::{Element, ElementLookup, Set, Table};
use netfilter::nft::{Bytes, Expression, Name, Value, Verdict};

use self::dispatch::{Destination, between, ip, summarize};
use self::port_reader::{OF_ALL, PortReader};
use super::ServicePortView;
use proxier::model::{self, Protocol, ServicePort, ServicePortName, Snapshot};
use proxier::nftables::is_always_there;

/// The maps that dispatch new connections.
pub(crate) const SERVICES: [&str; 2] = ["service-ips", "service-nodeports"];
/// The maps of destinations without endpoints, or without local ones.
pub(crate) const NO_ENDPOINTS: [&str; 2] = ["no-endpoint-services", "no-endpoint-nodeports"];
/// The map of destinations with source ranges.
pub(crate) const RESTRICTED: &str = "firewall-ips";
/// The set of allowed sources in our layout.
const ALLOWED: &str = "firewall-allowed";
/// The cluster IPs.
const CLUSTER_IPS: &str = "cluster-ips";
/// The set of addresses that serve node ports.
const NODE_PORT_IPS: &str = "nodeport-ips";
/// Prefixes of chains that choose from local endpoints, in upstream's layout and in ours.
const LOCAL: [&str; 2] = ["local-", "nodeport-local-"];
/// Prefixes of upstream's chains of a Service port; a hash and the name follow.
const OF_SERVICE_PORTS: [&str; 4] = ["service-", "external-", "local-", "firewall-"];
/// The length of upstream's hashes.
const HASH: usize = 8;

/// The elements of the table's maps for one destination.
#[derive(Clone, Copy, Debug, Default)]
struct MapEntries<'a> {
    service: Option<&'a Element>,
    no_endpoints: Option<&'a Element>,
    restricted: Option<&'a Element>,
}

impl<'a> MapEntries<'a> {
    fn elements(&self) -> impl Iterator<Item = &'a Element> {
        [self.service, self.no_endpoints, self.restricted].into_iter().flatten()
    }
}

/// The Service port's name, where the table has it.
fn name_of(entry: &MapEntries<'_>) -> Option<String> {
    let comment =
        |element: &Element| element.comment.as_ref().map(ToString::to_string).filter(|text| text.contains('/'));
    let chain = |element: &Element| name_in_chain(verdict(element)?.chain()?);
    entry.elements().find_map(comment).or_else(|| entry.elements().find_map(chain))
}

/// `service-HASH-namespace/name/protocol/port`
fn name_in_chain(chain: &str) -> Option<String> {
    let rest = OF_SERVICE_PORTS.iter().find_map(|beginning| chain.strip_prefix(beginning))?;
    let mut parts = rest.get(HASH..)?.strip_prefix('-')?.splitn(4, '/');
    let (namespace, name, _protocol, port) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    Some(if port.is_empty() { format!("{namespace}/{name}") } else { format!("{namespace}/{name}:{port}") })
}

pub(crate) fn verdict(element: &Element) -> Option<&Verdict> {
    match element.value.as_ref()? {
        Value::Verdict(verdict) => Some(verdict),
        Value::Data(_) => None,
    }
}

/// Decodes a map's key to a destination.
pub(crate) fn destination(set: &Set, key: &[u8]) -> Option<Destination> {
    let mut to = Destination { ip: None, protocol: 0, port: 0 };
    for (part, bytes) in Set::fields(&set.key, key) {
        match (part.width, bytes) {
            (4 | 16, _) => to.ip = Some(ip(bytes)?),
            (1, [protocol]) => to.protocol = *protocol,
            (2, [high, low]) => to.port = u16::from_be_bytes([*high, *low]),
            _ => return None,
        }
    }
    Some(to)
}

/// The maps' elements, by destination.
fn entries(table: &Table) -> BTreeMap<Destination, MapEntries<'_>> {
    let mut entries: BTreeMap<Destination, MapEntries<'_>> = BTreeMap::new();
    let maps = SERVICES.into_iter().chain(NO_ENDPOINTS).chain([RESTRICTED]);
    for (name, set) in maps.filter_map(|name| Some((name, table.sets.get(name)?))) {
        for element in set.elements.iter() {
            let Some(to) = destination(set, &element.key) else { continue };
            let entry = entries.entry(to).or_default();
            let slot = match name {
                RESTRICTED => &mut entry.restricted,
                name if SERVICES.contains(&name) => &mut entry.service,
                _ => &mut entry.no_endpoints,
            };
            *slot = Some(element);
        }
    }
    entries
}

/// The Service port that owns an address in a table. `local`: the address is one of the node's, which serve node ports.
#[must_use]
pub fn owner(table: &Table, to: std::net::SocketAddr, protocol: Protocol, local: bool) -> Option<ServicePortName> {
    let protocol_number = model::Protocol::number(protocol);
    let place = |ip| Destination { ip, protocol: protocol_number, port: to.port() };
    let entries = entries(table);
    let entry = entries.get(&place(Some(to.ip()))).or_else(|| entries.get(&place(None)).filter(|_| local))?;
    ServicePortName::parse(&name_of(entry)?, protocol)
}

/// The Service ports in the order of their names, filtered by `wanted` where the name is known.
#[must_use]
pub fn read(
    family: IpFamily,
    table: &Table,
    known: Option<&Snapshot<'_>>,
    wanted: &dyn Fn(&str) -> bool,
) -> Vec<ServicePortView> {
    let claims = known.map(AddressOwners::of).unwrap_or_default();
    let allowed = AllowedSources::of(table);
    let mut views: BTreeMap<(String, &'static str), PortReader<'_>> = BTreeMap::new();
    for (to, entry) in entries(table) {
        let Some(protocol) = Protocol::of_number(to.protocol) else { continue };
        let owner = claims.by_destination.get(&to).copied();
        let in_table = name_of(&entry);
        // nft limits the length of a comment, so a long name is cut; objects have the whole name.
        let cut = in_table.as_ref().is_none_or(|name| name.ends_with("..."));
        let of_objects = owner.filter(|_| cut).map(|(name, _)| name.to_string());
        let name = of_objects.or(in_table).unwrap_or_else(|| unnamed(to));
        if !wanted(&name) {
            continue;
        }
        let port = owner.filter(|(owner, _)| owner.to_string() == name).map(|(_, port)| port);
        let view = ServicePortView::of(name.clone(), family, protocol);
        let reading = views.entry((name, protocol.name())).or_insert_with(|| PortReader {
            table,
            allowed: &allowed,
            view,
            met: BTreeSet::new(),
        });
        if known.is_some() && owner.is_none() {
            reading.view.notes.push(format!("no Service has {}", spelled(to)));
        }
        reading.add(family, to, entry, port);
    }
    views.into_values().map(PortReader::finish).collect()
}

/// Whether the addresses and node ports of selected Service ports in the table are exactly those that the objects ask for.
///
/// Then no other Service port has one of them, and what the objects ask for does not depend on others: of those that claim an
/// address, the first by name owns it. A name that is cut in the table is not recognized.
#[must_use]
pub fn has_own_addresses(table: &Table, snapshot: &Snapshot<'_>, wanted: &dyn Fn(&str) -> bool) -> bool {
    let held = entries(table).into_iter().filter(|(_, entry)| name_of(entry).is_some_and(|name| wanted(&name)));
    let held: BTreeSet<Destination> = held.map(|(to, _)| to).collect();
    let claims = AddressOwners::of(snapshot).by_destination.into_iter();
    let claimed: BTreeSet<Destination> =
        claims.filter(|(_, (name, _))| wanted(&name.to_string())).map(|(to, _)| to).collect();
    held == claimed
}

/// The elements that were not read and that packets to the Service ports of these names are looked up by.
///
/// Reading them may show more: a chain that an element leads to is followed then.
#[must_use]
pub fn unread_elements(family: IpFamily, table: &Table, wanted: &dyn Fn(&str) -> bool) -> BTreeSet<(Name, Bytes)> {
    let of_wanted = entries(table).into_iter().filter(|(_, entry)| name_of(entry).is_some_and(|name| wanted(&name)));
    let chains = of_wanted.filter_map(|(to, entry)| Some((to, verdict(entry.service?)?.chain()?)));
    chains.flat_map(|(to, chain)| summarize(family, table, to, chain).unread).collect()
}

/// Allowed sources in our layout, by the key of the destination.
struct AllowedSources<'a>(HashMap<&'a [u8], Vec<&'a Element>>);

impl<'a> AllowedSources<'a> {
    fn of(table: &'a Table) -> Self {
        let length = table.sets.get(RESTRICTED).map_or(0, Set::key_length);
        let mut by_destination: HashMap<&[u8], Vec<&Element>> = HashMap::new();
        for element in table.sets.get(ALLOWED).into_iter().flat_map(|set| set.elements.iter()) {
            if let Some(destination) = element.key.get(..length) {
                by_destination.entry(destination).or_default().push(element);
            }
        }
        Self(by_destination)
    }
}

/// Allowed networks in our layout, by the key of the destination.
pub(crate) fn allowed_networks(table: &Table) -> HashMap<Vec<u8>, Vec<IpNet>> {
    let restricted = table.sets.get(RESTRICTED).into_iter().flat_map(|set| set.elements.iter());
    let allowed = AllowedSources::of(table);
    let of = |element: &Element| {
        let elements = allowed.0.get(&*element.key).into_iter().flatten();
        (element.key.to_vec(), elements.flat_map(|allowed| networks(element, allowed)).collect())
    };
    restricted.map(of).collect()
}

/// The networks that an element allows for another element's destination.
fn networks(of: &Element, allowed: &Element) -> Vec<IpNet> {
    let at = of.key.len();
    let end = allowed.end.as_ref().unwrap_or(&allowed.key);
    allowed.key.get(at..).zip(end.get(at..)).map(|(first, last)| between(first, last)).unwrap_or_default()
}

/// The source ranges of a destination: the networks that its firewall chain accepts, and that chain, if it has one.
pub(crate) fn ranges<'a>(
    family: IpFamily,
    table: &Table,
    to: Destination,
    element: &'a Element,
) -> (Vec<IpNet>, Option<&'a Name>) {
    let chain = verdict(element).and_then(Verdict::chain);
    (chain.map(|chain| summarize(family, table, to, chain).ranges).unwrap_or_default(), chain)
}

/// The expected owner of each destination.
#[derive(Default)]
struct AddressOwners<'a> {
    by_destination: HashMap<Destination, (&'a ServicePortName, &'a ServicePort)>,
}

impl<'a> AddressOwners<'a> {
    fn of(snapshot: &'a Snapshot<'a>) -> Self {
        let mut by_destination = HashMap::new();
        for (name, port) in snapshot.ports.iter() {
            for to in port.destinations() {
                let (ip, port_number) = match to {
                    model::Destination::Address(address) => (Some(address.ip()), address.port()),
                    model::Destination::NodePort(port) => (None, port),
                };
                let to = Destination { ip, protocol: name.protocol.number(), port: port_number };
                // The first Service port by name owns it.
                by_destination.entry(to).or_insert((name, port));
            }
        }
        Self { by_destination }
    }
}

fn unnamed(to: Destination) -> String {
    match to.ip {
        Some(ip) => std::net::SocketAddr::new(ip, to.port).to_string(),
        None => format!("node port {}", to.port),
    }
}

/// `10.96.0.10:80/tcp` or `node port 30080/tcp`
pub(crate) fn spelled(to: Destination) -> String {
    let protocol = Protocol::of_number(to.protocol).map(Protocol::name).unwrap_or_default();
    format!("{}/{protocol}", unnamed(to))
}

/// Whether a chain chooses from this node's endpoints.
pub(crate) fn is_local(chain: &str) -> bool {
    LOCAL.iter().any(|beginning| chain.starts_with(beginning))
}

/// The addresses that serve node ports; `None`: all of the node's.
#[must_use]
pub fn node_port_ips(table: &Table) -> Option<Vec<IpAddr>> {
    let set = table.sets.get(NODE_PORT_IPS).filter(|set| !set.elements.is_empty())?;
    Some(set.elements.iter().filter_map(|element| ip(&element.key)).collect())
}

/// The endpoint for a key in a map of the table.
#[must_use]
pub fn endpoint_in(table: &Table, set: &str, key: &[u8]) -> Option<std::net::SocketAddr> {
    match table.sets.get(set)?.find(key) {
        ElementLookup::Present(element) => dispatch::endpoint(element),
        ElementLookup::Absent | ElementLookup::Unread => None,
    }
}

/// The endpoint that an element of a map leads to.
#[must_use]
pub fn endpoint_of(element: &Element) -> Option<std::net::SocketAddr> {
    dispatch::endpoint(element)
}

/// Chains without references from rules or map elements.
#[must_use]
pub fn unused_chains(table: &Table) -> Vec<String> {
    let mut used: BTreeSet<&Name> = BTreeSet::new();
    for rule in table.chains.values().flat_map(|chain| chain.rules.iter().flatten()) {
        used.extend(rule.expressions.iter().filter_map(|expression| match expression {
            Expression::Verdict(verdict) => verdict.chain(),
            _ => None,
        }));
    }
    let elements = table.sets.values().flat_map(|set| set.elements.iter());
    used.extend(elements.filter_map(|element| verdict(element)?.chain()));
    let plain = table.chains.iter().filter(|(_, chain)| chain.base.is_none());
    let idle = plain.map(|(name, _)| name).filter(|name| !used.contains(name));
    let idle = idle.filter(|name| !OF_ALL.contains(&&***name) && !is_always_there(name));
    idle.map(ToString::to_string).collect()
}
