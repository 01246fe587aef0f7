//! Network devices and their addresses, over rtnetlink.

mod error;
mod system;
mod wire;

#[cfg(feature = "testing")]
pub(super) use wire::fuzz;

use ipnet::IpNet;

use crate::IpFamily;
use crate::Name;

pub use error::LinkError;
pub use system::SystemLinks;

/// The name of a device, at most `IFNAMSIZ` - 1 bytes.
pub type DeviceName = Name<15>;

/// The kind of a dummy device, which accepts addresses and drops packets.
pub const DUMMY: &str = "dummy";

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The interface index.
    pub index: u32,
    /// The kind, as in `ip -details link`: `dummy`, `veth`; `None` for hardware.
    pub kind: Option<String>,
    /// Whether it is administratively up.
    pub up: bool,
}

/// A change to the addresses of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressOperation {
    /// Adds an address; fails if it exists.
    Add(IpNet),
    /// Deletes an address; fails if it does not exist.
    Delete(IpNet),
}

/// The devices of the network namespace.
pub trait Links: Send + std::fmt::Debug {
    /// The device of a name, if it exists.
    ///
    /// # Errors
    /// If the kernel does not answer.
    fn device(&mut self, name: DeviceName) -> Result<Option<Device>, LinkError>;

    /// Creates a dummy device, which is down.
    ///
    /// Succeeds if it exists; a device of another kind is a [`LinkError::Clash`].
    ///
    /// # Errors
    /// If it cannot be created.
    fn create_dummy(&mut self, name: DeviceName) -> Result<(), LinkError>;

    /// Deletes a dummy device with its addresses; succeeds if it does not exist.
    ///
    /// A device of another kind is a [`LinkError::Clash`].
    ///
    /// # Errors
    /// If it cannot be deleted.
    fn delete_dummy(&mut self, name: DeviceName) -> Result<(), LinkError>;

    /// Sets a device up or down.
    ///
    /// # Errors
    /// If it does not exist or cannot be changed.
    fn set_up(&mut self, name: DeviceName, up: bool) -> Result<(), LinkError>;

    /// Passes each address of a device in a family to `each`, with its prefix length.
    ///
    /// An address may be passed twice.
    ///
    /// # Errors
    /// If the device does not exist or its addresses cannot be listed.
    fn addresses(&mut self, name: DeviceName, family: IpFamily, each: &mut dyn FnMut(IpNet)) -> Result<(), LinkError>;

    /// Applies operations in order, many in one message.
    ///
    /// Failed operations are passed to `failed` by index; the others are applied all the same.
    ///
    /// # Errors
    /// If the device does not exist or the netlink socket fails.
    fn apply(
        &mut self,
        name: DeviceName,
        operations: &[AddressOperation],
        failed: &mut dyn FnMut(usize, LinkError),
    ) -> Result<(), LinkError>;
}
