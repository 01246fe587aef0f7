//! What becomes of packets under two rulesets: the same probes go through both, and the sets of outcomes must be equal.
//!
//! In: a case's objects; rulesets, loaded on nodes with the same links and addresses. Out: for each probe what can become of
//! it, sampled over the random choices, and where two nodes differ. Must not know: which mode made a ruleset.
//!
//! Packets are raw: the first of a connection each, thousands a second, and what comes out of the node or is delivered on
//! it is told by a tag in the packet. So the kernel itself evaluates the rules, addresses, routes and connection tracking.

mod compare;
mod node;
mod packet;
mod plan;
mod survey;

pub use compare::{Difference, differences};
pub use node::{Entry, Node, Outcome};
pub use packet::{Probe, Refusal, Stage, Transport};
pub use plan::{Client, Plan, Question};
pub(crate) use survey::enough;
pub use survey::{Answer, Survey, survey};
