//! The fields of the own Node that rules depend on.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use netfilter::IpFamily;

/// The fields of the own Node object that rules depend on.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct NodeInfo {
    /// Valid addresses: all `InternalIP`s, then all `ExternalIP`s. The first is the primary one.
    pub addresses: Vec<IpAddr>,
    /// The valid ones of `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
    /// The label `topology.kubernetes.io/zone`; empty if absent, which no hint equals.
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
