//! The node we run on.
//!
//! In: what `track` took from the Node object. Out: [`NodeInfo`]. Must not know: where the Node came from.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use netfilter::IpFamily;

/// What rules depend on in the own Node object.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct NodeInfo {
    /// Addresses: all `InternalIP`s, then all `ExternalIP`s, as far as they parse. The first is the primary one.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`, as far as they parse.
    pub pod_cidrs: Vec<IpNet>,
    /// The label `topology.kubernetes.io/zone`; empty where absent, as no hint names an empty zone.
    pub zone: Arc<str>,
}

impl NodeInfo {
    /// The node's address of a family: the first one.
    #[must_use]
    pub fn address(&self, family: IpFamily) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|ip| IpFamily::of(ip) == family)
    }

    /// The node's pod network of a family: the first one.
    #[must_use]
    pub fn pod_cidr(&self, family: IpFamily) -> Option<IpNet> {
        self.pod_cidrs.iter().copied().find(|net| IpFamily::of_net(net) == family)
    }
}
