//! Single questions to the kernel about addresses: routes and listening sockets.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};

use netfilter::IpFamily;
use netfilter::kernel::{self, has_policy_rules, listening_inodes, process_of_socket, route_to};
use proxier::model::Protocol;

pub use netfilter::kernel::node::{Link, forwards};
pub use netfilter::kernel::{FORWARDING_OFF, Route};

/// Route lookups, each made once.
#[derive(Default)]
pub struct RouteLookups {
    routes: BTreeMap<IpAddr, Option<Route>>,
    policy: BTreeMap<&'static str, bool>,
}

impl RouteLookups {
    /// The route that packets of this node to an address take; `None` if the kernel does not answer.
    pub fn to(&mut self, ip: IpAddr) -> Option<Route> {
        self.routes.entry(ip).or_insert_with(|| route_to(ip).ok()).clone()
    }

    /// Whether policy rules may route other packets elsewhere. If they cannot be read, they may.
    pub fn has_policy_rules(&mut self, family: IpFamily) -> bool {
        *self.policy.entry(family.name()).or_insert_with(|| has_policy_rules(family).unwrap_or(true))
    }
}

/// Who listens at an address and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listener {
    /// No process.
    None,
    /// A kube-proxy.
    Proxy,
    /// Another process: its ID and name.
    Other(u32, String),
    /// A process that is not known, or whether there is one is not known, and why.
    Unknown(String),
}

impl Listener {
    /// Finds who listens. `proxies`: the processes that are a kube-proxy.
    #[must_use]
    pub fn at(at: SocketAddr, protocol: Protocol, proxies: &[u32]) -> Self {
        let inodes = match listening_inodes(at.ip(), at.port(), protocol.name()) {
            Ok(Some(inodes)) => inodes,
            Ok(None) => return Self::Unknown(format!("sockets of {} are not listed", protocol.name())),
            Err(error) => return Self::Unknown(error.to_string()),
        };
        let Some(inode) = inodes.first() else { return Self::None };
        match process_of_socket(*inode) {
            Ok(Some((pid, _))) if proxies.contains(&pid) => Self::Proxy,
            Ok(Some((pid, name))) => Self::Other(pid, name),
            Ok(None) => Self::Unknown("no process that is visible here holds the socket".to_owned()),
            Err(error) => Self::Unknown(format!("the processes that hold sockets: {error}")),
        }
    }
}

/// Whether a process listens at an address and port; `None` for protocols other than TCP and UDP.
///
/// # Errors
/// If the kernel's lists of sockets cannot be read.
pub fn listens(at: SocketAddr, protocol: Protocol) -> io::Result<Option<bool>> {
    kernel::listens(at.ip(), at.port(), protocol.name())
}
