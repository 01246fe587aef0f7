//! The compact description of a Service port from which its elements are rendered.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::names::{Policy, VipOrNodePort};
use super::numbers::{NumberedEndpoints, either, number, only};
use crate::model::{CategorizedEndpoints, Destination, Endpoint, EndpointHash, ServicePort, ServicePortName};

fn addresses(list: &[&Endpoint]) -> Vec<SocketAddr> {
    list.iter().map(|endpoint| endpoint.address).collect()
}

/// Endpoints that are hashed need no stable numbers: their slots follow from their addresses.
fn sorted(mut endpoints: Vec<SocketAddr>) -> NumberedEndpoints {
    endpoints.sort_unstable();
    endpoints.dedup();
    endpoints.into_iter().map(Some).collect()
}

/// The accepted addresses without duplicates, which the API allows.
fn once(ips: &[IpAddr], fits: impl Fn(&IpAddr) -> bool) -> Box<[IpAddr]> {
    let first = |(at, ip): &(usize, &IpAddr)| !ips[..*at].contains(ip) && fits(ip);
    ips.iter().enumerate().filter(first).map(|(_, ip)| *ip).collect()
}

/// Everything about a Service port that its elements depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortSpec {
    /// IP's number for the protocol.
    pub protocol: u8,
    /// The cluster IP, unless another Service port owns it.
    pub cluster_ip: Option<IpAddr>,
    /// External IPs that this Service port owns and that are not VIPs.
    pub external_ips: Box<[IpAddr]>,
    /// Load balancer addresses that this Service port owns.
    pub vips: Box<[IpAddr]>,
    /// The port at these addresses.
    pub port: u16,
    /// The node port; 0 without one or if another Service port owns it.
    pub node_port: u16,
    /// `internalTrafficPolicy: Local`
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`
    pub external_local: bool,
    /// The affinity timeout in seconds.
    pub affinity: Option<u32>,
    /// What the choice of an endpoint is hashed from, if it is. There is no affinity then.
    pub hash: Option<EndpointHash>,
    /// Source ranges.
    pub ranges: Box<[IpNet]>,
    /// Whether any endpoint is usable, on this node or elsewhere.
    pub any: bool,
    /// Endpoints of policy `Cluster`.
    pub cluster: NumberedEndpoints,
    /// Endpoints of policy `Local`.
    pub local: NumberedEndpoints,
    /// Endpoints on this node.
    pub here: Box<[SocketAddr]>,
}

impl PortSpec {
    /// Describes a Service port.
    ///
    /// `hashes`: the kernel can choose endpoints by a hash. `owns` decides about its destinations. `current` returns the
    /// numbers that endpoints have now, given the description without endpoints, the policy and its desired endpoints.
    #[must_use]
    pub fn of(
        of: (&ServicePortName, &ServicePort),
        endpoints: &CategorizedEndpoints<'_>,
        hashes: bool,
        owns: impl Fn(Destination) -> bool,
        current: impl Fn(&Self, Policy, &[SocketAddr]) -> NumberedEndpoints,
    ) -> Self {
        let unnumbered = Self::unnumbered(of, endpoints, hashes, owns);
        let lists = [&endpoints.cluster, &endpoints.local].map(|list| addresses(list));
        if unnumbered.hash.is_some() {
            let [cluster, local] = lists.map(sorted);
            return Self { cluster, local, ..unnumbered };
        }
        let now = [(Policy::Cluster, &lists[0]), (Policy::Local, &lists[1])];
        let now = now.map(|(policy, wanted)| current(&unnumbered, policy, wanted));
        let [cluster, local] = if unnumbered.affinity.is_some() {
            // Affinity covers both policies, so an endpoint has the same number in both.
            let all = number(&either(&now), &addresses(&endpoints.reachable), true);
            lists.map(|list| only(&all, &list))
        } else {
            [number(&now[0], &lists[0], false), number(&now[1], &lists[1], false)]
        };
        Self { cluster, local, ..unnumbered }
    }

    fn unnumbered(
        (name, port): (&ServicePortName, &ServicePort),
        endpoints: &CategorizedEndpoints<'_>,
        hashes: bool,
        owns: impl Fn(Destination) -> bool,
    ) -> Self {
        let owned = |ip: &IpAddr| owns(Destination::Address(SocketAddr::new(*ip, port.port)));
        let vips = once(&port.load_balancer_vips, |ip| owned(ip));
        let external_ips = once(&port.external_ips, |ip| owned(ip) && !vips.contains(ip));
        let hash = port.endpoint_hash().filter(|_| hashes);
        let mut here: Vec<SocketAddr> = endpoints
            .reachable
            .iter()
            .filter(|endpoint| endpoint.state.local)
            .map(|endpoint| endpoint.address)
            .collect();
        here.dedup();
        Self {
            protocol: name.protocol.number(),
            cluster_ip: Some(port.cluster_ip).filter(owned),
            external_ips,
            vips,
            port: port.port,
            node_port: if owns(Destination::NodePort(port.node_port)) { port.node_port } else { 0 },
            internal_local: port.internal_local,
            external_local: port.external_local,
            affinity: port.affinity_seconds.filter(|_| hash.is_none()),
            hash,
            ranges: port.source_ranges.clone(),
            any: endpoints.any,
            cluster: NumberedEndpoints::default(),
            local: NumberedEndpoints::default(),
            here: here.into_boxed_slice(),
        }
    }

    /// The endpoints of a policy.
    #[must_use]
    pub fn endpoints(&self, policy: Policy) -> &NumberedEndpoints {
        match policy {
            Policy::Cluster => &self.cluster,
            Policy::Local => &self.local,
        }
    }

    /// Whether another description has the same destinations and policies.
    #[must_use]
    pub fn differs_in_endpoints_only(&self, other: &Self) -> bool {
        let without = |spec: &Self| {
            let (none, here) = (NumberedEndpoints::default(), Box::default());
            Self { cluster: none.clone(), local: none, here, ..spec.clone() }
        };
        without(self) == without(other)
    }

    /// Whether traffic to the cluster IP has usable endpoints.
    #[must_use]
    pub fn has_internal(&self) -> bool {
        if self.internal_local { !self.local.is_empty() } else { self.any }
    }

    /// Whether external traffic has usable endpoints.
    #[must_use]
    pub fn has_external(&self) -> bool {
        if self.external_local { !self.local.is_empty() } else { self.any }
    }

    /// The destinations whose endpoint maps have the numbers, with their policies.
    pub fn endpoint_map_keys(&self) -> impl Iterator<Item = (VipOrNodePort, Policy, Option<IpAddr>, u16)> + '_ {
        let addresses = self.cluster_ip.iter().chain(&self.vips).chain(&self.external_ips);
        let addresses = addresses.map(|ip| (VipOrNodePort::Address, Some(*ip), self.port));
        let node_port = (self.node_port != 0).then_some((VipOrNodePort::NodePort, None, self.node_port));
        let places = addresses.chain(node_port);
        places.flat_map(|(place, ip, port)| [Policy::Cluster, Policy::Local].map(|policy| (place, policy, ip, port)))
    }
}
