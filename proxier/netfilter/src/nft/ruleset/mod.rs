//! What the kernel holds of nf_tables, anybody's: all that packets of one family meet.
//!
//! In: what was read, whole or piece by piece. Out: tables, chains, rules, sets and elements as values; which of them
//! are iptables'. Must not know: how they were read, or how packets walk through them.

mod elements;
mod set;
mod terms;
mod text;
mod values;

use std::collections::BTreeMap;
use std::fmt;

pub use elements::{Element, ElementLookup, Elements};
pub use set::{KeyField, Set};

use super::{BaseChain, Bytes, Expression, Hook, Name};
use crate::Counters;
use crate::IpFamily;

/// Which packets a table is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// `ip` or `ip6`: those of one family.
    Family(IpFamily),
    /// `inet`: those of both.
    Both,
}

impl Scope {
    /// The kernel's number for it: `NFPROTO_INET` is 1.
    #[must_use]
    pub fn nfproto(self) -> u8 {
        match self {
            Self::Family(family) => family.nfproto(),
            Self::Both => 1,
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Family(family) => f.write_str(family.nft()),
            Self::Both => f.write_str("inet"),
        }
    }
}

/// Which table. Displayed as in `ip kube-proxy`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableId {
    /// Its packets.
    pub scope: Scope,
    /// Its name.
    pub name: Name,
}

impl TableId {
    /// The table of a family.
    #[must_use]
    pub fn of(family: IpFamily, name: &str) -> Self {
        Self { scope: Scope::Family(family), name: name.into() }
    }
}

impl fmt::Display for TableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.scope, self.name)
    }
}

/// The tables that packets of one family meet.
#[derive(Clone, Debug)]
pub struct Ruleset {
    /// The family.
    pub family: IpFamily,
    /// Its own tables and those for both.
    pub tables: BTreeMap<TableId, Table>,
}

impl Ruleset {
    /// A kernel without tables.
    #[must_use]
    pub fn new(family: IpFamily) -> Self {
        Self { family, tables: BTreeMap::new() }
    }

    /// A table of the family.
    #[must_use]
    pub fn table(&self, name: &str) -> Option<&Table> {
        self.tables.get(&TableId::of(self.family, name))
    }
}

/// A table.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// The kernel's number for it: later ones have greater ones.
    pub handle: u64,
    /// `flags dormant`: no packet comes by.
    pub dormant: bool,
    /// `comment`
    pub comment: Option<Name>,
    /// Its chains: all of them, perhaps without their rules.
    pub chains: BTreeMap<Name, Chain>,
    /// Its sets and maps, as far as they were read.
    pub sets: BTreeMap<Name, Set>,
}

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The kernel's number for it: later ones have greater ones.
    pub handle: u64,
    /// Set for a base chain.
    pub base: Option<BaseChain>,
    /// `comment`
    pub comment: Option<Name>,
    /// Its rules, in order; `None` where they were not read.
    pub rules: Option<Vec<Rule>>,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The kernel's number for it, as `nft -a list` tells it.
    pub handle: u64,
    /// Its instructions.
    pub expressions: Vec<Expression>,
    /// `comment`
    pub comment: Option<Name>,
    /// What its `counter` counted, if it has one.
    pub counters: Option<Counters>,
}

/// Something of a ruleset that was not read.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum UnreadPart {
    /// The rules of a chain.
    Rules(TableId, Name),
    /// A set.
    Set(TableId, Name),
    /// Whether a set has a key.
    Key(TableId, Name, Bytes),
}

/// What iptables' nf_tables flavour calls its tables.
const IPTABLES: [&str; 5] = ["raw", "mangle", "nat", "filter", "security"];

impl Table {
    /// The base chains of a hook.
    pub fn base_chains(&self, hook: Hook) -> impl Iterator<Item = (&Name, &Chain, &BaseChain)> {
        let based = self.chains.iter().filter_map(|(name, chain)| Some((name, chain, chain.base.as_ref()?)));
        based.filter(move |(_, _, base)| base.hook == hook)
    }

    /// Whether it is one of those that the nf_tables flavour of iptables made: `iptables-save` shows what is in it.
    #[must_use]
    pub fn is_iptables(&self, id: &TableId) -> bool {
        let mut bases = self.chains.iter().filter_map(|(name, chain)| Some((name, chain.base.as_ref()?))).peekable();
        matches!(id.scope, Scope::Family(_))
            && IPTABLES.contains(&&*id.name)
            && bases.peek().is_some()
            && bases.all(|(name, base)| **name == *base.hook.name().to_uppercase())
    }
}
