//! Fake network devices, which return the kernel's errors. Clones share one state.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;

use crate::IpFamily;
use crate::kernel::link::{DUMMY, Device};
use crate::kernel::{AddressOperation, DeviceName, LinkError, Links};

#[derive(Debug, Default)]
struct LinkState {
    devices: BTreeMap<DeviceName, (Device, Vec<IpNet>)>,
    made: u32,
    failing: Option<fn() -> LinkError>,
    refused: Option<IpNet>,
    operations: Vec<AddressOperation>,
    listings: usize,
}

/// Fake devices, initially none.
#[derive(Clone, Debug, Default)]
pub struct FakeLinks(Arc<Mutex<LinkState>>);

impl FakeLinks {
    fn state(&self) -> MutexGuard<'_, LinkState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a device of any kind.
    pub fn add_device(&self, name: DeviceName, kind: Option<&str>) {
        let mut state = self.state();
        state.made += 1;
        let device = Device { index: state.made, kind: kind.map(str::to_owned), up: false };
        state.devices.insert(name, (device, Vec::new()));
    }

    /// The successful address operations since the last call, in order.
    #[must_use]
    pub fn take_operations(&self) -> Vec<AddressOperation> {
        std::mem::take(&mut self.state().operations)
    }

    /// The number of address listings.
    #[must_use]
    pub fn listings(&self) -> usize {
        self.state().listings
    }

    /// The addresses of a device in insertion order; `None` if it does not exist.
    #[must_use]
    pub fn addresses_on(&self, name: DeviceName) -> Option<Vec<IpNet>> {
        self.state().devices.get(&name).map(|(_, addresses)| addresses.clone())
    }

    /// Makes every call fail with this error; `None` makes calls succeed.
    pub fn fail(&self, how: Option<fn() -> LinkError>) {
        self.state().failing = how;
    }

    /// Makes every operation on this address fail; `None` for no address.
    pub fn refuse(&self, address: Option<IpNet>) {
        self.state().refused = address;
    }
}

/// Devices and their addresses, sorted by name: `kube-ipvs0 dummy down 10.96.0.1/32 10.96.0.10/32`.
impl fmt::Display for FakeLinks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, (device, addresses)) in &self.state().devices {
            write!(f, "{name} {}", device.kind.as_deref().unwrap_or("hardware"))?;
            f.write_str(if device.up { " up" } else { " down" })?;
            addresses.iter().try_for_each(|address| write!(f, " {address}"))?;
            writeln!(f)?;
        }
        Ok(())
    }
}

impl LinkState {
    fn check_failing(&self) -> Result<(), LinkError> {
        self.failing.map_or(Ok(()), |how| Err(how()))
    }

    fn device(&mut self, name: DeviceName) -> Result<&mut (Device, Vec<IpNet>), LinkError> {
        self.devices.get_mut(&name).ok_or(LinkError::NoDevice(name))
    }

    /// Whether a dummy device of that name exists.
    fn dummy(&self, name: DeviceName) -> Result<bool, LinkError> {
        match self.devices.get(&name) {
            Some((device, _)) if device.kind.as_deref() != Some(DUMMY) => Err(LinkError::clash(name, device)),
            device => Ok(device.is_some()),
        }
    }

    fn apply(&mut self, name: DeviceName, operation: &AddressOperation) -> Result<(), LinkError> {
        let (AddressOperation::Add(address) | AddressOperation::Delete(address)) = *operation;
        if self.refused == Some(address) {
            return Err(refusal(name, operation, libc::ENOMEM));
        }
        let (_, present) = self.device(name)?;
        let at = present.iter().position(|present| *present == address);
        // An IPv6 address exists once, whatever its prefix length.
        let again = present
            .iter()
            .any(|present| *present == address || (address.addr().is_ipv6() && present.addr() == address.addr()));
        match (operation, at) {
            (AddressOperation::Add(_), _) if again => {
                return Err(refusal(name, operation, libc::EEXIST));
            }
            (AddressOperation::Add(_), _) => present.push(address),
            (AddressOperation::Delete(_), Some(at)) => {
                present.remove(at);
                // Deleting the primary IPv4 address of a network deletes its secondary ones, unless
                // promote_secondaries is set.
                let same = |other: &IpNet| address.addr().is_ipv4() && other.trunc() == address.trunc();
                if !present[..at].iter().any(same) {
                    present.retain(|other| !same(other));
                }
            }
            (AddressOperation::Delete(_), None) => {
                return Err(refusal(name, operation, libc::EADDRNOTAVAIL));
            }
        }
        Ok(())
    }
}

fn refusal(name: DeviceName, operation: &AddressOperation, errno: i32) -> LinkError {
    LinkError::of(name, operation, Some(errno), io::Error::from_raw_os_error(errno))
}

impl Links for FakeLinks {
    fn device(&mut self, name: DeviceName) -> Result<Option<Device>, LinkError> {
        let state = self.state();
        state.check_failing()?;
        Ok(state.devices.get(&name).map(|(device, _)| device.clone()))
    }

    fn create_dummy(&mut self, name: DeviceName) -> Result<(), LinkError> {
        let state = self.state();
        state.check_failing()?;
        if !state.dummy(name)? {
            drop(state);
            self.add_device(name, Some(DUMMY));
        }
        Ok(())
    }

    fn delete_dummy(&mut self, name: DeviceName) -> Result<(), LinkError> {
        let mut state = self.state();
        state.check_failing()?;
        if state.dummy(name)? {
            state.devices.remove(&name);
        }
        Ok(())
    }

    fn set_up(&mut self, name: DeviceName, up: bool) -> Result<(), LinkError> {
        let mut state = self.state();
        state.check_failing()?;
        let (device, addresses) = state.device(name)?;
        // Setting a device down deletes its IPv6 addresses.
        if device.up && !up {
            addresses.retain(|address| address.addr().is_ipv4());
        }
        device.up = up;
        Ok(())
    }

    fn addresses(&mut self, name: DeviceName, family: IpFamily, each: &mut dyn FnMut(IpNet)) -> Result<(), LinkError> {
        let mut state = self.state();
        state.check_failing()?;
        state.listings += 1;
        let (_, present) = state.device(name)?;
        let addresses: Vec<IpNet> = present.iter().copied().filter(|net| IpFamily::of_net(net) == family).collect();
        drop(state);
        addresses.into_iter().for_each(each);
        Ok(())
    }

    fn apply(
        &mut self,
        name: DeviceName,
        operations: &[AddressOperation],
        failed: &mut dyn FnMut(usize, LinkError),
    ) -> Result<(), LinkError> {
        let mut state = self.state();
        state.check_failing()?;
        if operations.is_empty() {
            return Ok(());
        }
        state.device(name)?;
        for (index, operation) in operations.iter().enumerate() {
            match state.apply(name, operation) {
                Ok(()) => state.operations.push(*operation),
                Err(error) => failed(index, error),
            }
        }
        Ok(())
    }
}
