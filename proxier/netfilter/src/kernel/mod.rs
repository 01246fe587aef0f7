//! Reads and writes kernel state: over netlink, in `/proc` and through the iptables programs.
//!
//! The only module with side effects. Each subsystem is a trait with two implementations: the running kernel
//! (`System…`) and a fake (feature `testing`).

mod address_watch;
mod client_probe;
mod command;
pub mod conntrack;
pub mod descriptors;
mod flavour;
mod flavour_kernel;
mod flows;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod host;
pub mod ipset;
pub mod iptables;
pub mod iptables_nft;
pub mod ipvs;
mod legacy;
pub mod link;
pub mod memory;
mod namespaces;
mod neighbour;
mod netlink;
pub mod netns;
mod nfacct;
pub mod nftables;
pub mod node;
mod recent;
mod retry;
mod route;
mod rule_counts;
mod rules;
mod socket_diag;
mod sockets;
mod writer_priority;
pub mod xfrm;
mod xtables_lock;

pub use address_watch::{AddressWatch, SystemAddressWatch};
pub use client_probe::{ClientProbe, SystemClientProbe};
pub use command::set_timeout as set_program_timeout;
pub use conntrack::{ConntrackTable, Deletions, SystemConntrack};
pub use flavour::{Flavour, FlavourChoice, detect as detect_flavour};
pub use flows::{LiveFlow, for_each_flow};
pub use host::{Host, SystemHost, cpu_time, cpus, ignored_signals, kernel_release, set_oom_score};
pub use ipset::{IpSetError, IpSets, SetOperation, SystemIpSets};
pub use iptables::{IptablesTool, RestoreError, SystemIptables, ToolError, existing_tables, has_legacy_tables};
pub use iptables_nft::{NativeIptables, NftRules};
pub use ipvs::{IpvsError, IpvsTable, Operation, SystemIpvs};
pub use legacy::{TableSize, table_size};
pub use link::{AddressOperation, DeviceName, LinkError, Links, SystemLinks};
pub use namespaces::{
    FILTER_RULES, NamespaceAddresses, NamespaceReads, NetworkNamespace, VisibleNamespaces, interceptors,
    namespace_addresses, read_in_namespaces,
};
pub use neighbour::{Neighbour, NeighbourState, NextHop, neighbour, next_hop};
pub use netlink::traffic::{Traffic, traffic};
pub use nfacct::packet_counters;
pub use nftables::{NftReader, NftTables, SystemNftables, TableFlags, delete_table, has_chain, has_table, table_flags};
pub use recent::last_seen;
pub use retry::retry;
pub use route::{FORWARDING_OFF, Route, RouteTable, has_policy_rules, policy_selectors, route_to};
pub use rule_counts::{CountedRule, counted_rules};
pub use rules::RuleReader;
pub use socket_diag::{BoundSocket, bound_sockets};
pub use sockets::{listening_inodes, listens, open_sockets, process_name, process_of_socket};
pub use writer_priority::{Preemption, WriterGuard, WriterPriority, WriterRole};
