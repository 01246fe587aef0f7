//! Network devices and their addresses, over rtnetlink.
//!
//! In: names of devices, addresses. Out: dummy devices made and deleted, addresses given and taken.
//! Must not know: what the addresses are for.

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

/// The name of a device (`IFNAMSIZ` less the final NUL).
pub type DeviceName = Name<15>;

/// The kind of the devices that take addresses and nothing else.
pub const DUMMY: &str = "dummy";

/// A device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its number.
    pub index: u32,
    /// What made it, as `ip -details link` says: `dummy`, `veth`; `None` for hardware.
    pub kind: Option<String>,
    /// Whether it is up.
    pub up: bool,
}

/// A change to the addresses of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressOperation {
    /// Gives it the address; fails if it has it.
    Add(IpNet),
    /// Takes it away; fails if it does not have it.
    Delete(IpNet),
}

/// The devices of the network namespace.
pub trait Links: Send + std::fmt::Debug {
    /// The device of that name, if there is one.
    ///
    /// # Errors
    /// If the kernel does not say.
    fn device(&mut self, name: DeviceName) -> Result<Option<Device>, LinkError>;

    /// Makes a dummy device, which is down. One that exists will do; a device of another kind is a clash.
    ///
    /// # Errors
    /// If it cannot be made.
    fn create_dummy(&mut self, name: DeviceName) -> Result<(), LinkError>;

    /// Deletes a dummy device with its addresses, unless there is none. A device of another kind is a clash.
    ///
    /// # Errors
    /// If it cannot be deleted.
    fn delete_dummy(&mut self, name: DeviceName) -> Result<(), LinkError>;

    /// Takes a device up or down.
    ///
    /// # Errors
    /// If there is none, or it cannot be.
    fn set_up(&mut self, name: DeviceName, up: bool) -> Result<(), LinkError>;

    /// Hands each address that a device has in a family to `each`, with its prefix length; one may
    /// come twice.
    ///
    /// # Errors
    /// If there is no such device, or its addresses cannot be listed.
    fn addresses(&mut self, name: DeviceName, family: IpFamily, each: &mut dyn FnMut(IpNet)) -> Result<(), LinkError>;

    /// Changes the addresses of a device in this order, many in one message to the kernel. Operations that fail are
    /// told to `failed`, by index; the others are done all the same.
    ///
    /// # Errors
    /// If there is no such device, or the kernel cannot be talked to.
    fn apply(
        &mut self,
        name: DeviceName,
        operations: &[AddressOperation],
        failed: &mut dyn FnMut(usize, LinkError),
    ) -> Result<(), LinkError>;
}
