//! The kernel's IPVS table, over generic netlink.
//!
//! In: operations on virtual and real servers. Out: they are done, or each failure names its object and the way out;
//! the table, entry by entry. Must not know: whose servers they are.

mod error;

use crate::family::IpFamily;
use crate::netfilter::ipvs::{Connections, RealServer, ServerKey, Timeouts, VirtualServer};
use std::net::SocketAddr;

pub use error::IpvsError;

/// A change to the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Makes a virtual server; fails if it exists.
    AddVirtual(VirtualServer),
    /// Has one schedule otherwise; its real servers and connections stay. Fails if there is none.
    UpdateVirtual(VirtualServer),
    /// Deletes one with its real servers; fails if there is none.
    DeleteVirtual(ServerKey),
    /// Adds a real server; fails if it is there, or if there is no such virtual server.
    AddReal(ServerKey, RealServer),
    /// Changes its weight; its connections stay. Fails if there is none.
    UpdateReal(ServerKey, RealServer),
    /// Takes one out: its connections end with their next packet. Fails if there is none.
    DeleteReal(ServerKey, SocketAddr),
}

impl Operation {
    /// The virtual server that it is about.
    #[must_use]
    pub fn key(&self) -> ServerKey {
        match self {
            Self::AddVirtual(server) | Self::UpdateVirtual(server) => server.key,
            Self::DeleteVirtual(key) | Self::AddReal(key, _) | Self::UpdateReal(key, _) | Self::DeleteReal(key, _) => {
                *key
            }
        }
    }
}

/// The IPVS table of the network namespace.
pub trait IpvsTable: Send + std::fmt::Debug {
    /// Hands each virtual server of a family to `each`, as the kernel tells of them; those of firewall marks have no
    /// address and are left out. While others write, one may come twice, or not at all: the kernel lists by position.
    ///
    /// # Errors
    /// If the table cannot be listed.
    fn virtual_servers(&mut self, family: IpFamily, each: &mut dyn FnMut(VirtualServer)) -> Result<(), IpvsError>;

    /// Hands each real server of a virtual one to `each`; none if there is no such virtual server.
    ///
    /// # Errors
    /// If the table cannot be listed.
    fn real_servers(&mut self, of: ServerKey, each: &mut dyn FnMut(RealServer, Connections)) -> Result<(), IpvsError>;

    /// Does operations in this order, many in one message to the kernel. Those that fail are told to `failed`, by
    /// index; the others are done all the same.
    ///
    /// # Errors
    /// If the kernel cannot be talked to: then it is unknown which operations were done.
    fn apply(&mut self, operations: &[Operation], failed: &mut dyn FnMut(usize, IpvsError)) -> Result<(), IpvsError>;

    /// For how long connections are remembered.
    ///
    /// # Errors
    /// If the kernel does not say.
    fn timeouts(&mut self) -> Result<Timeouts, IpvsError>;

    /// Changes that, for the namespace. 0 keeps what is.
    ///
    /// # Errors
    /// If the kernel does not take them.
    fn set_timeouts(&mut self, timeouts: Timeouts) -> Result<(), IpvsError>;
}
