//! The nf_tables flavour of iptables over netlink, without the programs.
//!
//! iptables-nft keeps its rules in ordinary nf_tables tables (`filter`, `nat`, `mangle`): addresses, interfaces, marks
//! and ports as native expressions, everything else as `match` and `target` expressions with the structures of the
//! kernel's xtables extensions. The module `rule` encodes and decodes [`Rule`](crate::iptables::Rule)s; [`NftRules`]
//! reads them, and [`NativeIptables`] is the whole tool.

mod base;
mod batch;
mod edited;
mod expressions;
mod inspected;
mod kept;
mod known;
mod lines;
mod listing;
mod matches;
mod native;
mod read;
mod rule;
mod sets;
mod structure;
mod tables;
mod targets;
#[cfg(test)]
mod tests;
mod tool;
mod transaction;

pub use inspected::{InspectedRule, RuleContent};
pub use read::{NftRules, ReadRule};
pub(in crate::kernel) use read::{TRIES, dump_rules};
pub use rule::{DecodedRule, UnknownRule};
pub(in crate::kernel) use tables::CHAINS_AT_ONCE;
pub use tool::NativeIptables;
