//! The IPVS table of a network namespace, over generic netlink.

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

/// Version and size of IPVS in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// The version: 1.2.1 since 2006.
    pub version: [u8; 3],
    /// The number of buckets of the connection table.
    pub connection_table: u32,
}

/// The IPVS table of the network namespace.
pub trait IpvsTable: Send + std::fmt::Debug {
    /// Passes each virtual server of a family to `each`, without those of firewall marks.
    ///
    /// The kernel lists by position: while another program writes, a server may be passed twice or missed.
    ///
    /// # Errors
    /// If the table cannot be listed.
    fn virtual_servers(&mut self, family: IpFamily, each: &mut dyn FnMut(VirtualServer)) -> Result<(), IpvsError>;

    /// Passes each real server of a virtual server to `each`; a server may be passed twice.
    ///
    /// Passes none if the virtual server does not exist.
    ///
    /// # Errors
    /// If the table cannot be listed.
    fn real_servers(&mut self, of: ServerKey, each: &mut dyn FnMut(RealServer, Connections)) -> Result<(), IpvsError>;

    /// As [`IpvsTable::virtual_servers`], with traffic counters and with servers of firewall marks.
    ///
    /// # Errors
    /// If the table cannot be listed.
    fn list(&mut self, family: IpFamily, each: &mut dyn FnMut(ListedServer)) -> Result<(), IpvsError>;

    /// As [`IpvsTable::real_servers`], with traffic counters.
    ///
    /// # Errors
    /// If the table cannot be listed.
    fn list_real(
        &mut self,
        of: ServerKey,
        each: &mut dyn FnMut(RealServer, Connections, Statistics),
    ) -> Result<(), IpvsError>;

    /// Applies operations in order, many in one message.
    ///
    /// Failed operations are passed to `failed` by index; the others are applied all the same.
    ///
    /// # Errors
    /// If the netlink socket fails. It is then unknown which operations were applied.
    fn apply(&mut self, operations: &[Operation], failed: &mut dyn FnMut(usize, IpvsError)) -> Result<(), IpvsError>;

    /// The idle timeouts of connections.
    ///
    /// # Errors
    /// If the kernel does not return them.
    fn timeouts(&mut self) -> Result<Timeouts, IpvsError>;

    /// Sets the idle timeouts of the network namespace; 0 keeps the current value.
    ///
    /// # Errors
    /// If the kernel rejects them.
    fn set_timeouts(&mut self, timeouts: Timeouts) -> Result<(), IpvsError>;
}

/// Checks that the kernel supports a scheduler, which it may load for that.
///
/// The only way to check is to add a virtual server that uses it: one is added at a documentation address, the same as
/// kube-proxy uses, and deleted.
///
/// # Errors
/// If the scheduler does not exist, or this cannot be determined.
pub fn check_scheduler(table: &mut dyn IpvsTable, scheduler: Scheduler) -> Result<(), IpvsError> {
    let address = SocketAddr::from((Ipv4Addr::new(198, 51, 100, 0), 20000));
    let key = ServerKey { address, protocol: TCP };
    let server = VirtualServer { key, scheduler, flags: Flags::default(), persistence: None };
    // A process that was killed here may have left the server behind.
    let operations = [Operation::DeleteVirtual(key), Operation::AddVirtual(server), Operation::DeleteVirtual(key)];
    let mut outcome = Ok(());
    table.apply(&operations, &mut |index, error| {
        if index == 1 {
            outcome = Err(error);
        }
    })?;
    outcome
}
