//! The stages of each hook, in the order in which packets pass them.
//!
//! Chains are ordered by the kernel's priorities: the tables of iptables have fixed ones, and all NAT chains run at one
//! stage. Equal priorities are the matter of `ties`.

use netfilter::nft::ruleset::{Chain, Ruleset, Table, TableId};
use netfilter::nft::{BaseChain, ChainType, Hook, Name};

use super::OtherFlavour;
use super::ties::{self, ListedHook, Registrant, Station, Supposition};
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

/// Chains of one table at a hook.
#[derive(Clone, Copy)]
pub(super) enum HookChain<'a> {
    /// The built-in chain of an iptables table; the flavour's name if that flavour is not in use.
    Iptables(&'static str, &'a rules::Table, Option<&'static str>),
    /// A base chain of nftables.
    Nftables(&'a TableId, &'a Table, &'a Name, &'a Chain),
}

impl HookChain<'_> {
    /// Whether the chain may decide anything: it has rules, rules that were not read, or a policy that drops.
    fn may_decide(&self, hook: Hook) -> bool {
        match self {
            Self::Iptables(_, chains, _) => chains.get(&*hook.name().to_uppercase()).is_none_or(|chain| {
                !chain.rules.is_empty() || chain.policy.is_some_and(|policy| policy != rules::Policy::Accept)
            }),
            Self::Nftables(.., chain) => {
                let drops = chain.base.as_ref().is_some_and(|base| base.drop);
                drops || chain.rules.as_ref().is_none_or(|rules| !rules.is_empty())
            }
        }
    }
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

/// What is registered at a hook.
struct Stations<'a> {
    hook: Hook,
    /// The priority of NAT.
    translation: i32,
    listed: ListedHook<'a>,
    all: Vec<Station<'a, HookStage<'a>>>,
    nat: Vec<Station<'a, HookChain<'a>>>,
}

/// The stages of a hook, in order. Dormant tables have none: the kernel runs none of their chains.
pub(super) fn at<'a>(hook: Hook, rules: super::NodeRules<'a>, supposed: Supposition<'_>) -> Vec<HookStage<'a>> {
    let Stations { mut all, mut nat, .. } = Stations::of(hook, rules);
    let supposed = supposed.at(hook);
    ties::sort(&mut nat, supposed);
    if let Some(station) = all.iter_mut().find(|station| station.registrant == Registrant::Translation) {
        station.runs = HookStage::Nat(nat.into_iter().map(|station| station.runs).collect());
    }
    ties::sort(&mut all, supposed);
    all.into_iter().map(|station| station.runs).collect()
}

