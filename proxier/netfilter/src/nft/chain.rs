//! Chains and hooks.

use std::fmt;

use super::Name;

/// The type of a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChainType {
    /// `filter`
    Filter,
    /// `nat`: sees the first packet of each connection.
    Nat,
    /// `route`: reroutes packets of this host whose mark changed.
    Route,
}

impl ChainType {
    /// All types.
    pub const ALL: [Self; 3] = [Self::Filter, Self::Nat, Self::Route];

    /// The name after `type`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
            Self::Route => "route",
        }
    }
}

/// A netfilter hook, with the kernel's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hook {
    /// `prerouting`
    Prerouting = 0,
    /// `input`
    Input = 1,
    /// `forward`
    Forward = 2,
    /// `output`
    Output = 3,
    /// `postrouting`
    Postrouting = 4,
}

impl Hook {
    /// All hooks, in the order of their numbers.
    pub const ALL: [Self; 5] = [Self::Prerouting, Self::Input, Self::Forward, Self::Output, Self::Postrouting];

    /// The name after `hook`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
        }
    }
}

/// The attributes of a base chain, which is attached to a hook.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BaseChain {
    /// `type`
    pub kind: ChainType,
    /// `hook`
    pub hook: Hook,
    /// `priority`
    pub priority: i32,
    /// `policy drop` instead of `policy accept`.
    pub drop: bool,
}

impl fmt::Display for BaseChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let policy = if self.drop { "drop" } else { "accept" };
        let (kind, hook) = (self.kind.name(), self.hook.name());
        write!(f, "type {kind} hook {hook} priority {}; policy {policy};", self.priority)
    }
}

/// A chain, without its rules.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Chain {
    /// Its name.
    pub name: Name,
    /// The hook and policy of a base chain; `None` for a regular chain.
    pub base: Option<BaseChain>,
    /// `comment`
    pub comment: Option<Name>,
}

impl Chain {
    /// A regular chain, which rules jump to.
    #[must_use]
    pub fn plain(name: impl Into<Name>) -> Self {
        Self { name: name.into(), base: None, comment: None }
    }

    /// A base chain with policy `accept`.
    #[must_use]
    pub fn base(name: impl Into<Name>, kind: ChainType, hook: Hook, priority: i32) -> Self {
        Self { name: name.into(), base: Some(BaseChain { kind, hook, priority, drop: false }), comment: None }
    }
}
