//! What the kernel holds of nf_tables besides iptables' own tables: a kube-proxy's table, and others'.
//!
//! Elements of sets of other programs are not read: there may be millions.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use netfilter::IpFamily;
use netfilter::kernel::nftables::NftError;
use netfilter::kernel::nftables::OtherChain;
use netfilter::kernel::node::Link;
use netfilter::kernel::{NftReader, has_table, node};
use netfilter::nft::ruleset::{Element, ElementLookup, Ruleset, Set, Table, TableId, UnreadPart};
use netfilter::nft::{Bytes, Expression, Key, Name};
use proxier::model::{Config, NamespacedName, Protocol, ServicePortName, Snapshot};
use proxier::nftables::{TABLE, expected, is_kube_proxy, place_of};

use super::{Unread, is_of};
use crate::drift::nftables::is_ours;
use crate::services::{endpoint_of, owner_in_table, unread_elements};
use crate::walk::UnfollowedRules;

/// Lists tables and chains; none if they cannot be listed, which is noted. `is_complete`: with all chains, those of Service
/// ports in iptables mode included.
#[must_use]
pub fn outline(reader: &mut NftReader, is_complete: bool, unread: &mut Vec<Unread>) -> Ruleset {
    let read = if is_complete { reader.read_outline() } else { reader.read_outline_without("nat") };
    let ruleset = read.unwrap_or_else(|error| {
        unread.push(Unread::new("tables of nf_tables", format!("{}: {error}", reader.family())));
        Ruleset::new(reader.family())
    });
    note_restless(reader, "tables of nf_tables", unread);
    ruleset
}

/// What of a kube-proxy's table is read: all, or what one Service takes.
#[derive(Clone, Copy, Debug)]
pub struct TableSelection<'a> {
    /// Only this Service: the sets that only chains of others use are left out, because the real one has one for each
    /// Service.
    pub service: Option<&'a NamespacedName>,
    /// Whether the table is compared with objects, which takes all elements of the common sets of upstream's layout.
    pub is_compared: bool,
}

/// Reads the contents of tables that packets meet.
#[must_use]
pub fn filled(mut ruleset: Ruleset, wanted: TableSelection<'_>, unread: &mut Vec<Unread>) -> Ruleset {
    let mut reader = NftReader::new(ruleset.family);
    // No packet meets a table without a base chain; iptables makes such ones too.
    let is_met = |table: &Table| table.chains.values().any(|chain| chain.base.is_some());
    ruleset.tables.retain(|id, table| {
        // Of iptables' own tables only what nft put there: the tool shows the rest.
        let is_iptables = table.is_iptables(id);
        if is_iptables {
            table.chains.retain(|name, chain| !chain.is_of_iptables(name));
        }
        is_iptables || is_met(table)
    });
    for (id, table) in ruleset.tables.iter_mut().filter(|(_, table)| is_met(table)) {
        fill(&mut reader, id, table, wanted, unread);
        note_restless(&mut reader, &format!("table {id}"), unread);
    }
    ruleset
}

/// Chains with rules where a trace does not go: on their way into and out of interfaces, and in bridges.
#[must_use]
pub fn unwalked(reader: &mut NftReader, unread: &mut Vec<Unread>) -> Vec<UnfollowedRules> {
    let found = reader.other_chains().unwrap_or_else(|error| {
        unread.push(Unread::new("tables of families netdev and bridge", error.to_string()));
        Vec::new()
    });
    if found.is_empty() {
        return Vec::new();
    }
    let links = node::links().unwrap_or_else(|error| {
        unread.push(Unread::new("interfaces", error.to_string()));
        Vec::new()
    });
    let bridges = || links.iter().filter(|link| link.kind.as_deref() == Some("bridge"));
    // IPv6 finds neighbours without ARP.
    let is_ipv4 = reader.family() == IpFamily::V4;
    let found = found.into_iter().filter(|chain| is_ipv4 || !chain.of_arp);
    let chains = found.map(|OtherChain { chain, of_bridges, of_arp, devices }| {
        let interfaces = match (of_bridges, of_arp) {
            (true, _) => bridges().map(|link| link.name.clone()).collect(),
            (_, true) => links.iter().map(|link| link.name.clone()).filter(|name| name != "lo").collect(),
            _ => passing(&devices, &links),
        };
        UnfollowedRules { chain, interfaces }
    });
    // Without an interface no packet meets the chain.
    chains.filter(|unwalked| !unwalked.interfaces.is_empty()).collect()
}

/// Kinds of interfaces whose packets pass another interface too.
const ON_OTHERS: [&str; 11] =
    ["vlan", "macvlan", "ipvlan", "vxlan", "geneve", "gre", "ipip", "sit", "ip6tnl", "wireguard", "xfrm"];

