//! Compares the packet outcomes of two rulesets, independent of their mode.
//!
//! Both rulesets are loaded on nodes with the same links and addresses. Each question is sampled until all random
//! choices have been observed.
//!
//! Probes are raw packets, each the first of a connection, at thousands a second, recognised by a tag in the payload.
//! Thus the kernel itself evaluates rules, addresses, routes and connection tracking.

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
