//! In: what `iptables-save` prints or `iptables-restore` reads, and a packet. Out: the packet's `Trace`.
//! Must not know chain names other than netfilter's own hooks.

mod args;
mod matching;
mod parse;
mod path;
mod rules;
mod targets;
#[cfg(test)]
mod tests;
mod walk;
mod words;

pub use parse::ParseError;
pub use rules::{Family, Ruleset};
