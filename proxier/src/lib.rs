//! From a cluster's Services to a node's kernel, for one node and one IP family at a time.
//!
//! The tour, in the order in which a change travels:
//! - [`track`] turns API objects into the compact values of [`model`] and tells which Service ports a change touches;
//! - [`mailbox`] carries changes to the family's thread, the newest of each object;
//! - [`proxier`] owns those values, decides by [`schedule`] when to sync, and calls a mode through [`backend`];
//! - a mode ([`iptables`], [`ipvs`], [`nftables`]) renders [`netfilter`] values from a [`model::Snapshot`] and plans what to write;
//! - [`netfilter::kernel`] applies them: the only module with side effects;
//! - [`cleaner`] deletes the flows that [`conntrack`] finds stale, because the kernel never asks the rules again.
//!
//! Around that life: [`tuning`] sets conntrack's sysctls before it, [`leftovers`] removes the state of inactive modes
//! on threads of its own, between the syncs' turns.
//!
//! Everything here is synchronous and single-threaded: each family has one owner thread, and nobody locks.

pub mod addresses;
pub mod backend;
pub mod cleaner;
pub mod conntrack;
pub mod iptables;
pub mod ipvs;
pub mod leftovers;
pub mod mailbox;
pub mod model;
pub mod nftables;
pub mod protobuf;
pub mod proxier;
pub mod schedule;
#[cfg(feature = "testing")]
pub mod testing;
pub mod track;
pub mod tuning;
pub mod xtables;
