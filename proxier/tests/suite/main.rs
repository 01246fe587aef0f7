//! All tests of the crate that may share a process; `descriptors.rs` may not.
//!
//! `cargo test -p proxier --test suite GROUP::` runs one group. Groups that talk to the kernel need root and make network
//! namespaces of their own; tests that need IPVS are ignored, and run by `make test-ipvs`.

mod common;

mod address_watch;
mod cleaner;
mod conntrack;
mod contract;
mod counted_rules;
mod ender;
mod facts;
mod family_loop;
mod generation;
mod incremental;
mod ipvs_fakes;
mod ipvs_kernel;
mod ipvs_mode;
mod ipvs_mode_kernel;
mod kernel;
mod leftovers;
mod links;
mod many_refused;
mod native_batches;
mod native_beside;
mod native_histories;
mod native_iptables;
mod nfacct;
mod nftables_engine;
mod nftables_live;
mod nftables_localhost;
mod nftables_mode;
mod nonsense;
mod parts;
mod quick_look;
mod referenced;
mod reports;
mod retired;
mod stale_flows;
mod topology;
mod tracker;
mod tuning;
