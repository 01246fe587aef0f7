//! What Service ports and endpoints have carried, as the kernel has counted it.
//!
//! A mode's reader passes a [`TrafficSample`] for each object of the kernel that counts. The kernel's counts end with the
//! object: code that adds them up must expect one to begin at zero again.

use std::collections::HashMap;
use std::net::SocketAddr;

use netfilter::ipvs::Statistics;

use crate::model::{Destination, Protocol, ServicePortName};

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
