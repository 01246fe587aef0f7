//! What can go wrong with devices.
//!
//! In: what was tried, and the kernel's error number. Out: the object, the reason and the operator's next step.
//! Must not know: why it was tried.

use std::io;

use ipnet::IpNet;
use thiserror::Error;

use super::{AddressOperation, Device, DeviceName};

/// Why something was not done to a device, or not read from it.
#[derive(Debug, Error)]
pub enum LinkError {
    /// The kernel has no dummy devices.
    #[error(
        "this kernel has no dummy devices: load module dummy (modprobe dummy), or boot a kernel built with CONFIG_DUMMY, \
         or choose another mode than ipvs"
    )]
    NoDummy,
    /// We may not.
    #[error("devices may be changed only with CAP_NET_ADMIN in the host's network namespace: run privileged")]
    NotPermitted,
    /// The device takes no IPv6 addresses.
    #[error(
        "IPv6 is switched off for device {0}: switch it on (sysctl -w net.ipv6.conf.{0}.disable_ipv6=0), or off for all of \
         the node (net.ipv6.conf.all.disable_ipv6=1)"
    )]
    NoIpv6(DeviceName),
    /// There is a device of that name that is no dummy.
    #[error("device {name} exists and is no dummy device but {found}: it is not ours; rename or delete it")]
    Clash {
        /// The name.
        name: DeviceName,
        /// Its kind.
        found: String,
    },
    /// There is no such device.
    #[error("there is no device {0}")]
    NoDevice(DeviceName),
    /// The device has it already.
    #[error("address {address} of device {name}: exists already")]
    Exists {
        /// The device.
        name: DeviceName,
        /// The address.
        address: IpNet,
    },
    /// The device does not have it.
    #[error("address {address} of device {name}: does not exist")]
    NotFound {
        /// The device.
        name: DeviceName,
        /// The address.
        address: IpNet,
    },
    /// The kernel refuses it for another reason.
    #[error("{object}: {source}")]
    Refused {
        /// What was to be changed.
        object: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The kernel could not be talked to.
    #[error("cannot talk to the kernel about devices: {0}")]
    Failed(#[from] io::Error),
}

impl LinkError {
    /// A device is in the way.
    pub(crate) fn clash(name: DeviceName, device: &Device) -> Self {
        Self::Clash { name, found: device.kind.clone().unwrap_or_else(|| "hardware".to_owned()) }
    }

    /// What the kernel's refusal of an operation means.
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
