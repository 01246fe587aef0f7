//! Names of nftables mode's fixed chains and sets, and the types of the sets.
//!
//! Upstream writes a table of the same name, so an object with one of upstream's names has upstream's kind here. No
//! other chain has a `/` in its name, and no other set begins with `affinity-`: upstream deletes those. See
//! `README.md`.

use std::sync::Arc;

use netfilter::IpFamily;
use netfilter::nft::{Field, Name, Set, Table};
use sha2::{Digest, Sha256};

pub use super::shared_chains::{
    ALWAYS, Balance, ChainEndpoints, PacketOrigin, SharedChain, Sticky, chain_endpoints, size_class,
};
use crate::model::config::ServiceMetrics;
use crate::model::{Protocol, ServicePortName};

/// The table's name in both families.
pub const TABLE: &str = "kube-proxy";
/// The table's comment.
pub const TABLE_COMMENT: &str = "rules for kube-proxy";

/// Rejects packets to Services without endpoints.
pub const REJECT: &str = "reject-chain";
/// Dispatches new connections.
pub const SERVICES: &str = "services";
/// External addresses of Services with `externalTrafficPolicy: Local`.
pub const EXTERNAL_LOCAL: &str = "external-local";
/// The same for node ports.
pub const NODE_PORT_LOCAL: &str = "nodeport-local";
/// Masquerades marked packets and hairpin connections.
pub const MASQUERADING: &str = "masquerading";
/// Rejects packets to wrong ports of cluster IPs, and drops packets to unallocated ones.
pub const CLUSTER_IPS_CHECK: &str = "cluster-ips-check";
/// Rejects or drops packets to addresses without usable endpoints.
pub const SERVICE_ENDPOINTS_CHECK: &str = "service-endpoints-check";
/// The same for node ports.
pub const NODE_PORT_ENDPOINTS_CHECK: &str = "nodeport-endpoints-check";
/// Sends packets that may be for a Service without usable endpoints, or no Service, to the two checks above.
pub const REFUSALS: &str = "refusals";
/// Drops packets from sources outside the ranges of their destination. Upstream has a chain for each Service port.
pub const FIREWALL_SOURCE_RANGES: &str = "firewall-source-ranges";

/// Counts and rejects new connections of a protocol to node ports at loopback addresses. Upstream has other chains for
/// it since 1.37: see [`is_localhost_reject`].
#[must_use]
pub fn localhost_reject(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "localhost-reject-tcp",
        Protocol::Udp => "localhost-reject-udp",
        Protocol::Sctp => "localhost-reject-sctp",
    }
}

/// Whether a chain rejects connections to node ports at loopback addresses: one of ours, or one of upstream's since 1.37,
/// `localhost-nodeport-reject-PROTOCOL`, with named counters and a map of another name. They exist while the feature gate
/// is on, whether or not a Service uses them.
#[must_use]
pub fn is_localhost_reject(chain: &str) -> bool {
    ["localhost-reject-", "localhost-nodeport-reject-"]
        .into_iter()
        .filter_map(|prefix| chain.strip_prefix(prefix))
        .any(|protocol| Protocol::of_name(protocol).is_some())
}

/// The size of each client set for session affinity.
const AFFINITY_SIZE: u32 = 1 << 20;

/// The table of a family.
#[must_use]
pub fn table(family: IpFamily) -> Table {
    Table { family, name: TABLE.into() }
}

/// The kind of a packet's destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum VipOrNodePort {
    /// An address and port of a Service.
    Address,
    /// A port of the node.
    NodePort,
}

impl VipOrNodePort {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Address, Self::NodePort];
}

/// The traffic policy, which selects endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Policy {
    /// Endpoints on any node.
    Cluster,
    /// Endpoints on this node.
    Local,
}

/// Why packets to a destination are refused: a set of destinations for each reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RefusedFor {
    /// No endpoint at all: rejected.
    NoEndpoints,
    /// No endpoint on this node: dropped.
    NoLocalEndpoints,
}

impl RefusedFor {
    /// Both.
    pub const ALL: [Self; 2] = [Self::NoEndpoints, Self::NoLocalEndpoints];
}