/// The interfaces whose packets pass one of these devices: itself, bridges and bonds that it is a port of, and tunnels, which
/// may send by it. A name may end in `*`.
fn passing(devices: &[String], links: &[Link]) -> BTreeSet<String> {
    let is_named = |link: &&Link| {
        devices.iter().any(|device| match device.strip_suffix('*') {
            Some(prefix) => link.name.starts_with(prefix),
            None => link.name == *device,
        })
    };
    let mut found: BTreeSet<String> = links.iter().filter(is_named).map(|link| link.name.clone()).collect();
    if found.is_empty() {
        return found;
    }
    // A port of a bond may be a bridge's port in turn.
    for _ in 0..links.len() {
        let masters = links.iter().filter(|link| found.contains(&link.name)).filter_map(|link| link.master.clone());
        let masters: Vec<String> = masters.collect();
        found.extend(masters);
    }
    let on_others = links.iter().filter(|link| link.kind.as_deref().is_some_and(|kind| ON_OTHERS.contains(&kind)));
    found.extend(on_others.map(|link| link.name.clone()));
    found
}

fn fill(
    reader: &mut NftReader,
    id: &TableId,
    table: &mut Table,
    TableSelection { service, is_compared }: TableSelection<'_>,
    unread: &mut Vec<Unread>,
) {
    let mut note = |what: String, error: NftError| unread.push(Unread::new(&what, error.to_string()));
    reader.read_contents(id, table, &mut note);
    if !is_kube_proxy(table, id) {
        return;
    }
    let used = service.map(|service| sets_of(table, service));
    // Upstream's table is compared by what it does, and of ours the elements that objects ask for are looked up later.
    let by_key = service.filter(|_| !is_compared || is_ours(table));
    let family = reader.family();
    let is_skipped = |name: &Name, set: &Set| match is_compared {
        true => has_element_for_each_endpoint(family, name, set),
        false => maps_to_data(set),
    };
    let is_read = |name: &Name, set: &Set| match set.is_anonymous() {
        true => used.as_ref().is_none_or(|used| used.contains(name)),
        false => by_key.is_none() || set.is_interval() || !is_skipped(name, set),
    };
    reader.read_elements(id, table, &is_read, &mut note);
    if let Some(service) = by_key {
        look_up(reader, id, table, service, &mut note);
    }
}

fn maps_to_data(set: &Set) -> bool {
    set.value.as_ref().is_some_and(|value| !value.is_empty())
}

/// Whether a map of our layout has an element for each endpoint of all Services: there may be a hundred thousand.
#[must_use]
pub fn has_element_for_each_endpoint(family: IpFamily, name: &str, set: &Set) -> bool {
    let is_longer = |(_, destination): (_, usize)| set.key_length() > destination;
    maps_to_data(set) && !set.is_interval() && place_of(family, name).is_some_and(is_longer)
}

/// Looks up the elements that packets to a Service are looked up by.
fn look_up(
    reader: &mut NftReader,
    id: &TableId,
    table: &mut Table,
    service: &NamespacedName,
    note: &mut dyn FnMut(String, NftError),
) {
    let family = reader.family();
    let mut tried: BTreeSet<(Name, Bytes)> = BTreeSet::new();
    loop {
        let unread = unread_elements(family, table, &|name| is_of(name, service));
        let new: Vec<(Name, Bytes)> = unread.difference(&tried).cloned().collect();
        if new.is_empty() {
            return;
        }
        for (name, key) in new {
            let Some(set) = table.sets.get_mut(&name) else { continue };
            match reader.element(id, &name, &key) {
                Ok(found) => set.elements.record(&key, found),
                Err(error) => note(format!("set {name} of table {id}"), error),
            }
            tried.insert((name, key));
        }
    }
}

/// Looks up the elements of a table in our layout that these Service ports should have or have, where they were not read: by
/// the keys of the endpoints that they should have, and of numbers up to a gap. `hashes`: as for [`expected`].
///
/// # Errors
/// If an element could not be looked up.
pub fn look_up_expected(
    family: IpFamily,
    config: &Config,
    snapshot: &Snapshot<'_>,
    addresses: &[IpAddr],
    table: &Table,
    hashes: bool,
) -> Result<LookedUp, String> {
    let lookups = ElementLookups::new(family, table);
    let endpoints = |set: &str, key: &[u8]| endpoint_of(&lookups.element(set, key)?);
    let expected = expected(family, config, snapshot, addresses, &endpoints, hashes);
    for (set, wanted) in &expected.sets {
        wanted.elements.keys().for_each(|key| _ = lookups.element(set, key));
    }
    lookups.finish()
}

