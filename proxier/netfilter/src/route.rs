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
