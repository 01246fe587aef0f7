//! What a node's rules do with a Service, read from the rules themselves.
//!
//! In: anybody's rules of iptables and tables of nf_tables, flows, sometimes the model they should follow. Out: Service
//! ports as the rules have them, packets' ways through them, differences from what should be. Must not know: how any of it
//! was read from the kernel, how it is shown, or the API's shapes. Of the modes it knows the names of chains and maps; what
//! should be comes from `expected` in [`proxier::iptables`], [`proxier::ipvs`] and [`proxier::nftables`]. Each mode has its own
//! reader in `services`.

mod compare;
pub mod drift;
pub mod flows;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub mod fuzzing;
mod likeness;
pub mod neighbours;
pub mod rules;
pub mod servers;
pub mod services;
pub mod walk;
