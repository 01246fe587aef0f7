//! The stages of each hook, in the order in which packets pass them.
//!
//! Chains are ordered by the kernel's priorities: the tables of iptables have fixed ones, and all NAT chains run at one
//! stage.

use std::cmp::Reverse;

use netfilter::nft::ruleset::{Chain, Table, TableId};
use netfilter::nft::{BaseChain, ChainType, Hook, Name};

use crate::rules;

/// The priority of connection tracking (`NF_IP_PRI_CONNTRACK`).
const CONNTRACK: i32 = -200;
/// `NF_IP_PRI_NAT_DST` and `NF_IP_PRI_NAT_SRC`
const DNAT: i32 = -100;
const SNAT: i32 = 100;
/// A table's NAT priority, which is [`DNAT`] or [`SNAT`] depending on the hook.
const NAT: i32 = 0;

/// A table of iptables, its priority, and the hooks that it has.
const IPTABLES: [(&str, i32, &[Hook]); 5] = [
    ("raw", -300, &[Hook::Prerouting, Hook::Output]),
    ("mangle", -150, &Hook::ALL),
    ("nat", NAT, &[Hook::Prerouting, Hook::Input, Hook::Output, Hook::Postrouting]),
    ("filter", 0, &[Hook::Input, Hook::Forward, Hook::Output]),
    ("security", 50, &[Hook::Input, Hook::Forward, Hook::Output]),
];

/// When chains of legacy iptables were registered, compared with those of nf_tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LegacyAge {
    Oldest,
    Newest,
}

impl LegacyAge {
    /// Table and chain handle that put a chain of legacy iptables in that order.
    fn handles(self) -> (u64, u64) {
        match self {
            Self::Oldest => (0, 0),
            Self::Newest => (u64::MAX, 0),
        }
    }
}

/// Chains of one table at a hook.
#[derive(Clone, Copy)]
pub(super) enum HookChain<'a> {
    /// The built-in chain of an iptables table; the flavour's name if that flavour is not in use.
    Iptables(&'static str, &'a rules::Table, Option<&'static str>),
    /// A base chain of nftables.
    Nftables(&'a TableId, &'a Table, &'a Name, &'a Chain),
}

/// A stage of a hook.
pub(super) enum HookStage<'a> {
    /// A chain without NAT, and whether packets have passed conntrack.
    Rules(HookChain<'a>, bool),
    /// NAT chains of all tables, in order.
    Nat(Vec<HookChain<'a>>),
    /// IPVS handles packets to virtual servers.
    Serve,
}

/// Of equal priorities, the newest chain comes first: by table and chain handle.
type Order = (i32, Reverse<(u64, u64)>);

/// The stages of a hook, in order. Dormant tables have none: the kernel runs none of their chains.
pub(super) fn at(hook: Hook, rules: super::NodeRules<'_>, legacy: LegacyAge) -> Vec<HookStage<'_>> {
    let super::NodeRules { iptables, other, nftables } = rules;
    let mut all: Vec<(Order, HookStage<'_>)> = Vec::new();
    let mut nat: Vec<(Order, HookChain<'_>)> = Vec::new();
    let held = |name: &str| nftables.and_then(|tables| tables.table(name));
    let translation = if matches!(hook, Hook::Prerouting | Hook::Output) { DNAT } else { SNAT };
    let flavours = [(Some(iptables), None), (other.map(|other| other.ruleset), other.map(|other| other.flavour))];
    for (ruleset, flavour) in flavours.into_iter().filter_map(|(ruleset, flavour)| Some((ruleset?, flavour))) {
        for (name, priority, hooks) in IPTABLES {
            let Some(chains) = ruleset.table(name).filter(|_| hooks.contains(&hook)) else { continue };
            let held = held(name).filter(|_| !ruleset.is_legacy());
            if held.is_some_and(|table| table.dormant) {
                continue;
            }
            let made = if ruleset.is_legacy() { legacy.handles() } else { (held.map_or(0, |table| table.handle), 0) };
            let rules = HookChain::Iptables(name, chains, flavour);
            match name {
                "nat" => nat.push(((translation, Reverse(made)), rules)),
                _ => all.push(((priority, Reverse(made)), HookStage::Rules(rules, tracked(hook, priority)))),
            }
        }
    }
    for (id, table) in nftables.iter().flat_map(|ruleset| &ruleset.tables) {
        if table.dormant {
            continue;
        }
        // The text of an iptables table has its chains, except base chains that nft added.
        let is_iptables = table.is_iptables(id);
        for (name, chain, BaseChain { kind, priority, .. }) in table.base_chains(hook) {
            if is_iptables && chain.is_of_iptables(name) {
                continue;
            }
            let (place, rules) =
                ((*priority, Reverse((table.handle, chain.handle))), HookChain::Nftables(id, table, name, chain));
            match kind {
                ChainType::Nat => nat.push((place, rules)),
                ChainType::Filter | ChainType::Route => {
                    all.push((place, HookStage::Rules(rules, tracked(hook, *priority))))
                }
            }
        }
    }
    nat.sort_by_key(|(order, _)| *order);
    if let Some(first) = nat.iter().map(|((_, Reverse(made)), _)| *made).min() {
        all.push(((translation, Reverse(first)), HookStage::Nat(nat.into_iter().map(|(_, rules)| rules).collect())));
    }
    // `ip_vs_ops`: before sources are translated, and after destinations are.
    match hook {
        Hook::Input => all.push(((SNAT - 2, Reverse((0, 0))), HookStage::Serve)),
        Hook::Output => all.push(((DNAT + 2, Reverse((0, 0))), HookStage::Serve)),
        _ => {}
    }
    all.sort_by_key(|(order, _)| *order);
    all.into_iter().map(|(_, station)| station).collect()
}

fn tracked(hook: Hook, priority: i32) -> bool {
    priority > CONNTRACK || !matches!(hook, Hook::Prerouting | Hook::Output)
}
