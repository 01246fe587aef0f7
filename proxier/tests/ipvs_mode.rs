//! IPVS mode against a kernel that is a value: any history ends as a fresh start does, work is in proportion to the
//! change, connections outlive what they began with, and nothing refused keeps the rest.
//!
//! In: clusters. Out: the fake kernel, compared with what has to be there. Needs nothing of the machine.

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
