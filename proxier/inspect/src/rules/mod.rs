//! iptables rules parsed from text, whichever program wrote them.
//!
//! Reads the output of `iptables-save` or the input of `iptables-restore` into a [`Ruleset`]: tables, chains, rules with
//! their counters, and the meaning of each rule.

mod actions;
mod args;
mod clauses;
mod conditions;
pub mod language;
mod matches;
mod parse;
mod targets;
#[cfg(test)]
mod tests;
mod values;
mod words;

pub use actions::{CopyMark, HopChange, NatRange, SetMark, Target};
pub use conditions::{
    AddressKind, Condition, ConntrackMatch, CtState, IpvsMatch, PhysdevMatch, Ports, RecentAction, RecentMatch, Test,
};
pub use netfilter::Counters;
pub use parse::{ParseError, Reader};
pub use values::{Chain, Meaning, Policy, Rule, Ruleset, Table};

pub(crate) use args::SYN;
pub(crate) use words::bits;
