//! Errors of IPVS, which name the object, the cause and the next step.

use std::io;

use thiserror::Error;

use super::Operation;
use crate::ipvs::Scheduler;

/// A failure to change or read the IPVS table.
#[derive(Debug, Error)]
pub enum IpvsError {
    /// The kernel does not support IPVS.
    #[error(
        "this kernel has no IP_VS{}: load module ip_vs (modprobe ip_vs), or boot a kernel built with CONFIG_IP_VS and \
         CONFIG_IP_VS_IPV6, or choose another mode than ipvs",
        in_brackets(tried)
    )]
    Missing {
        /// The result of loading the module, if that was tried.
        tried: String,
    },
    /// Permission denied.
    #[error("access to IPVS requires CAP_NET_ADMIN in the host's network namespace: run privileged")]
    NotPermitted,
    /// The scheduler does not exist.
    #[error(
        "this kernel has no IPVS scheduler {0}: load module ip_vs_{0} (modprobe ip_vs_{0}), or set another scheduler"
    )]
    NoScheduler(Scheduler),
    /// The object already exists.
    #[error("{0}: exists already")]
    Exists(String),
    /// The object does not exist.
    #[error("{0}: does not exist")]
    NotFound(String),
    /// The kernel refused the operation for another reason.
    #[error("{object}: {source}")]
    Refused {
        /// The object of the operation.
        object: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// The netlink socket failed.
    #[error("IPVS netlink request failed: {0}")]
    Failed(#[from] io::Error),
}

fn in_brackets(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(" ({text})") }
}

impl IpvsError {
    /// Maps the kernel's error for an operation.
    pub(crate) fn of(operation: &Operation, errno: Option<i32>, source: io::Error) -> Self {
        use Operation::{AddReal, AddVirtual, DeleteReal, DeleteVirtual, UpdateReal, UpdateVirtual};
        let object = || match operation {
            AddVirtual(server) | UpdateVirtual(server) => format!("virtual server {}", server.key),
            DeleteVirtual(key) => format!("virtual server {key}"),
            AddReal(key, real) | UpdateReal(key, real) => format!("real server {} of {key}", real.address),
            DeleteReal(key, address) => format!("real server {address} of {key}"),
        };
        match (errno, operation) {
            (Some(libc::EPERM | libc::EACCES), _) => Self::NotPermitted,
            (Some(libc::ENOENT), AddVirtual(server) | UpdateVirtual(server)) => Self::NoScheduler(server.scheduler),
            (Some(libc::EEXIST), _) => Self::Exists(object()),
            (Some(libc::ESRCH), _) => Self::NotFound(format!("virtual server {}", operation.key())),
            (Some(libc::ENOENT), _) => Self::NotFound(object()),
            _ => Self::Refused { object: object(), source },
        }
    }
}
