//! Netfilter's nouns: values whose printed form is exactly what the kernel's tools read and print.
//!
//! In: numbers, addresses and names. Out: rules, chains and their text. Must not know: Kubernetes, or how to apply
//! anything.

pub mod conntrack;
mod counters;
pub mod ipset;
pub mod iptables;
pub mod ipvs;
mod name;
pub mod nft;
mod restore;
mod save;

pub use conntrack::{Flow, Tuple};
pub use counters::Counters;
pub use name::Name;
pub use restore::{Owner, Restore};
pub use save::{SavedChain, SavedTable, reference};