/// Who has chains at a hook whose order is not known, in the order that [`at`] supposes.
pub(super) fn ties(hook: Hook, rules: super::NodeRules<'_>) -> Vec<Registrant<'_>> {
    let Stations { mut all, mut nat, .. } = Stations::of(hook, rules);
    all.retain(|station| match &station.runs {
        HookStage::Rules(chain, _) => chain.may_decide(hook),
        HookStage::Nat(_) | HookStage::Serve => true,
    });
    nat.retain(|station| station.runs.may_decide(hook));
    let mut tied = ties::tied(&mut all);
    tied.extend(ties::tied(&mut nat));
    tied
}

/// The dormant tables that would have chains at a hook.
pub(super) fn dormant(hook: Hook, rules: super::NodeRules<'_>) -> Vec<TableId> {
    let super::NodeRules { iptables, other, nftables } = rules;
    let Some(nftables) = nftables else { return Vec::new() };
    let rulesets = [Some(iptables), other.map(|other| other.ruleset)];
    let of_iptables = |id: &TableId| {
        let here = |(name, _, hooks): &(&str, i32, &[Hook])| *name == &*id.name && hooks.contains(&hook);
        let has = |ruleset: &&rules::Ruleset| !ruleset.is_legacy() && ruleset.table(&id.name).is_some();
        id.is_of_iptables() && IPTABLES.iter().any(here) && rulesets.iter().flatten().any(has)
    };
    let asleep = nftables.tables.iter().filter(|(_, table)| table.dormant);
    let skipped = asleep.filter(|(id, table)| table.base_chains(hook).next().is_some() || of_iptables(id));
    skipped.map(|(id, _)| id.clone()).collect()
}

impl<'a> Stations<'a> {
    fn of(hook: Hook, rules: super::NodeRules<'a>) -> Self {
        let mut stations = Self {
            hook,
            translation: if matches!(hook, Hook::Prerouting | Hook::Output) { DNAT } else { SNAT },
            listed: ListedHook::of(rules.nftables, hook),
            all: Vec::new(),
            nat: Vec::new(),
        };
        stations.add_iptables(rules.nftables, rules.iptables, None);
        if let Some(OtherFlavour { ruleset, flavour }) = rules.other {
            stations.add_iptables(rules.nftables, ruleset, Some(flavour));
        }
        rules.nftables.into_iter().for_each(|nftables| stations.add_tables(nftables));
        stations.add_functions();
        stations
    }

    /// Adds the chains of iptables' tables. `nftables`: has the handles of those of the nf_tables flavour.
    fn add_iptables(
        &mut self,
        nftables: Option<&'a Ruleset>,
        iptables: &'a rules::Ruleset,
        flavour: Option<&'static str>,
    ) {
        let (hook, built_in) = (self.hook, self.hook.name().to_uppercase());
        for (name, priority, _) in IPTABLES.into_iter().filter(|(.., hooks)| hooks.contains(&hook)) {
            let Some(chains) = iptables.table(name) else { continue };
            let id = TableId::of(iptables.family(), name);
            let held = nftables.filter(|_| !iptables.is_legacy()).and_then(|tables| tables.tables.get_key_value(&id));
            if held.is_some_and(|(_, table)| table.dormant) {
                continue;
            }
            let (registrant, handle) = match held {
                _ if iptables.is_legacy() => (Registrant::Legacy, (0, 0)),
                Some((id, table)) => match table.chains.get(&*built_in) {
                    Some(chain) => (Registrant::Table(id), (table.handle, chain.handle)),
                    // The table's own chains were not kept.
                    None => (Registrant::Iptables(name), (table.handle, 0)),
                },
                None => (Registrant::Iptables(name), (0, 0)),
            };
            let (kind, priority) =
                if name == "nat" { (ChainType::Nat, self.translation) } else { (ChainType::Filter, priority) };
            let runs = HookChain::Iptables(name, chains, flavour);
            self.add((kind, priority), (registrant, handle), &built_in, runs);
        }
    }

    /// Adds the base chains of other tables.
    fn add_tables(&mut self, nftables: &'a Ruleset) {
        for (id, table) in nftables.tables.iter().filter(|(_, table)| !table.dormant) {
            // The text of an iptables table has its chains, except base chains that nft added.
            let is_iptables = table.is_iptables(id);
            for (name, chain, BaseChain { kind, priority, .. }) in table.base_chains(self.hook) {
                if !is_iptables || !chain.is_of_iptables(name) {
                    let registered = (Registrant::Table(id), (table.handle, chain.handle));
                    self.add((*kind, *priority), registered, name, HookChain::Nftables(id, table, name, chain));
                }
            }
        }
    }

    fn add(
        &mut self,
        (kind, priority): (ChainType, i32),
        (registrant, handle): (Registrant<'a>, (u64, u64)),
        name: &str,
        chain: HookChain<'a>,
    ) {
        let shown = if kind == ChainType::Nat { self.translation } else { priority };
        let listed = self.listed.position(registrant, name, shown);
        match kind {
            ChainType::Nat => self.nat.push(Station { priority, registrant, handle, listed, runs: chain }),
            ChainType::Filter | ChainType::Route => {
                let runs = HookStage::Rules(chain, tracked(self.hook, priority));
                self.all.push(Station { priority, registrant, handle, listed, runs });
            }
        }
    }

    /// Adds NAT and IPVS.
    fn add_functions(&mut self) {
        if let Some(handle) = self.nat.iter().map(|station| station.handle).max() {
            let (priority, registrant) = (self.translation, Registrant::Translation);
            // A kernel that lists the chains of NAT does not list NAT itself.
            let chains = || self.nat.iter().filter_map(|station| station.listed).min();
            let listed = self.listed.position(registrant, "", priority).or_else(chains);
            self.all.push(Station { priority, registrant, handle, listed, runs: HookStage::Nat(Vec::new()) });
        }
        // `ip_vs_ops`: before sources are translated, and after destinations are.
        let priority = match self.hook {
            Hook::Input => SNAT - 2,
            Hook::Output => DNAT + 2,
            _ => return,
        };
        let (registrant, handle) = (Registrant::Servers, (0, 0));
        self.all.push(Station { priority, registrant, handle, listed: None, runs: HookStage::Serve });
    }
}

fn tracked(hook: Hook, priority: i32) -> bool {
    priority > CONNTRACK || !matches!(hook, Hook::Prerouting | Hook::Output)
}
