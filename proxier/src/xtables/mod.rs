//! What all modes with iptables rules have in common.
//!
//! In: jumps, chains, what the tools read back. Out: rules of the same words in every mode, and what somebody changed.
//! Must not know: any mode. A mode takes from here, never from another mode.

mod cleanup;
mod drift;
mod jump;
pub mod masquerade;
mod quick;
mod tables;

use netfilter::iptables::Chain;

pub use self::cleanup::{ModeChains, StaleChains, still_referenced};
pub use self::drift::{FormattingExceptions, TableChain, describe};
pub use self::jump::{Jump, JumpPresence};
pub use self::quick::{ChainsByTable, QuickCheck};
pub use self::tables::ObservedTables;

/// Chains in the mangle table by which a kubelet tells the flavour of iptables that it found on the host; upstream's
/// image follows them by its iptables-wrapper.
pub const FLAVOUR_HINTS: [&str; 2] = ["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"];
/// Dispatch by destination.
pub const SERVICES: Chain = Chain::new("KUBE-SERVICES");
/// Masquerades what is marked.
pub const POSTROUTING: Chain = Chain::new("KUBE-POSTROUTING");
/// Marks what is to be masqueraded.
pub const MARK_MASQ: Chain = Chain::new("KUBE-MARK-MASQ");
/// Lets service traffic be forwarded under a restrictive policy.
pub const FORWARD: Chain = Chain::new("KUBE-FORWARD");
/// Drops what a load balancer's source ranges do not let through.
pub const PROXY_FIREWALL: Chain = Chain::new("KUBE-PROXY-FIREWALL");
