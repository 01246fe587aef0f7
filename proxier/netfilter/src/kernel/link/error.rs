//! Errors of rtnetlink operations on devices, which name the object, the cause and the next step.

use std::io;

use ipnet::IpNet;
use thiserror::Error;

use super::{AddressOperation, Device, DeviceName};

/// A failure to change or read a device.
#[derive(Debug, Error)]
pub enum LinkError {
    /// The kernel does not support dummy devices.
    #[error(
        "this kernel has no dummy devices: load module dummy (modprobe dummy), or boot a kernel built with CONFIG_DUMMY, \
         or choose another mode than ipvs"
    )]
    NoDummy,
    /// Permission denied.
    #[error("changing devices requires CAP_NET_ADMIN in the host's network namespace: run privileged")]
    NotPermitted,
    /// IPv6 is disabled on the device.
    #[error(
        "IPv6 is disabled on device {0}: enable it (sysctl -w net.ipv6.conf.{0}.disable_ipv6=0), or disable it on the \
         whole node (net.ipv6.conf.all.disable_ipv6=1)"
    )]
    NoIpv6(DeviceName),
    /// A device of that name is not a dummy device.
    #[error("device {name} is {found} and not a dummy device: rename or delete it")]
    Clash {
        /// The name.
        name: DeviceName,
        /// The kind of the existing device.
        found: String,
    },
    /// The device does not exist.
    #[error("device {0} does not exist")]
    NoDevice(DeviceName),
    /// The device already has the address.
    #[error("address {address} of device {name}: exists already")]
    Exists {
        /// The device.
        name: DeviceName,
        /// The address.
        address: IpNet,
    },
    /// The device does not have the address.
    #[error("address {address} of device {name}: does not exist")]
    NotFound {
        /// The device.
        name: DeviceName,
        /// The address.
        address: IpNet,
    },
    /// The kernel refused the operation for another reason.
    #[error("{object}: {source}")]
    Refused {
        /// The object of the operation.
        object: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// The netlink socket failed.
    #[error("rtnetlink request failed: {0}")]
    Failed(#[from] io::Error),
}

impl LinkError {
    /// The error for a device name taken by a device of another kind.
    pub(crate) fn clash(name: DeviceName, device: &Device) -> Self {
        Self::Clash { name, found: device.kind.clone().unwrap_or_else(|| "hardware".to_owned()) }
    }

    /// Maps the kernel's error for an operation.
    pub(crate) fn of(name: DeviceName, operation: &AddressOperation, errno: Option<i32>, source: io::Error) -> Self {
        let (AddressOperation::Add(address) | AddressOperation::Delete(address)) = *operation;
        match errno {
            Some(libc::EACCES) if address.addr().is_ipv6() => Self::NoIpv6(name),
            Some(libc::EPERM | libc::EACCES) => Self::NotPermitted,
            Some(libc::ENODEV) => Self::NoDevice(name),
            Some(libc::EEXIST) => Self::Exists { name, address },
            Some(libc::EADDRNOTAVAIL) => Self::NotFound { name, address },
            _ => Self::Refused { object: format!("address {address} of device {name}"), source },
        }
    }
}
