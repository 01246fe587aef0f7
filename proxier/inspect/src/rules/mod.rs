//! iptables rules as text: anybody's.
//!
//! In: what `iptables-save` prints or `iptables-restore` reads. Out: a [`Ruleset`]: tables, chains, rules with their
//! counters, and what each rule means. Must not know: chain names other than netfilter's own hooks, who wrote the rules.

mod args;
mod parse;
mod targets;
#[cfg(test)]
mod tests;
mod values;
mod words;

pub use netfilter::Counters;
pub use parse::{ParseError, Reader};
pub use values::{Chain, Condition, Meaning, Policy, Rule, Ruleset, State, Table, Target, Test};

pub(super) use args::SYN;
