//! What a node's rules do with a Service, read from the rules themselves.
//!
//! In: the text of anybody's iptables rules, flows, sometimes the model they should follow. Out: Service ports as the
//! rules have them, packets' ways through them, differences from what should be. Must not know: how any of it was read
//! from the kernel, how it is shown, or the API's shapes. Of iptables mode it knows the names of chains; what rules should
//! be comes from [`crate::iptables::expected`] and [`crate::ipvs::expected`]. Another mode gets its own reader beside
//! `services::from_iptables` and `services::from_ipvs`.

mod compare;
pub mod drift;
pub mod flows;
mod likeness;
pub mod neighbours;
pub mod rules;
pub mod servers;
pub mod services;
pub mod walk;
