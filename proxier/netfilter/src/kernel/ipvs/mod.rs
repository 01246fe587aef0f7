//! The kernel's IPVS table, over generic netlink.
//!
//! In: operations on virtual and real servers. Out: they are done, or each failure names its object and the way out;
//! the table, entry by entry. Must not know: whose servers they are.

mod error;
mod system;
mod wire;

#[cfg(feature = "testing")]
pub(super) use wire::fuzzing::fuzz;

use std::net::{Ipv4Addr, SocketAddr};

use crate::IpFamily;
use crate::ipvs::{
    Connections, Flags, ListedServer, RealServer, Scheduler, ServerKey, Statistics, TCP, Timeouts, VirtualServer,
};

pub use crate::ipvs::Operation;
pub use error::IpvsError;
pub use system::SystemIpvs;

/// What the kernel says of its IPVS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// Its version: 1.2.1 since 2006.
    pub version: [u8; 3],
    /// How many buckets the table of connections has.
    pub connection_table: u32,
}

/// The IPVS table of the network namespace.
pub trait IpvsTable: Send + std::fmt::Debug {
    /// Hands each virtual server of a family to `each`, as the kernel tells of them; those of firewall marks have no
    /// address and are left out. While others write, one may come twice, or not at all: the kernel lists by position.
    ///
    /// # Errors
    /// If the table cannot be listed.
    fn virtual_servers(&mut self, family: IpFamily, each: &mut dyn FnMut(VirtualServer)) -> Result<(), IpvsError>;

    /// Hands each real server of a virtual one to `each`; one may come twice. None if there is no such virtual server.
    ///
    /// # Errors
    /// If the table cannot be listed.
    fn real_servers(&mut self, of: ServerKey, each: &mut dyn FnMut(RealServer, Connections)) -> Result<(), IpvsError>;

    /// As `virtual_servers`, with what each has counted, and with those of firewall marks: for who looks at a node.
    ///
    /// # Errors
    /// If the table cannot be listed.
    fn list(&mut self, family: IpFamily, each: &mut dyn FnMut(ListedServer)) -> Result<(), IpvsError>;

    /// As `real_servers`, with what each has counted.
    ///
    /// # Errors
    /// If the table cannot be listed.
    fn list_real(
        &mut self,
        of: ServerKey,
        each: &mut dyn FnMut(RealServer, Connections, Statistics),
    ) -> Result<(), IpvsError>;

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

/// Finds out whether the kernel has a scheduler, which it may load for that.
///
/// The only way to know is a virtual server that uses it: one is made at an address for documentation, where
/// kube-proxy makes it too, and deleted.
///
/// # Errors
/// If it has none, or it cannot be told.
pub fn check_scheduler(table: &mut dyn IpvsTable, scheduler: Scheduler) -> Result<(), IpvsError> {
    let address = SocketAddr::from((Ipv4Addr::new(198, 51, 100, 0), 20000));
    let key = ServerKey { address, protocol: TCP };
    let server = VirtualServer { key, scheduler, flags: Flags::default(), persistence: None };
    // One may be left by a proxy that was killed in between.
    let operations = [Operation::DeleteVirtual(key), Operation::AddVirtual(server), Operation::DeleteVirtual(key)];
    let mut outcome = Ok(());
    table.apply(&operations, &mut |index, error| {
        if index == 1 {
            outcome = Err(error);
        }
    })?;
    outcome
}
