//! What can go wrong with IPVS.
//!
//! In: what was tried, and the kernel's error number. Out: the object, the reason and the operator's next step.
//! Must not know: why it was tried.

use std::io;

use thiserror::Error;

use super::Operation;
use crate::ipvs::Scheduler;

/// Why something was not done to the IPVS table, or not read from it.
#[derive(Debug, Error)]
pub enum IpvsError {
    /// The kernel has no IPVS.
    #[error(
        "this kernel has no IP_VS{}: load module ip_vs (modprobe ip_vs), or boot a kernel built with CONFIG_IP_VS and \
         CONFIG_IP_VS_IPV6, or choose another mode than ipvs",
        in_brackets(tried)
    )]
    Missing {
        /// What came of loading it, if that was tried.
        tried: String,
    },
    /// We may not.
    #[error("IPVS may be changed and read only with CAP_NET_ADMIN in the host's network namespace: run privileged")]
    NotPermitted,
    /// There is no such scheduler.
    #[error(
        "this kernel has no IPVS scheduler {0}: load module ip_vs_{0} (modprobe ip_vs_{0}), or set another scheduler"
    )]
    NoScheduler(Scheduler),
    /// It is there already.
    #[error("{0}: exists already")]
    Exists(String),
    /// It is not there.
    #[error("{0}: does not exist")]
    NotFound(String),
    /// The kernel refuses it for another reason.
    #[error("{object}: {source}")]
    Refused {
        /// What was to be changed.
        object: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The kernel could not be talked to.
    #[error("cannot talk to IPVS: {0}")]
    Failed(#[from] io::Error),
}

fn in_brackets(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(" ({text})") }
}

impl IpvsError {
    /// What the kernel's refusal of an operation means.
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
