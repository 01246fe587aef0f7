//! The nf_tables ruleset of one family, as read from the kernel: tables of any program.
//!
//! Parts that were not read are explicit (`None`, [`ElementLookup::Unread`]), so that they cannot be mistaken for
//! absent ones.

mod elements;
mod set;
mod terms;
mod text;
mod values;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

pub use elements::{Element, ElementLookup, Elements};
pub use set::{KeyField, Set};

use super::{BaseChain, Bytes, Expression, Hook, Load, Name, Verdict};
use crate::Counters;
use crate::IpFamily;

/// The address family of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// `ip` or `ip6`
    Family(IpFamily),
    /// `inet`: both families.
    Both,
}

impl Scope {
    /// The netfilter protocol number; `NFPROTO_INET` is 1.
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

/// The family and name of a table, displayed as `ip kube-proxy`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableId {
    /// The family.
    pub scope: Scope,
    /// Its name.
    pub name: Name,
}

impl TableId {
    /// The table of a name in the family `ip` or `ip6`.
    #[must_use]
    pub fn of(family: IpFamily, name: &str) -> Self {
        Self { scope: Scope::Family(family), name: name.into() }
    }

    /// Whether iptables-nft has a table of that family and name.
    #[must_use]
    pub fn is_of_iptables(&self) -> bool {
        matches!(self.scope, Scope::Family(_)) && IPTABLES.contains(&&*self.name)
    }
}

impl fmt::Display for TableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.scope, self.name)
    }
}

/// The tables that process packets of one family.
#[derive(Clone, Debug)]
pub struct Ruleset {
    /// The family.
    pub family: IpFamily,
    /// The tables of the family and of `inet`.
    pub tables: BTreeMap<TableId, Table>,
    /// What runs at the hooks that were read, in the kernel's order; `None`: the kernel does not list it.
    pub hooks: BTreeMap<Hook, Option<Vec<HookFunction>>>,
}

impl Ruleset {
    /// A ruleset without tables.
    #[must_use]
    pub fn new(family: IpFamily) -> Self {
        Self { family, tables: BTreeMap::new(), hooks: BTreeMap::new() }
    }

    /// The table of a name in the family itself.
    #[must_use]
    pub fn table(&self, name: &str) -> Option<&Table> {
        self.tables.get(&TableId::of(self.family, name))
    }
}

/// A table as read from the kernel.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// The handle; newer tables have greater ones.
    pub handle: u64,
    /// `flags dormant`: its chains see no packets.
    pub dormant: bool,
    /// `comment`
    pub comment: Option<Name>,
    /// All chains, with or without their rules.
    pub chains: BTreeMap<Name, Chain>,
    /// The sets and maps that were read.
    pub sets: BTreeMap<Name, Set>,
}

/// A function that the kernel runs at a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookFunction {
    /// The priority; that of NAT for each chain of type `nat`.
    pub priority: i32,
    /// The kernel's name of the function.
    pub name: Name,
    /// The base chain of nf_tables that it runs.
    pub chain: Option<(TableId, Name)>,
}

/// A chain as read from the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The handle; newer chains have greater ones.
    pub handle: u64,
    /// The hook and policy of a base chain.
    pub base: Option<BaseChain>,
    /// `comment`
    pub comment: Option<Name>,
    /// The rules in order; `None` if they were not read.
    pub rules: Option<Vec<Rule>>,
}

/// A rule as read from the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The handle, as in `nft -a list`.
    pub handle: u64,
    /// The expressions.
    pub expressions: Vec<Expression>,
    /// `comment`
    pub comment: Option<Name>,
    /// The counters of its `counter` expression.
    pub counters: Option<Counters>,
}

impl Rule {
    /// The chain that the rule's verdict jumps or goes to.
    #[must_use]
    pub fn jump_target(&self) -> Option<&Name> {
        self.expressions.iter().find_map(|expression| match expression {
            Expression::Verdict(Verdict::Jump(chain) | Verdict::Goto(chain)) => Some(chain),
            _ => None,
        })
    }

    /// Whether iptables prints all of it. It prints what it put there itself, and of what nft put there only comparisons
    /// of single fields; what else a rule has it passes over.
    #[must_use]
    pub fn has_iptables_text(&self) -> bool {
        let made_by_iptables = |name: &str| matches!(name, "match" | "target");
        let unknown = |expression: &Expression| match expression {
            Expression::Unknown(name) => made_by_iptables(name),
            _ => false,
        };
        if self.expressions.iter().any(unknown) {
            return true;
        }
        let mut loaded = BTreeSet::new();
        self.expressions.iter().all(|expression| match expression {
            // Of two conditions on one field it prints one.
            Expression::Load { from: from @ Load::Payload(..), .. } => loaded.insert(format!("{from:?}")),
            Expression::Load {
                from: from @ (Load::InputName | Load::OutputName | Load::Protocol | Load::Mark),
                ..
            } => loaded.insert(format!("{from:?}")),
            Expression::Bitwise { .. } | Expression::Compare { .. } | Expression::Counter | Expression::Verdict(_) => {
                true
            }
            Expression::Unknown(name) => matches!(&**name, "limit" | "log"),
            _ => false,
        })
    }
}

/// A part of a ruleset that was not read.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum UnreadPart {
    /// The rules of a chain.
    Rules(TableId, Name),
    /// A set.
    Set(TableId, Name),
    /// Whether a set contains a key.
    Key(TableId, Name, Bytes),
    /// The order of what runs at a hook.
    Hooks(Hook),
}

/// The tables of iptables-nft.
const IPTABLES: [&str; 5] = ["raw", "mangle", "nat", "filter", "security"];

impl Chain {
    /// Whether it is a built-in chain of iptables, by its name.
    #[must_use]
    pub fn is_of_iptables(&self, name: &str) -> bool {
        self.base.as_ref().is_some_and(|base| name == base.hook.name().to_uppercase())
    }
}

impl Table {
    /// The base chains at a hook.
    pub fn base_chains(&self, hook: Hook) -> impl Iterator<Item = (&Name, &Chain, &BaseChain)> {
        let based = self.chains.iter().filter_map(|(name, chain)| Some((name, chain, chain.base.as_ref()?)));
        based.filter(move |(_, _, base)| base.hook == hook)
    }

    /// Whether iptables-nft created the table. Other programs may have added base chains of their own.
    #[must_use]
    pub fn is_iptables(&self, id: &TableId) -> bool {
        let made = |(name, chain): (&Name, &Chain)| chain.is_of_iptables(name);
        id.is_of_iptables() && self.chains.iter().any(made)
    }
}
