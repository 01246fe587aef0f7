//! Chains: where packets come by.
//!
//! In: names, hooks, priorities. Out: the head of a chain as `nft list` prints it. Must not know: rules.

use std::fmt;

use super::Name;

/// What a base chain is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChainType {
    /// `filter`
    Filter,
    /// `nat`: sees the first packet of each connection.
    Nat,
    /// `route`: what the host sends is routed anew if its mark changed.
    Route,
}

impl ChainType {
    /// All.
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

/// Where on their way packets come by; the numbers are the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
    /// All, in the order of their numbers.
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

/// What makes a chain one that packets come by.
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

/// A chain without its rules.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Chain {
    /// Its name.
    pub name: Name,
    /// Set for a base chain.
    pub base: Option<BaseChain>,
    /// `comment`
    pub comment: Option<Name>,
}

impl Chain {
    /// A chain that others lead to.
    #[must_use]
    pub fn plain(name: impl Into<Name>) -> Self {
        Self { name: name.into(), base: None, comment: None }
    }

    /// A chain that packets come by.
    #[must_use]
    pub fn base(name: impl Into<Name>, kind: ChainType, hook: Hook, priority: i32) -> Self {
        Self { name: name.into(), base: Some(BaseChain { kind, hook, priority, drop: false }), comment: None }
    }
}
