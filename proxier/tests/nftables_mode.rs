//! nftables mode against a fake kernel: any history ends in the state of a fresh start.
//!
//! Work is proportional to the change, and a refused Service port does not affect others. Runs without root.

#[path = "nftables_mode/build.rs"]
mod build;
#[path = "common/cases.rs"]
mod cases;
#[path = "common/cluster.rs"]
mod cluster;
#[path = "nftables_mode/fake.rs"]
mod fake;
#[path = "nftables_mode/incremental.rs"]
mod incremental;
#[path = "nftables_mode/meaning.rs"]
mod meaning;
#[path = "common/run.rs"]
mod run;
#[path = "nftables_mode/work.rs"]
mod work;
