//! What differs between what should be and what is.
//!
//! In: both. Out: [`Difference`]s, rule by rule and element by element. Must not know: how either was made, or how to
//! mend it. `compare` compares rules of iptables, `nftables` our table of nf_tables, `behaviour` what other tables
//! do, [`super::servers`] what IPVS mode has besides rules.

pub mod behaviour;
pub mod nftables;
mod shape;

use serde::Serialize;

pub use super::compare::{Comparison, Only, differences};

/// What kind of difference it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DifferenceKind {
    /// A table that should be there was not read, or is not there.
    MissingTable,
    /// A chain that should be there.
    MissingChain,
    /// A chain of a Service port that should not be there.
    UnexpectedChain,
    /// A rule that should be there.
    MissingRule,
    /// A rule that should not be there.
    UnexpectedRule,
    /// A rule that reads otherwise than it should.
    AlteredRule,
    /// A rule that stands elsewhere in its chain.
    MovedRule,
    /// A virtual server that should be there.
    MissingVirtualServer,
    /// A virtual server that should not be there.
    UnexpectedVirtualServer,
    /// A virtual server that schedules otherwise than it should.
    AlteredVirtualServer,
    /// A real server that should be there.
    MissingRealServer,
    /// A real server that should not be there.
    UnexpectedRealServer,
    /// A real server with another weight or way of forwarding than it should have.
    AlteredRealServer,
    /// A set that should be there.
    MissingSet,
    /// An entry that a set should have.
    MissingEntry,
    /// An entry that a set should not have.
    UnexpectedEntry,
    /// The device that should be there.
    MissingDevice,
    /// An address that the device should have.
    MissingAddress,
    /// An address that the device should not have.
    UnexpectedAddress,
    /// A table of nf_tables that is another one than it should be.
    AlteredTable,
    /// A chain that stands at another hook than it should, or has another policy.
    AlteredChain,
    /// A set that holds other things than it should.
    AlteredSet,
    /// An element that a set or map should have.
    MissingElement,
    /// An element that a set or map should not have.
    UnexpectedElement,
    /// An element that leads elsewhere than it should.
    AlteredElement,
    /// What packets for an address of a Service meet is not what should become of them.
    AlteredBehaviour,
}

impl DifferenceKind {
    /// For people.
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
    /// What kind.
    pub kind: DifferenceKind,
    /// The table of iptables, that of nf_tables after its family, or [`SERVERS`], [`SETS`] or [`DEVICE`].
    pub table: String,
    /// The chain, the virtual server, the set or the device; of altered behaviour the address.
    pub chain: String,
    /// What should be there, as `iptables-save`, `nft list`, `ipvsadm -S -n` or `ipset save` words it.
    pub expected: Option<String>,
    /// What is there.
    pub found: Option<String>,
    /// The Service port that it is about, where that can be told.
    pub service: Option<String>,
}

/// The table of the kernel's virtual servers.
pub const SERVERS: &str = "ipvs";
/// The kernel's sets.
pub const SETS: &str = "ipset";
/// A network device.
pub const DEVICE: &str = "device";

impl Difference {
    /// Where it is, for people.
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

    /// Whether it is in a table of rules.
    #[must_use]
    pub fn is_of_rules(&self) -> bool {
        ![SERVERS, SETS, DEVICE].contains(&&*self.table)
    }
}
