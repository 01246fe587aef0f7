//! Reads the rules, the facts and the state of this node.
//!
//! The only module of this crate that uses [`netfilter::kernel`]: to read, never to write. [`NodeRulesets`] are the rules of
//! both families, [`facts`] the rest of what decides over packets, [`paths`] walks packets through the rules, and reads what
//! they meet. What could not be read is an [`Unread`], never an absent value.

mod chain_readers;
pub mod endpoints;
pub mod facts;
mod flavours;
mod focus;
pub mod lookups;
mod native_rules;
pub mod nftables;
mod other_flavour;
pub mod paths;
mod progress;
pub mod read_error;
pub mod readiness;
mod rule_source;
mod rules;
mod rulesets;
mod servers;
mod unread;

pub use focus::{Focus, is_of};
pub use progress::show_progress;
pub use rules::FamilyRules;
pub use rulesets::{NFTABLES, NodeRulesets};
pub use unread::{COMPARISON, Unread};
