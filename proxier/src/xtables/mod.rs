//! Code shared by the modes that write iptables rules.
//!
//! Modes depend on this module, never on each other, so that the same rules and events have the same text in every
//! mode.

mod cleanup;
mod drift;
mod jump;
pub mod masquerade;
mod quick;
mod table_check;
mod tables;

use netfilter::iptables::Chain;

pub use self::cleanup::{ModeChains, StaleChains, still_referenced};
pub use self::drift::{FormattingExceptions, TableChain, describe};
pub use self::jump::{Jump, JumpPresence};
pub use self::quick::{ChainsByTable, QuickCheck};
pub use self::table_check::TableCheck;
pub use self::tables::ObservedTables;

/// Mangle chains by which a kubelet marks the iptables flavour in use.
///
/// Upstream's image follows them by its iptables-wrapper.
pub const FLAVOUR_HINTS: [&str; 2] = ["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"];
/// Dispatches by destination.
pub const SERVICES: Chain = Chain::new("KUBE-SERVICES");
/// Masquerades marked packets.
pub const POSTROUTING: Chain = Chain::new("KUBE-POSTROUTING");
/// Marks packets for masquerading.
pub const MARK_MASQ: Chain = Chain::new("KUBE-MARK-MASQ");
/// Lets service traffic be forwarded under a restrictive policy.
pub const FORWARD: Chain = Chain::new("KUBE-FORWARD");
/// Drops packets from outside a load balancer's source ranges.
pub const PROXY_FIREWALL: Chain = Chain::new("KUBE-PROXY-FIREWALL");
