//! Reads a node's rules back into Services, drift and packet traces.
//!
//! [`node`] reads the rules and the state of this node. The other modules are pure: their input is iptables rules and
//! nf_tables tables of any program, IPVS and ipset state, conntrack entries and, where known, the model that the rules should
//! follow. The results are:
//! - [`services`]: Service ports as the rules implement them, with one reader for each mode;
//! - [`walk`]: the paths of a packet through all rules, with probabilities;
//! - [`drift`] and [`servers`]: differences from the expected state, which `expected` in [`proxier::iptables`],
//!   [`proxier::ipvs`] and [`proxier::nftables`] computes;
//! - [`neighbours`]: the other programs with rules on the node; [`flows`]: live connections per endpoint.
//!
//! The crate never writes to the kernel and formats no output; it knows the modes' chain and map names.

mod compare;
pub mod drift;
pub mod flows;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod neighbours;
pub mod node;
pub mod rules;
pub mod servers;
pub mod services;
mod similarity;
pub mod walk;
