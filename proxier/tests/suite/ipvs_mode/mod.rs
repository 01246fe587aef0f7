//! IPVS mode against a fake kernel: any history ends in the state of a fresh start.
//!
//! Work is proportional to the change, connections outlive their endpoint, and a refusal does not affect others. Runs
//! without root.

mod draining;
mod fake;
mod incremental;
mod node;
mod refusals;
mod removal;
mod work;
mod world;
