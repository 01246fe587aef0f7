//! What a node's rules do with a Service, read from the rules themselves.
//!
//! In: the text of anybody's iptables rules, flows, sometimes the model they should follow. Out: Service ports as the
//! rules have them, packets' ways through them, differences from what should be. Must not know: how any of it was read
//! from the kernel, or how it is shown.

pub mod drift;
pub mod flows;
pub mod neighbours;
pub mod rules;
pub mod services;
pub mod walk;
