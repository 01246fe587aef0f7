//! nftables mode against a kernel that is a value: any history ends as a fresh start does, work is in proportion to the
//! change, what is refused keeps nobody else from being programmed.
//!
//! In: clusters. Out: the fake kernel, compared with what has to be there. Needs nothing of the machine.

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