/// A fixed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SetId {
    /// Cluster IPs of all Services.
    ClusterIps,
    /// Addresses that serve node ports, if not all do.
    NodePortIps,
    /// Addresses outside the ServiceCIDRs whose packets may be refused.
    RefusableIps,
    /// Endpoints on this node, from themselves to themselves.
    Hairpin,
    /// The addresses of those endpoints, from themselves to themselves.
    HairpinIps,
    /// The verdicts for new connections.
    Service(VipOrNodePort),
    /// The verdicts for connections from this node under `externalTrafficPolicy: Local`.
    ShortCircuit(VipOrNodePort),
    /// The verdicts for other connections under that policy.
    LocalPolicy(VipOrNodePort),
    /// The verdicts for destinations without usable endpoints.
    NoEndpoint(VipOrNodePort),
    /// The verdicts for node ports at loopback addresses that no proxy serves.
    LocalhostNodePorts,
    /// Load balancer addresses with source ranges.
    FirewallIps,
    /// The source ranges of those addresses.
    FirewallAllowed,
    /// The endpoint of Service ports that have only one, and no session affinity.
    OnlyEndpoint(VipOrNodePort, Policy),
    /// Endpoints by number.
    Endpoints(VipOrNodePort, Policy),
    /// With session affinity: the numbers that endpoints have, for new clients.
    Choices(VipOrNodePort, Policy),
    /// With service metrics: the destinations whose new connections are counted.
    Connections(VipOrNodePort),
    /// With service metrics: the destinations whose refused packets are counted.
    Refused(VipOrNodePort, RefusedFor),
    /// With service metrics: load balancer addresses, which count packets from sources outside their ranges.
    RefusedSources,
    /// With service metrics: cluster IPs, which count packets to ports that no Service port has.
    RefusedPorts,
}

