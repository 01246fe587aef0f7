//! IPVS mode against a fake kernel: any history ends in the state of a fresh start.
//!
//! Work is proportional to the change, connections outlive their endpoint, and a refusal does not affect others. Runs
//! without root.

#[path = "common/cases.rs"]
mod cases;
#[path = "common/cluster.rs"]
mod cluster;
#[path = "ipvs_mode/draining.rs"]
mod draining;
#[path = "ipvs_mode/fake.rs"]
mod fake;
#[path = "ipvs_mode/incremental.rs"]
mod incremental;
#[path = "ipvs_mode/node.rs"]
mod node;
#[path = "ipvs_mode/refusals.rs"]
mod refusals;
#[path = "ipvs_mode/removal.rs"]
mod removal;
#[path = "common/run.rs"]
#[allow(dead_code)] // shared with incremental.rs
mod run;
#[path = "ipvs_mode/work.rs"]
mod work;
#[path = "ipvs_mode/world.rs"]
mod world;
