//! What the kernel holds of nf_tables besides iptables' own tables: a kube-proxy's table, and others'.
//!
//! Elements of sets of other programs are not read: there may be millions.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use netfilter::IpFamily;
use netfilter::kernel::nftables::NftError;
use netfilter::kernel::nftables::OtherChain;
use netfilter::kernel::{NftReader, node};
use netfilter::nft::ruleset::{Ruleset, Set, Table, TableId, UnreadPart};
use netfilter::nft::{Expression, Key, Name};
use proxier::model::{NamespacedName, Protocol, ServicePortName};
use proxier::nftables::{TABLE, is_kube_proxy};
use proxier_inspect::services::owner_in_table;
use proxier_inspect::walk::UnfollowedRules;

use super::report::Unread;

/// Reads it. Where one Service is asked for, the sets that only chains of others use are left out: the real one has one
/// for each Service.
#[must_use]
pub fn read(family: IpFamily, service: Option<&NamespacedName>, unread: &mut Vec<Unread>) -> Ruleset {
    let mut reader = NftReader::new(family);
    let mut ruleset = match reader.read_outline() {
        Ok(ruleset) => ruleset,
        Err(error) => {
            unread.push(Unread::new("tables of nf_tables", format!("{family}: {error}")));
            return Ruleset::new(family);
        }
    };
    note_restless(&mut reader, "tables of nf_tables", unread);
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
        fill(&mut reader, id, table, service, unread);
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
    let bridges =
        || node::links().unwrap_or_default().into_iter().filter(|link| link.kind.as_deref() == Some("bridge"));
    let chains = found.into_iter().map(|OtherChain { chain, of_bridges, devices }| {
        let devices = if of_bridges { bridges().map(|link| link.name).collect() } else { devices };
        UnfollowedRules { chain, interfaces: devices.into_iter().collect() }
    });
    // Without an interface no packet meets the chain.
    chains.filter(|unwalked| !unwalked.interfaces.is_empty()).collect()
}

fn fill(
    reader: &mut NftReader,
    id: &TableId,
    table: &mut Table,
    service: Option<&NamespacedName>,
    unread: &mut Vec<Unread>,
) {
    let mut note = |what: String, error: NftError| unread.push(Unread::new(&what, error.to_string()));
    reader.read_contents(id, table, &mut note);
    if is_kube_proxy(table, id) {
        let used = service.map(|service| sets_of(table, service));
        let wanted =
            |name: &Name, set: &Set| !set.is_anonymous() || used.as_ref().is_none_or(|used| used.contains(name));
        reader.read_elements(id, table, &wanted, &mut note);
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
    let id = TableId::of(family, TABLE);
    let mut reader = NftReader::new(family);
    let mut ruleset = reader.read_outline().ok()?;
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
