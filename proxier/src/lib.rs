//! Programs a cluster's Services into a node's kernel, per IP family.
//!
//! The modules, in the order in which a change passes through them:
//! - [`track`] decodes API objects into the compact values of [`model`] and finds the Service ports that a change
//!   affects;
//! - [`mailbox`] carries changes to the family's thread, the newest of each object;
//! - [`proxier`] owns the model, schedules syncs by [`schedule`], and calls a mode through [`backend`];
//! - a mode ([`iptables`], [`ipvs`], [`nftables`]) renders [`netfilter`] values from a [`model::Snapshot`] and plans
//!   the writes; [`maglev`] has the slots of Services whose endpoints are chosen by a hash;
//! - [`netfilter::kernel`] applies them: the only module with side effects;
//! - [`cleaner`] deletes the flows that [`conntrack`] finds stale, because the kernel evaluates NAT rules once per
//!   flow; [`ender`] ends the connections that [`vanished`] finds, for Services that ask.
//!
//! Besides, [`traffic`] has what the kernel counts, [`tuning`] sets conntrack's sysctls at startup, and [`leftovers`] removes the state of inactive modes on
//! threads of its own, yielding to syncs.
//!
//! Everything here is synchronous: one thread owns each family, so no state is locked.

pub mod addresses;
pub mod backend;
pub mod cleaner;
pub mod conntrack;
pub mod ender;
mod hash_support;
pub mod iptables;
pub mod ipvs;
pub mod leftovers;
pub mod maglev;
pub mod mailbox;
pub mod model;
pub mod nftables;
pub mod protobuf;
pub mod proxier;
pub mod schedule;
#[cfg(feature = "testing")]
pub mod testing;
pub mod track;
pub mod traffic;
pub mod tuning;
pub mod vanished;
pub mod xtables;
