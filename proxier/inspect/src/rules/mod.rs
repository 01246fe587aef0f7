//! iptables rules parsed from text, whichever program wrote them.
//!
//! Reads the output of `iptables-save` or the input of `iptables-restore` into a [`Ruleset`]: tables, chains, rules with
//! their counters, and the meaning of each rule.

mod args;
mod clauses;
pub mod language;
mod matches;
mod parse;
mod targets;
#[cfg(test)]
mod tests;
mod values;
mod words;

pub use netfilter::Counters;
pub use parse::{ParseError, Reader};
pub use values::{
    AddressKind, Chain, Condition, ConntrackMatch, CopyMark, CtState, IpvsMatch, Meaning, NatRange, PhysdevMatch,
    Policy, Ports, RecentAction, RecentMatch, Rule, Ruleset, SetMark, Table, Target, Test,
};

pub(crate) use args::SYN;
pub(crate) use words::bits;
