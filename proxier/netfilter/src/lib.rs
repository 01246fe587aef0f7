#![doc = include_str!("../README.md")]

pub mod conntrack;
mod counters;
mod family;
pub mod ipset;
pub mod iptables;
pub mod ipvs;
pub mod kernel;
mod name;
pub mod nft;
mod restore;
pub mod route;
mod rule_text;
mod save;
#[cfg(feature = "testing")]
pub mod testing;
pub mod xfrm;

pub use conntrack::{Flow, Tuple};
pub use counters::Counters;
pub use family::IpFamily;
pub use name::Name;
pub use restore::{EditedChain, Owner, Restore, RuleEdit};
pub use save::{SavedChain, SavedTable, reference};
