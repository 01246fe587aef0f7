//! iptables rules as text: anybody's.
//!
//! In: what `iptables-save` prints or `iptables-restore` reads. Out: a [`Ruleset`]: tables, chains, rules with their
//! counters, and what each rule means. Must not know: chain names other than netfilter's own hooks, who wrote the rules.

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
    AddressKind, Bridged, Chain, Condition, Connection, CopyMark, Ipvs, Meaning, Policy, Ports, Range, Recent,
    RecentAction, Rule, Ruleset, SetMark, State, Table, Target, Test,
};

pub(crate) use args::SYN;
pub(crate) use words::bits;
