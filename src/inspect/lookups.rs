//! Single questions to the kernel about addresses: routes and listening sockets.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};

use netfilter::IpFamily;
use netfilter::kernel::{self, has_policy_rules, route_to};
use proxier::model::Protocol;

pub use netfilter::kernel::Route;
pub use netfilter::kernel::node::Link;

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

/// Whether a process listens at an address and port; `None` for protocols other than TCP and UDP.
///
/// # Errors
/// If the kernel's lists of sockets cannot be read.
pub fn listens(at: SocketAddr, protocol: Protocol) -> io::Result<Option<bool>> {
    kernel::listens(at.ip(), at.port(), protocol.name())
}
