//! In: the text of a ruleset, a packet and the node it meets. Out: every way the packet can end, how likely, and the
//! rules that decided it. Must not know Services, endpoints, chain names or who wrote the rules.

pub mod iptables;
mod outcome;
mod packet;

pub use outcome::{Branch, Outcome, Step, Trace, Verdict};
pub use packet::{ConnState, Memory, Node, Origin, Packet, Protocol};
