//! The order of functions that are registered at one hook with equal priority.
//!
//! The kernel runs the one that was registered last first (`nf_hook_entries_grow`, which the lookups of NAT use too). The
//! handles of chains tell that for chains of one table: a chain is registered when it is made, and chains of a dormant table
//! that wakes are in the same order. Between tables nothing tells it but the kernel's own list of a hook.

use std::cmp::Reverse;

use netfilter::nft::Hook;
use netfilter::nft::ruleset::{HookFunction, Ruleset, TableId};

/// Who registered a function. The order of functions of one registrant is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Registrant<'a> {
    /// A table of nf_tables.
    Table(&'a TableId),
    /// The built-in chain of an iptables-nft table, if its handle is not known.
    Iptables(&'static str),
    /// Legacy iptables.
    Legacy,
    /// NAT, which runs all NAT chains.
    Translation,
    /// IPVS.
    Servers,
}

/// A function at a hook.
pub(super) struct Station<'a, T> {
    pub(super) priority: i32,
    pub(super) registrant: Registrant<'a>,
    /// Handles of table and chain; newer ones are greater.
    pub(super) handle: (u64, u64),
    /// The position in the kernel's list of the hook, if it is in that list.
    pub(super) listed: Option<usize>,
    pub(super) runs: T,
}

/// A supposed order where the kernel does not tell it: one registrant before the others, at one hook or at all. Without,
/// newer tables come first, and legacy iptables last.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Supposition<'a> {
    pub(super) first: Option<Registrant<'a>>,
    pub(super) only_at: Option<Hook>,
}

impl<'a> Supposition<'a> {
    /// The registrant that comes first at a hook.
    pub(super) fn at(self, hook: Hook) -> Option<Registrant<'a>> {
        self.first.filter(|_| self.only_at.is_none_or(|only| only == hook))
    }
}

/// Sorts functions as the kernel runs them. `first`: the registrant that is supposed to come first among equals.
pub(super) fn sort<T>(stations: &mut [Station<'_, T>], first: Option<Registrant<'_>>) {
    stations.sort_by_key(|station| {
        let is_first = first.is_some_and(|first| first == station.registrant);
        (station.priority, Reverse((is_first, station.handle)))
    });
    for equal in stations.chunk_by_mut(|a, b| a.priority == b.priority).filter(|equal| is_listed(equal)) {
        equal.sort_by_key(|station| station.listed);
    }
}

/// The registrants of functions whose order is not known, as [`sort`] orders them without a supposition.
pub(super) fn tied<'a, T>(stations: &mut [Station<'a, T>]) -> Vec<Registrant<'a>> {
    sort(stations, None);
    let mut tied = Vec::new();
    for equal in stations.chunk_by(|a, b| a.priority == b.priority).filter(|equal| !is_listed(equal)) {
        let first = equal.iter().map(|station| station.registrant).next();
        // The first one is first without a supposition.
        let others = equal.iter().map(|station| station.registrant).filter(|other| Some(*other) != first);
        tied.extend(others);
    }
    tied
}

fn is_listed<T>(equal: &[Station<'_, T>]) -> bool {
    equal.iter().all(|station| station.listed.is_some())
}

/// The kernel's list of a hook.
pub(super) struct ListedHook<'a>(&'a [HookFunction]);

impl<'a> ListedHook<'a> {
    /// The list as far as it was read.
    pub(super) fn of(ruleset: Option<&'a Ruleset>, hook: Hook) -> Self {
        let listed = ruleset.and_then(|ruleset| ruleset.hooks.get(&hook)).and_then(Option::as_deref);
        Self(listed.unwrap_or_default())
    }

    /// The position of a function; `chain`: the name of a base chain; `priority`: that of a function without one.
    pub(super) fn position(&self, registrant: Registrant<'_>, chain: &str, priority: i32) -> Option<usize> {
        let is_chain = |function: &HookFunction, is_table: &dyn Fn(&TableId) -> bool| {
            function.chain.as_ref().is_some_and(|(table, name)| is_table(table) && **name == *chain)
        };
        let is_named = |function: &HookFunction, prefixes: &[&str]| {
            let is_function = prefixes.iter().any(|prefix| function.name.starts_with(prefix));
            is_function && function.chain.is_none() && function.priority == priority
        };
        self.0.iter().position(|function| match registrant {
            Registrant::Table(id) => is_chain(function, &|table| table == id),
            Registrant::Iptables(name) => is_chain(function, &|id| id.is_of_iptables() && *id.name == *name),
            Registrant::Legacy => is_named(function, &["ipt_", "ip6t_", "iptable_", "ip6table_"]),
            Registrant::Translation => is_named(function, &["nf_nat_"]),
            Registrant::Servers => false,
        })
    }
}