/// Looks up elements of a table that were not read whole, each once.
struct ElementLookups<'a> {
    id: TableId,
    table: &'a Table,
    reader: RefCell<NftReader>,
    found: RefCell<LookedUp>,
    failure: RefCell<Option<String>>,
}

/// Elements by set and key; `None`: there is none.
pub type LookedUp = BTreeMap<(Name, Bytes), Option<Element>>;

impl<'a> ElementLookups<'a> {
    fn new(family: IpFamily, table: &'a Table) -> Self {
        let (reader, id) = (RefCell::new(NftReader::new(family)), TableId::of(family, TABLE));
        Self { id, table, reader, found: RefCell::default(), failure: RefCell::default() }
    }

    /// The element of a key, as read or from the kernel.
    fn element(&self, set: &str, key: &[u8]) -> Option<Element> {
        let (name, held) = self.table.sets.get_key_value(set)?;
        match held.find(key) {
            ElementLookup::Present(element) => return Some(element.clone()),
            ElementLookup::Absent => return None,
            ElementLookup::Unread => {}
        }
        let at = (name.clone(), key.into());
        if let Some(known) = self.found.borrow().get(&at) {
            return known.clone();
        }
        let read = self.reader.borrow_mut().element(&self.id, set, key).unwrap_or_else(|error| {
            *self.failure.borrow_mut() = Some(format!("set {set} of table {}: {error}", self.id));
            None
        });
        self.found.borrow_mut().insert(at, read.clone());
        read
    }

    /// What was looked up in the kernel.
    fn finish(self) -> Result<LookedUp, String> {
        self.failure.into_inner().map_or(Ok(self.found.into_inner()), Err)
    }
}

fn of_table(id: &TableId) -> String {
    format!(" of table {id}")
}

/// Whether there is a part of the table that could not be read.
#[must_use]
pub fn lacks_parts(id: &TableId, unread: &[Unread]) -> bool {
    unread.iter().any(|unread| unread.what.ends_with(&of_table(id)))
}

/// A busy cluster's own changes can interrupt every try.
pub fn note_restless(reader: &mut NftReader, what: &str, unread: &mut Vec<Unread>) {
    if reader.take_interrupted() {
        unread.push(Unread::new(what, "it changed while it was read: the answer may mix two moments"));
    }
}

/// The sets that the chains of a Service use, and the sets common to all Services.
fn sets_of(table: &Table, service: &NamespacedName) -> BTreeSet<Name> {
    let own = format!("-{service}/");
    let chains = table.chains.iter().filter(|(name, _)| !name.contains('/') || name.contains(&own));
    let rules = chains.flat_map(|(_, chain)| chain.rules.iter().flatten());
    let sets = rules.flat_map(|rule| &rule.expressions).filter_map(|expression| match expression {
        Expression::Lookup { set, .. } => Some(set.clone()),
        _ => None,
    });
    sets.collect()
}

/// The maps that have the addresses and the node ports of Services.
const BY_ADDRESS: [&str; 3] = ["service-ips", "no-endpoint-services", "firewall-ips"];
const BY_NODE_PORT: [&str; 2] = ["service-nodeports", "no-endpoint-nodeports"];

/// The Service port that owns an address in the kernel's table of nftables mode, by lookups of single keys. `local`: the
/// address is one of the node's.
#[must_use]
pub fn owner(to: SocketAddr, protocol: Protocol, local: bool) -> Option<ServicePortName> {
    let family = IpFamily::of(&to.ip());
    // To list tables and chains takes long where iptables mode has many.
    has_table(family, TABLE).ok().filter(|is_there| *is_there)?;
    let id = TableId::of(family, TABLE);
    let mut reader = NftReader::new(family);
    let mut ruleset = reader.read_outline_without("nat").ok()?;
    ruleset.tables.get(&id).filter(|table| is_kube_proxy(table, &id))?;
    let port = Key::default().protocol(protocol.number()).port(to.port()).build();
    let address = Key::default().address(to.ip()).protocol(protocol.number()).port(to.port()).build();
    let by_address = BY_ADDRESS.map(|map| (map, address.clone()));
    for (map, key) in by_address.into_iter().chain(BY_NODE_PORT.map(|map| (map, port.clone()))) {
        reader.read_part(&mut ruleset, &UnreadPart::Set(id.clone(), map.into())).ok()?;
        reader.read_part(&mut ruleset, &UnreadPart::Key(id.clone(), map.into(), key)).ok()?;
    }
    owner_in_table(ruleset.tables.get(&id)?, to, protocol, local)
}
