//! Route lookups as values: the query for a packet, and the kernel's decision.

use std::net::IpAddr;

/// A packet as the routing code sees it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteQuery {
    /// The destination.
    pub to: IpAddr,
    /// The source; `None`: not chosen yet.
    pub from: Option<IpAddr>,
    /// The packet's mark, which policy rules may match.
    pub mark: u32,
    /// The type of service or traffic class, which policy rules may match.
    pub type_of_service: u8,
    /// The protocol's number, and the source and destination ports, which policy rules may match; zeros: the lookup has
    /// none.
    pub transport: (u8, u16, u16),
    /// The interface it came in on; `None`: this node sends it.
    pub in_interface: Option<String>,
}

/// What the routing code does with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteDecision {
    /// It leaves by this interface.
    Leaves(String),
    /// It is for this node.
    Local,
    /// It is thrown away without an error, for this reason.
    Dropped(&'static str),
    /// The sender gets an error, for this reason.
    Refused(&'static str),
}

/// What the policy rules of a family choose routes by, besides addresses, marks and interfaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PolicySelectors {
    /// Whether there are rules besides the kernel's own: packets of others may go another way.
    pub any: bool,
    /// Whether a rule has a protocol or a port.
    pub by_transport: bool,
    /// Whether a rule has a source port.
    pub by_source_port: bool,
    /// Whether a rule has users.
    pub by_user: bool,
}

impl PolicySelectors {
    /// What is supposed where rules cannot be read: they may be there.
    pub const UNREAD: Self = Self { any: true, by_transport: true, by_source_port: true, by_user: true };
}
