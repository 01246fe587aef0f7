//! The kernel and its tools: the only module with side effects.
//!
//! In: netfilter's nouns. Out: the same, from and to the kernel. Must not know: Services, modes.

mod command;
pub mod conntrack;
mod flavour;
mod flows;
pub mod host;
pub mod iptables;
pub mod memory;
mod netlink;
pub mod netns;
mod nfacct;
pub mod node;
mod recent;
mod rules;

pub use conntrack::{ConntrackTable, Deleted, SystemConntrack};
pub use flavour::{Choice, Flavour, choose as choose_flavour};
pub use flows::{LiveFlow, each_flow};
pub use host::{Host, SystemHost, cpu_time};
pub use iptables::{IptablesTool, RestoreError, SystemIptables, ToolError};
pub use nfacct::packet_counters;
pub use recent::last_seen;
pub use rules::RuleReader;
