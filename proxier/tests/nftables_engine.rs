//! The engine for nf_tables against the kernel, and the fake of it against both: equal answers, equal tables.
//!
//! In: transactions, good and bad, fixed ones and random ones. Out: whether both took them, and what both hold then;
//! what nft prints of it. It needs root and nft, which only reads here.

#[path = "nftables/contract.rs"]
mod contract;
#[path = "nftables/kernel.rs"]
mod kernel;
#[path = "nftables/parts.rs"]
mod parts;
#[path = "nftables/printed.rs"]
mod printed;
