//! Walks a packet through all rules of a node.
//!
//! The result is a [`Trace`]: every possible path with its probability and the rules that decided it. The walk follows
//! the kernel's semantics alone: it knows neither Services nor any program's chain names.

mod chains;
mod doubts;
mod errors;
mod hops;
mod matching;
mod on_demand;
mod order;
mod outcome;
mod packet;
mod path;
mod routing;
mod stages;
mod tables;
#[cfg(test)]
mod tests;
mod ties;
mod translation;
mod unfollowed;
mod xfrm;

pub use on_demand::trace_and_supply;
pub use outcome::{Assumption, Branch, Doubt, DoubtKind, Outcome, Step, Trace, Verdict};
pub use packet::{ConnState, KnownClient, Node, Origin, Packet, RecentLists, UnfollowedRules};
pub use path::{NodeRules, OtherFlavour};
pub use routing::Unrouted;

/// The most outcomes of one random choice that are followed.
pub(crate) const MOST_CHOICES: u32 = 4096;
/// The most numbers of one hash that are followed. Each endpoint has many of them, so they have few outcomes.
pub(crate) const MOST_SLOTS: u32 = 1 << 17;
