//! The nf_tables flavour of iptables over netlink, without the programs.
//!
//! iptables-nft keeps its rules in ordinary nf_tables tables (`filter`, `nat`, `mangle`): addresses, interfaces, marks
//! and ports as native expressions, everything else as `match` and `target` expressions with the structures of the
//! kernel's xtables extensions. The module `rule` encodes and decodes [`Rule`](crate::iptables::Rule)s; [`NftRules`]
//! reads them.

#[allow(dead_code)] // The writer is not there yet.
mod expressions;
mod matches;
#[allow(dead_code)]
mod native;
mod read;
#[allow(dead_code)]
mod rule;
mod sets;
mod structure;
mod targets;
#[cfg(test)]
mod tests;

pub use read::{NftRules, ReadRule};
pub use rule::{DecodedRule, UnknownRule};