impl SetId {
    /// All fixed sets, in the order of creation. Those of service metrics exist only with them.
    pub const ALL: [Self; 36] = {
        use Policy::{Cluster, Local};
        use RefusedFor::{NoEndpoints, NoLocalEndpoints};
        use VipOrNodePort::{Address, NodePort};
        [
            Self::ClusterIps,
            Self::NodePortIps,
            Self::RefusableIps,
            Self::Hairpin,
            Self::HairpinIps,
            Self::NoEndpoint(Address),
            Self::NoEndpoint(NodePort),
            Self::LocalhostNodePorts,
            Self::FirewallIps,
            Self::FirewallAllowed,
            Self::Service(Address),
            Self::Service(NodePort),
            Self::ShortCircuit(Address),
            Self::ShortCircuit(NodePort),
            Self::LocalPolicy(Address),
            Self::LocalPolicy(NodePort),
            Self::OnlyEndpoint(Address, Cluster),
            Self::OnlyEndpoint(Address, Local),
            Self::OnlyEndpoint(NodePort, Cluster),
            Self::OnlyEndpoint(NodePort, Local),
            Self::Endpoints(Address, Cluster),
            Self::Endpoints(Address, Local),
            Self::Endpoints(NodePort, Cluster),
            Self::Endpoints(NodePort, Local),
            Self::Choices(Address, Cluster),
            Self::Choices(Address, Local),
            Self::Choices(NodePort, Cluster),
            Self::Choices(NodePort, Local),
            Self::Connections(Address),
            Self::Connections(NodePort),
            Self::Refused(Address, NoEndpoints),
            Self::Refused(Address, NoLocalEndpoints),
            Self::Refused(NodePort, NoEndpoints),
            Self::Refused(NodePort, NoLocalEndpoints),
            Self::RefusedSources,
            Self::RefusedPorts,
        ]
    };

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        use Policy::{Cluster, Local};
        use RefusedFor::{NoEndpoints, NoLocalEndpoints};
        use VipOrNodePort::{Address, NodePort};
        match self {
            Self::ClusterIps => "cluster-ips",
            Self::NodePortIps => "nodeport-ips",
            Self::RefusableIps => "refusable-ips",
            Self::Hairpin => "hairpin-connections",
            Self::HairpinIps => "hairpin-ips",
            Self::NoEndpoint(Address) => "no-endpoint-services",
            Self::NoEndpoint(NodePort) => "no-endpoint-nodeports",
            Self::FirewallIps => "firewall-ips",
            Self::FirewallAllowed => "firewall-allowed",
            Self::Service(Address) => "service-ips",
            Self::Service(NodePort) => "service-nodeports",
            Self::ShortCircuit(Address) => "short-circuit-ips",
            Self::ShortCircuit(NodePort) => "short-circuit-nodeports",
            Self::LocalPolicy(Address) => "local-policy-ips",
            Self::LocalPolicy(NodePort) => "local-policy-nodeports",
            Self::LocalhostNodePorts => "localhost-nodeports",
            Self::OnlyEndpoint(Address, Cluster) => "only-endpoint",
            Self::OnlyEndpoint(Address, Local) => "local-only-endpoint",
            Self::OnlyEndpoint(NodePort, Cluster) => "nodeport-only-endpoint",
            Self::OnlyEndpoint(NodePort, Local) => "nodeport-local-only-endpoint",
            Self::Endpoints(Address, Cluster) => "endpoints",
            Self::Endpoints(Address, Local) => "local-endpoints",
            Self::Endpoints(NodePort, Cluster) => "nodeport-endpoints",
            Self::Endpoints(NodePort, Local) => "nodeport-local-endpoints",
            Self::Choices(Address, Cluster) => "choices",
            Self::Choices(Address, Local) => "local-choices",
            Self::Choices(NodePort, Cluster) => "nodeport-choices",
            Self::Choices(NodePort, Local) => "nodeport-local-choices",
            Self::Connections(Address) => "service-connections",
            Self::Connections(NodePort) => "nodeport-connections",
            Self::Refused(Address, NoEndpoints) => "refused-no-endpoints",
            Self::Refused(Address, NoLocalEndpoints) => "refused-no-local-endpoints",
            Self::Refused(NodePort, NoEndpoints) => "nodeport-refused-no-endpoints",
            Self::Refused(NodePort, NoLocalEndpoints) => "nodeport-refused-no-local-endpoints",
            Self::RefusedSources => "refused-sources",
            Self::RefusedPorts => "refused-ports",
        }
    }

    fn comment(self) -> &'static str {
        match self {
            Self::ClusterIps => "Active ClusterIPs",
            Self::NodePortIps => "IPs that accept NodePort traffic",
            Self::RefusableIps => "addresses outside the ServiceCIDRs whose packets may be refused",
            Self::Hairpin => "service hairpin connections",
            Self::HairpinIps => "addresses of service hairpin connections",
            Self::NoEndpoint(VipOrNodePort::Address) => "vmap to drop or reject packets to services with no endpoints",
            Self::NoEndpoint(VipOrNodePort::NodePort) => {
                "vmap to drop or reject packets to service nodeports with no endpoints"
            }
            Self::FirewallIps => "destinations that are subject to LoadBalancerSourceRanges",
            Self::FirewallAllowed => "who may connect to firewall-ips",
            Self::Service(VipOrNodePort::Address) => "ClusterIP, ExternalIP and LoadBalancer IP traffic",
            Self::Service(VipOrNodePort::NodePort) => "NodePort traffic",
            Self::ShortCircuit(_) => "with externalTrafficPolicy Local: traffic from pods and this node",
            Self::LocalPolicy(_) => "with externalTrafficPolicy Local: all other traffic",
            Self::LocalhostNodePorts => "node ports that are rejected at loopback addresses",
            Self::OnlyEndpoint(_, Policy::Cluster) => "the only endpoint",
            Self::OnlyEndpoint(_, Policy::Local) => "the only endpoint on this node",
            Self::Endpoints(_, Policy::Cluster) => "endpoints by number",
            Self::Endpoints(_, Policy::Local) => "endpoints on this node by number",
            Self::Choices(..) => "session affinity: what new clients choose from",
            Self::Connections(_) => "new connections by destination",
            Self::Refused(_, RefusedFor::NoEndpoints) => "rejected packets: no endpoints",
            Self::Refused(_, RefusedFor::NoLocalEndpoints) => "dropped packets: no local endpoints",
            Self::RefusedSources => "dropped packets: outside the LoadBalancerSourceRanges",
            Self::RefusedPorts => "rejected packets: no such port of the ClusterIP",
        }
    }

    /// Its definition without counters of endpoints.
    fn base_definition(self, family: IpFamily) -> Set {
        let (from, to) = (Field::Source(family), Field::Destination(family));
        let key = |place, more: &[Field]| [key(family, place), more.to_vec()].concat();
        // Only the type of the number matters here.
        let number = [Field::random(65535)];
        let name = self.name();
        let set = match self {
            Self::ClusterIps | Self::NodePortIps | Self::RefusableIps => Set::of(name, [to]),
            Self::HairpinIps => Set::of(name, [from, to]),
            Self::Hairpin => Set::of(name, [from, to, Field::Protocol, Field::Port]),
            Self::FirewallIps => Set::verdicts(name, key(VipOrNodePort::Address, &[])),
            Self::NoEndpoint(place) | Self::Service(place) | Self::ShortCircuit(place) | Self::LocalPolicy(place) => {
                Set::verdicts(name, key(place, &[]))
            }
            Self::LocalhostNodePorts => Set::verdicts(name, key(VipOrNodePort::NodePort, &[])),
            Self::OnlyEndpoint(place, _) => Set::map(name, key(place, &[]), [to, Field::Port]),
            Self::FirewallAllowed => Set { interval: true, ..Set::of(name, key(VipOrNodePort::Address, &[from])) },
            Self::Endpoints(place, _) => Set::map(name, key(place, &number), [to, Field::Port]),
            Self::Choices(place, _) => Set::verdicts(name, key(place, &number)),
            Self::Connections(place) | Self::Refused(place, _) => Set::of(name, key(place, &[])).counting(),
            Self::RefusedSources => Set::of(name, key(VipOrNodePort::Address, &[])).counting(),
            Self::RefusedPorts => Set::of(name, [to]).counting(),
        };
        set.comment(self.comment())
    }

    /// Whether the set exists with these metrics.
    #[must_use]
    pub fn exists(self, metrics: ServiceMetrics) -> bool {
        metrics != ServiceMetrics::Off || !self.only_counts()
    }

    /// Whether the set has counters and nothing else.
    #[must_use]
    pub fn only_counts(self) -> bool {
        matches!(self, Self::Connections(_) | Self::Refused(..) | Self::RefusedSources | Self::RefusedPorts)
    }

    /// Its definition with these metrics. The kernel changes no set: another definition takes another table.
    #[must_use]
    pub fn definition(self, family: IpFamily, metrics: ServiceMetrics) -> Set {
        let set = self.base_definition(family);
        let is_endpoint_map = matches!(self, Self::OnlyEndpoint(..) | Self::Endpoints(..));
        if is_endpoint_map && metrics == ServiceMetrics::Endpoints { set.counting() } else { set }
    }

    /// Whether rules use this set only after a verdict of another one: elements must outlive the verdicts.
    #[must_use]
    pub fn is_support(self) -> bool {
        matches!(self, Self::OnlyEndpoint(..) | Self::Endpoints(..) | Self::Choices(..))
    }
}

