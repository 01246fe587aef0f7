//! The nf_tables engine and its fake against the kernel: equal results, equal tables.
//!
//! Applies fixed and random transactions, valid and invalid ones, and compares with what nft prints. Needs root and
//! nft, which only reads here.

mod contract;
pub mod kernel;
mod parts;
mod printed;
