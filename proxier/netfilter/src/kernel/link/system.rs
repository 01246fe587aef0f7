//! Network devices in the running kernel.
//!
//! A netlink socket belongs to the network namespace of the thread that opens it.

use std::io;

use ipnet::IpNet;
use netlink_sys::protocols::NETLINK_ROUTE;

use super::super::netlink::{Netlink, NetlinkError, Request};
use super::{AddressOperation, DUMMY, Device, DeviceName, LinkError, Links, wire};
use crate::IpFamily;

/// The devices of the network namespace in which this was opened.
#[derive(Debug)]
pub struct SystemLinks {
    socket: Netlink,
}

impl SystemLinks {
    /// Opens rtnetlink.
    ///
    /// # Errors
    /// If the netlink socket cannot be opened.
    pub fn open() -> Result<Self, LinkError> {
        Ok(Self { socket: Netlink::open(NETLINK_ROUTE).map_err(failure)? })
    }

    fn index(&mut self, name: DeviceName) -> Result<u32, LinkError> {
        self.device(name)?.map(|device| device.index).ok_or(LinkError::NoDevice(name))
    }

    /// The index of a dummy device; `None` if no device has the name.
    fn dummy(&mut self, name: DeviceName) -> Result<Option<u32>, LinkError> {
        match self.device(name)? {
            Some(device) if device.kind.as_deref() != Some(DUMMY) => Err(LinkError::clash(name, &device)),
            device => Ok(device.map(|device| device.index)),
        }
    }

    fn request(&mut self, name: DeviceName, request: &Request) -> Result<(), LinkError> {
        self.socket.request(request).map_err(|error| match failure(error) {
            LinkError::Failed(source) => LinkError::Refused { object: format!("device {name}"), source },
            other => other,
        })
    }
}

/// Maps an error that is not about an object.
fn failure(error: NetlinkError) -> LinkError {
    match error.errno() {
        Some(libc::EPERM | libc::EACCES) => LinkError::NotPermitted,
        _ => LinkError::Failed(error.into()),
    }
}

impl Links for SystemLinks {
    fn device(&mut self, name: DeviceName) -> Result<Option<Device>, LinkError> {
        let mut device = None;
        let outcome = self.socket.query(&wire::get_device(name), &mut |received| {
            device = wire::device(received.payload);
            Ok(())
        });
        match outcome {
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(failure(error)),
            Ok(()) if device.is_none() => {
                Err(LinkError::Failed(io::Error::other("the kernel's answer does not describe a device")))
            }
            Ok(()) => Ok(device),
        }
    }

    fn create_dummy(&mut self, name: DeviceName) -> Result<(), LinkError> {
        match self.socket.request(&wire::create_dummy(name)) {
            Ok(()) => Ok(()),
            Err(error) => match error.errno() {
                Some(libc::EEXIST) => self.dummy(name).map(|_| ()),
                Some(libc::EOPNOTSUPP) => Err(LinkError::NoDummy),
                _ => Err(failure(error)),
            },
        }
    }

    fn delete_dummy(&mut self, name: DeviceName) -> Result<(), LinkError> {
        match self.dummy(name)? {
            Some(index) => self.request(name, &wire::delete_device(index)),
            None => Ok(()),
        }
    }

    fn set_up(&mut self, name: DeviceName, up: bool) -> Result<(), LinkError> {
        let index = self.index(name)?;
        self.request(name, &wire::set_up(index, up))
    }

    fn addresses(&mut self, name: DeviceName, family: IpFamily, each: &mut dyn FnMut(IpNet)) -> Result<(), LinkError> {
        let index = self.index(name)?;
        let dump = self.socket.dump_all(&wire::get_addresses(index, family), &mut |received| {
            wire::address(received.payload, index, family).into_iter().for_each(&mut *each);
            Ok(())
        });
        match dump {
            // The device was deleted during the operation.
            Err(error) if error.errno() == Some(libc::ENODEV) => Err(LinkError::NoDevice(name)),
            dump => dump.map_err(failure),
        }
    }

    fn apply(
        &mut self,
        name: DeviceName,
        operations: &[AddressOperation],
        failed: &mut dyn FnMut(usize, LinkError),
    ) -> Result<(), LinkError> {
        if operations.is_empty() {
            return Ok(());
        }
        let index = self.index(name)?;
        let requests = operations.iter().map(|operation| wire::change(index, operation));
        let outcome = self.socket.request_in_batches(requests, |index, error| {
            failed(index, LinkError::of(name, &operations[index], error.errno(), error.into()));
        });
        outcome.map_err(failure)
    }
}
