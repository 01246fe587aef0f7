//! nftables mode against a fake kernel: any history ends in the state of a fresh start.
//!
//! Work is proportional to the change, and a refused Service port does not affect others. Runs without root.

mod build;
mod fake;
mod hashing;
mod incremental;
pub mod meaning;
mod spared;
mod work;
