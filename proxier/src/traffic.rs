//! What Service ports and endpoints have carried, and what was refused to them, as the kernel has counted it.
//!
//! A mode's reader returns a [`TrafficSample`] or [`RefusalSample`] for each object of the kernel that counts. The kernel's counts end with the
//! object: code that adds them up must expect one to begin at zero again.

use std::collections::HashMap;
use std::net::SocketAddr;

use netfilter::ipvs::Statistics;

use crate::model::{Destination, NamespacedName, Protocol, ServicePortName};

/// What an object of the kernel has counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrafficSample {
    /// Identifies the object while it exists, among all of its family.
    pub source: Box<[u8]>,
    /// The Service port.
    pub port: ServicePortName,
    /// The endpoint, if the object counts for one.
    pub endpoint: Option<SocketAddr>,
    /// Whether the Service port's count is the sum of these, because the kernel counts by endpoint alone.
    pub adds_to_port: bool,
    /// Whether it is of an endpoint that gets no new connections, and stays for those that it has.
    pub is_draining: bool,
    /// New connections (TCP and SCTP connections, UDP flows), and in IPVS mode packets and bytes.
    ///
    /// A first packet that is sent again before conntrack knows the connection counts again: rules see it again.
    pub counts: Statistics,
}

/// Why rules refuse packets to a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RefusalReason {
    /// No endpoint at all: rejected.
    NoEndpoints,
    /// A traffic policy is `Local` and no endpoint is on this node: dropped.
    NoLocalEndpoints,
    /// The sender is outside `loadBalancerSourceRanges`: dropped.
    SourceRange,
    /// The cluster IP has no such port: rejected.
    UnknownPort,
}

impl RefusalReason {
    /// The reason as a label of metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NoEndpoints => "no_endpoints",
            Self::NoLocalEndpoints => "no_local_endpoints",
            Self::SourceRange => "source_range",
            Self::UnknownPort => "unknown_port",
        }
    }
}

/// What refused packets were sent to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RefusedBy {
    /// A Service port.
    Port(ServicePortName),
    /// A Service, at a port that it does not have.
    Service(NamespacedName),
}

impl RefusedBy {
    /// The Service.
    #[must_use]
    pub fn service(&self) -> &NamespacedName {
        match self {
            Self::Port(port) => &port.service,
            Self::Service(service) => service,
        }
    }
}

/// How many packets an object of the kernel has refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusalSample {
    /// Identifies the object while it exists, among all of its family that refuse.
    pub source: Box<[u8]>,
    /// What they were sent to.
    pub by: RefusedBy,
    /// Why they were refused.
    pub reason: RefusalReason,
    /// Every packet, also one that a client sends again.
    pub packets: u64,
}

/// What a mode's rules have counted in a family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CountedTraffic {
    /// Connections of Service ports and endpoints.
    pub connections: Vec<TrafficSample>,
    /// Refused packets.
    pub refused: Vec<RefusalSample>,
}

/// Service ports by their destinations, for modes whose kernel objects have no names. Node ports are those of any
/// address.
pub type DestinationNames = HashMap<(Destination, Protocol), ServicePortName>;

/// The counts of an object that counts connections alone.
#[must_use]
pub fn connections(count: u64) -> Statistics {
    Statistics { connections: count, ..Statistics::default() }
}

/// The Service port at an address and port of a protocol, or else at that node port.
#[must_use]
pub fn name_at(names: &DestinationNames, address: SocketAddr, protocol: u8) -> Option<ServicePortName> {
    let protocol = Protocol::of_number(protocol)?;
    let at = |destination| names.get(&(destination, protocol));
    at(Destination::Address(address)).or_else(|| at(Destination::NodePort(address.port()))).cloned()
}
