//! Differences between the expected kernel state and the state found.
//!
//! `compare` compares iptables rules, `nftables` a table in our own layout, `behaviour` the effect of tables in another
//! layout, and [`super::servers`] the virtual servers, sets and addresses of IPVS mode.

pub mod behaviour;
pub mod nftables;
mod shape;

use serde::Serialize;

pub use super::compare::{Comparison, ServiceFilter, differences};

/// The kind of a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DifferenceKind {
    /// An expected table is missing or was not read.
    MissingTable,
    /// An expected chain is missing.
    MissingChain,
    /// A chain of a Service port is not expected.
    UnexpectedChain,
    /// An expected rule is missing.
    MissingRule,
    /// A rule is not expected.
    UnexpectedRule,
    /// A rule differs from the expected one.
    AlteredRule,
    /// A rule is at another position in its chain.
    MovedRule,
    /// An expected virtual server is missing.
    MissingVirtualServer,
    /// A virtual server is not expected.
    UnexpectedVirtualServer,
    /// A virtual server's scheduling differs.
    AlteredVirtualServer,
    /// An expected real server is missing.
    MissingRealServer,
    /// A real server is not expected.
    UnexpectedRealServer,
    /// A real server's weight or forwarding method differs.
    AlteredRealServer,
    /// An expected set is missing.
    MissingSet,
    /// An expected entry of a set is missing.
    MissingEntry,
    /// An entry of a set is not expected.
    UnexpectedEntry,
    /// The expected network device is missing.
    MissingDevice,
    /// An expected address of the device is missing.
    MissingAddress,
    /// An address of the device is not expected.
    UnexpectedAddress,
    /// An nf_tables table's definition differs.
    AlteredTable,
    /// A chain's hook, priority or policy differs.
    AlteredChain,
    /// A set's definition differs.
    AlteredSet,
    /// An expected element of a set or map is missing.
    MissingElement,
    /// An element of a set or map is not expected.
    UnexpectedElement,
    /// An element's value differs.
    AlteredElement,
    /// Packets to a Service's address have another outcome than expected.
    AlteredBehaviour,
}

impl DifferenceKind {
    /// The kind in words, as `dump` prints it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::MissingTable => "missing table",
            Self::MissingChain => "missing chain",
            Self::UnexpectedChain => "unexpected chain",
            Self::MissingRule => "missing rule",
            Self::UnexpectedRule => "unexpected rule",
            Self::AlteredRule => "altered rule",
            Self::MovedRule => "moved rule",
            Self::MissingVirtualServer => "missing virtual server",
            Self::UnexpectedVirtualServer => "unexpected virtual server",
            Self::AlteredVirtualServer => "altered virtual server",
            Self::MissingRealServer => "missing real server",
            Self::UnexpectedRealServer => "unexpected real server",
            Self::AlteredRealServer => "altered real server",
            Self::MissingSet => "missing set",
            Self::MissingEntry => "missing entry",
            Self::UnexpectedEntry => "unexpected entry",
            Self::MissingDevice => "missing device",
            Self::MissingAddress => "missing address",
            Self::UnexpectedAddress => "unexpected address",
            Self::AlteredTable => "altered table",
            Self::AlteredChain => "altered chain",
            Self::AlteredSet => "altered set",
            Self::MissingElement => "missing element",
            Self::UnexpectedElement => "unexpected element",
            Self::AlteredElement => "altered element",
            Self::AlteredBehaviour => "altered behaviour",
        }
    }

    /// Whether it is about a set of nf_tables.
    #[must_use]
    pub fn is_of_set(self) -> bool {
        matches!(
            self,
            Self::MissingSet | Self::AlteredSet | Self::MissingElement | Self::UnexpectedElement | Self::AlteredElement
        )
    }
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Difference {
    /// `IPv4` or `IPv6`.
    pub family: &'static str,
    /// The kind.
    pub kind: DifferenceKind,
    /// The iptables table, the nf_tables family and table, or [`SERVERS`], [`SETS`] or [`DEVICE`].
    pub table: String,
    /// The chain, virtual server, set or device; the address if the behaviour is altered.
    pub chain: String,
    /// The expected text, as `iptables-save`, `nft list`, `ipvsadm -S -n` or `ipset save` prints it.
    pub expected: Option<String>,
    /// The text found.
    pub found: Option<String>,
    /// The Service port concerned, where known.
    pub service: Option<String>,
}

/// [`Difference::table`] of virtual servers.
pub const SERVERS: &str = "ipvs";
/// [`Difference::table`] of ipset entries.
pub const SETS: &str = "ipset";
/// [`Difference::table`] of addresses on a network device.
pub const DEVICE: &str = "device";

impl Difference {
    /// The location in words: table and chain, or what replaces them.
    #[must_use]
    pub fn place(&self) -> String {
        let Self { table, chain, .. } = self;
        match &**table {
            SERVERS => format!("virtual server {chain}"),
            SETS => format!("set {chain}"),
            DEVICE => format!("device {chain}"),
            _ if chain.is_empty() => format!("table {table}"),
            _ if self.kind == DifferenceKind::AlteredBehaviour => chain.clone(),
            _ if self.kind.is_of_set() => format!("table {table}, set {chain}"),
            _ => format!("table {table}, chain {chain}"),
        }
    }

    /// Whether the difference is in a table of rules.
    #[must_use]
    pub fn is_of_rules(&self) -> bool {
        ![SERVERS, SETS, DEVICE].contains(&&*self.table)
    }
}
