//! Owners of nf_tables base chains at each hook, in the order of their priorities.
//!
//! Covers all tables of a family except those of iptables itself, whose place among them comes from the iptables rules.

use netfilter::nft::Hook as At;
use netfilter::nft::ruleset::{self, Table, TableId};

use super::{Hook, TableSize};
use crate::rules::Ruleset;
use proxier::nftables::is_kube_proxy;

/// The priority of each iptables table.
const IPTABLES: [(&str, i32); 5] = [("raw", -300), ("mangle", -150), ("nat", -100), ("filter", 0), ("security", 50)];
/// The priority of nat at postrouting and input.
const AFTER_ROUTING: i32 = 100;
/// Names of tables and their owners.
const OWNERS: [(&str, &str); 8] = [
    ("kube-proxy", "kube-proxy"),
    ("firewalld", "firewalld"),
    ("calico", "Calico"),
    ("cilium", "Cilium"),
    ("flannel-ipv4", "flannel"),
    ("flannel-ipv6", "flannel"),
    ("docker-bridges", "Docker"),
    ("netavark", "Podman"),
];

fn owner(id: &TableId) -> String {
    let known = OWNERS.iter().find(|(name, _)| **name == *id.name);
    known.map_or_else(|| format!("table {id}"), |(_, owner)| (*owner).to_owned())
}

/// The hooks with a base chain of any of these tables.
#[must_use]
pub fn hooks(tables: &ruleset::Ruleset, iptables: &Ruleset) -> Vec<Hook> {
    let hook_of = |hook: At| {
        let mut met: Vec<(i32, String)> = Vec::new();
        let mut drops = false;
        for (id, table) in tables.tables.iter().filter(|(_, table)| !table.dormant) {
            for (_, _, base) in table.base_chains(hook) {
                drops |= base.drop;
                met.push((base.priority, owner(id) + if base.drop { " (policy drop)" } else { "" }));
            }
        }
        if met.is_empty() {
            return None;
        }
        for (table, priority) in IPTABLES {
            let chain = iptables.chain(table, &hook.name().to_uppercase());
            if chain.is_some_and(|chain| !chain.rules.is_empty()) {
                let last = table == "nat" && matches!(hook, At::Postrouting | At::Input);
                met.push((if last { AFTER_ROUTING } else { priority }, format!("iptables {table}")));
            }
        }
        // The order of chains with the same priority is not known here.
        met.sort();
        let mut order: Vec<String> = met.into_iter().map(|(_, owner)| owner).collect();
        order.dedup();
        let (family, table, hook) = (tables.family.name(), "nf_tables".to_owned(), hook.name().to_owned());
        Some(Hook { family, table, hook, order, drops })
    };
    At::ALL.into_iter().filter_map(hook_of).collect()
}

/// The sizes of the tables.
#[must_use]
pub fn sizes(tables: &ruleset::Ruleset) -> Vec<TableSize> {
    let size = |(id, table): (&TableId, &Table)| {
        let named = || table.sets.values().filter(|set| !set.is_anonymous());
        let read = is_kube_proxy(table, id);
        TableSize {
            family: tables.family.name(),
            table: id.to_string(),
            chains: table.chains.len(),
            rules: table.chains.values().filter_map(|chain| chain.rules.as_ref()).map(Vec::len).sum(),
            sets: Some(named().count()),
            elements: read.then(|| named().map(|set| set.elements.len()).sum()),
            canary: None,
            read_in_part: read && named().any(|set| !set.elements.is_complete()),
        }
    };
    // Tables without base chains are those of iptables, which are reported as such.
    let is_met = |(_, table): &(&TableId, &Table)| table.chains.values().any(|chain| chain.base.is_some());
    tables.tables.iter().filter(is_met).map(size).collect()
}
