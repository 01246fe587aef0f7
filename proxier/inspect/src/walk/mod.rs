//! A packet's way through rules.
//!
//! In: a ruleset, a packet and the node it meets. Out: a [`Trace`]: every way the packet can end, how likely, and the
//! rules that decided it. Must not know: Services, endpoints, chain names, who wrote the rules.

mod chains;
mod doubts;
mod matching;
mod outcome;
mod packet;
mod path;
mod stations;
mod supply;
mod tables;
#[cfg(test)]
mod tests;
mod translation;

pub use outcome::{Assumption, Branch, Doubt, Outcome, Step, Trace, Verdict};
pub use packet::{ConnState, Memory, Node, Origin, Packet, Unwalked};
pub use path::{OtherFlavour, Rules};
pub use supply::trace_and_supply;

/// A choice among more than so many is not followed.
pub(crate) const MOST_CHOICES: u32 = 4096;