/// The key by which a Service port is looked up.
#[must_use]
pub fn key(family: IpFamily, place: VipOrNodePort) -> Vec<Field> {
    match place {
        VipOrNodePort::Address => vec![Field::Destination(family), Field::Protocol, Field::Port],
        VipOrNodePort::NodePort => vec![Field::Protocol, Field::Port],
    }
}

/// The key by which a client of a Service port with session affinity is remembered, at any address.
#[must_use]
pub fn client_key(family: IpFamily, service: u32) -> Vec<Field> {
    vec![Field::Source(family), Field::constant(service)]
}

/// A 31-bit hash of a Service port.
///
/// A collision is unlikely; clients of both Service ports would then share their affinity.
#[must_use]
pub fn service_number(name: &ServicePortName) -> u32 {
    let hash = Sha256::digest(format!("{name}{}", name.protocol.name()));
    // The kernel adds an offset to it.
    hash.iter().take(4).fold(0, |number, byte| number << 8 | u32::from(*byte)) >> 1
}

/// The set of clients of endpoints with this number.
#[must_use]
pub fn affinity_set(family: IpFamily, number: u32) -> Arc<Set> {
    // Only the type of the number matters here.
    let set = Set::of(affinity_name(number), [Field::Source(family), Field::random(65535)]);
    Arc::new(Set { dynamic: true, size: Some(AFFINITY_SIZE), ..set })
}

/// That set's name.
#[must_use]
pub fn affinity_name(number: u32) -> Name {
    format!("clients-{number}").into()
}
