//! Names, types and comments of IPVS mode's sets and chains, the same as kube-proxy's.

use netfilter::IpFamily;
use netfilter::ipset::{Set, SetName, SetType};
use netfilter::iptables::Chain;

use crate::model::config::ServiceMetrics;

pub use crate::addresses::VIRTUAL_IP_DEVICE as DEVICE;

/// Decides on masquerading of node port traffic; in filter, accepts health checks.
pub const NODE_PORT: Chain = Chain::new("KUBE-NODE-PORT");
/// Decides on masquerading of traffic to load balancer addresses.
pub const LOAD_BALANCER: Chain = Chain::new("KUBE-LOAD-BALANCER");
/// Returns packets from a load balancer's source ranges and drops others.
pub const SOURCE_RANGES_FIREWALL: Chain = Chain::new("KUBE-SOURCE-RANGES-FIREWALL");
/// Rejects access to the host's own ports by Service addresses (kubernetes/kubernetes#72236).
pub const IPVS_FILTER: Chain = Chain::new("KUBE-IPVS-FILTER");
/// Drops the host's packets to load balancers whose source ranges exclude it (kubernetes/kubernetes#119656).
pub const IPVS_OUT_FILTER: Chain = Chain::new("KUBE-IPVS-OUT-FILTER");

/// A set of IPVS mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SetId {
    /// This node's endpoints, each with itself as source.
    LoopBack,
    /// Cluster IPs.
    ClusterIp,
    /// External IPs.
    ExternalIp,
    /// External IPs under policy `Local`.
    ExternalIpLocal,
    /// Load balancer addresses.
    LoadBalancer,
    /// Load balancer addresses with source ranges.
    LoadBalancerFirewall,
    /// Load balancer addresses under policy `Local`.
    LoadBalancerLocal,
    /// Load balancer addresses that the host may use, each with itself as source.
    LoadBalancerSourceIp,
    /// Load balancer addresses with each of their source ranges.
    LoadBalancerSourceCidr,
    /// TCP node ports.
    NodePortTcp,
    /// TCP node ports under policy `Local`.
    NodePortLocalTcp,
    /// UDP node ports.
    NodePortUdp,
    /// UDP node ports under policy `Local`.
    NodePortLocalUdp,
    /// SCTP node ports, with the node's addresses.
    NodePortSctp,
    /// SCTP node ports under policy `Local`.
    NodePortLocalSctp,
    /// Health check node ports.
    HealthCheckNodePort,
    /// All addresses that are bound to the device.
    BoundIps,
    /// With service metrics: destinations without any endpoint, which count packets.
    RefusedNoEndpoints,
    /// With service metrics: destinations without endpoints on this node, where only those count.
    RefusedNoLocalEndpoints,
    /// With service metrics: load balancer addresses, which count packets from sources outside their ranges.
    RefusedSources,
    /// With service metrics: cluster IPs, which count packets to ports that no Service port has.
    RefusedPorts,
}

impl SetId {
    /// All of them.
    pub const ALL: [Self; 21] = [
        Self::LoopBack,
        Self::ClusterIp,
        Self::ExternalIp,
        Self::ExternalIpLocal,
        Self::LoadBalancer,
        Self::LoadBalancerFirewall,
        Self::LoadBalancerLocal,
        Self::LoadBalancerSourceIp,
        Self::LoadBalancerSourceCidr,
        Self::NodePortTcp,
        Self::NodePortLocalTcp,
        Self::NodePortUdp,
        Self::NodePortLocalUdp,
        Self::NodePortSctp,
        Self::NodePortLocalSctp,
        Self::HealthCheckNodePort,
        Self::BoundIps,
        Self::RefusedNoEndpoints,
        Self::RefusedNoLocalEndpoints,
        Self::RefusedSources,
        Self::RefusedPorts,
    ];

    /// Whether the set counts refused packets and exists with service metrics only.
    #[must_use]
    pub fn only_counts(self) -> bool {
        matches!(
            self,
            Self::RefusedNoEndpoints | Self::RefusedNoLocalEndpoints | Self::RefusedSources | Self::RefusedPorts
        )
    }

    /// The sets that exist with these metrics.
    pub fn existing(metrics: ServiceMetrics) -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(move |id| metrics != ServiceMetrics::Off || !id.only_counts())
    }

    /// The name. Those that only count are not kube-proxy's. kube-proxy cuts IPv6 names at 31 bytes, the kernel's limit.
    #[must_use]
    pub fn name(self, family: IpFamily) -> &'static str {
        let [v4, v6] = match self {
            Self::LoopBack => ["KUBE-LOOP-BACK", "KUBE-6-LOOP-BACK"],
            Self::ClusterIp => ["KUBE-CLUSTER-IP", "KUBE-6-CLUSTER-IP"],
            Self::ExternalIp => ["KUBE-EXTERNAL-IP", "KUBE-6-EXTERNAL-IP"],
            Self::ExternalIpLocal => ["KUBE-EXTERNAL-IP-LOCAL", "KUBE-6-EXTERNAL-IP-LOCAL"],
            Self::LoadBalancer => ["KUBE-LOAD-BALANCER", "KUBE-6-LOAD-BALANCER"],
            Self::LoadBalancerFirewall => ["KUBE-LOAD-BALANCER-FW", "KUBE-6-LOAD-BALANCER-FW"],
            Self::LoadBalancerLocal => ["KUBE-LOAD-BALANCER-LOCAL", "KUBE-6-LOAD-BALANCER-LOCAL"],
            Self::LoadBalancerSourceIp => ["KUBE-LOAD-BALANCER-SOURCE-IP", "KUBE-6-LOAD-BALANCER-SOURCE-IP"],
            Self::LoadBalancerSourceCidr => ["KUBE-LOAD-BALANCER-SOURCE-CIDR", "KUBE-6-LOAD-BALANCER-SOURCE-CID"],
            Self::NodePortTcp => ["KUBE-NODE-PORT-TCP", "KUBE-6-NODE-PORT-TCP"],
            Self::NodePortLocalTcp => ["KUBE-NODE-PORT-LOCAL-TCP", "KUBE-6-NODE-PORT-LOCAL-TCP"],
            Self::NodePortUdp => ["KUBE-NODE-PORT-UDP", "KUBE-6-NODE-PORT-UDP"],
            Self::NodePortLocalUdp => ["KUBE-NODE-PORT-LOCAL-UDP", "KUBE-6-NODE-PORT-LOCAL-UDP"],
            Self::NodePortSctp => ["KUBE-NODE-PORT-SCTP-HASH", "KUBE-6-NODE-PORT-SCTP-HASH"],
            Self::NodePortLocalSctp => ["KUBE-NODE-PORT-LOCAL-SCTP-HASH", "KUBE-6-NODE-PORT-LOCAL-SCTP-HAS"],
            Self::HealthCheckNodePort => ["KUBE-HEALTH-CHECK-NODE-PORT", "KUBE-6-HEALTH-CHECK-NODE-PORT"],
            Self::BoundIps => ["KUBE-IPVS-IPS", "KUBE-6-IPVS-IPS"],
            Self::RefusedNoEndpoints => ["KUBE-REFUSED-NO-ENDPOINTS", "KUBE-6-REFUSED-NO-ENDPOINTS"],
            Self::RefusedNoLocalEndpoints => ["KUBE-REFUSED-NO-LOCAL-ENDPOINTS", "KUBE-6-REFUSED-NO-LOCAL-ENDPOIN"],
            Self::RefusedSources => ["KUBE-REFUSED-SOURCES", "KUBE-6-REFUSED-SOURCES"],
            Self::RefusedPorts => ["KUBE-REFUSED-PORTS", "KUBE-6-REFUSED-PORTS"],
        };
        if family == IpFamily::V4 { v4 } else { v6 }
    }

    /// The type of its entries.
    #[must_use]
    pub fn set_type(self) -> SetType {
        match self {
            Self::LoopBack | Self::LoadBalancerSourceIp => SetType::HashIpPortIp,
            Self::LoadBalancerSourceCidr => SetType::HashIpPortNet,
            Self::NodePortTcp
            | Self::NodePortLocalTcp
            | Self::NodePortUdp
            | Self::NodePortLocalUdp
            | Self::HealthCheckNodePort => SetType::BitmapPort,
            Self::BoundIps | Self::RefusedPorts => SetType::HashIp,
            _ => SetType::HashIpPort,
        }
    }

    /// The definition in a family.
    #[must_use]
    pub fn set(self, family: IpFamily) -> Set {
        let set = Set::new(SetName::new(self.name(family)), self.set_type(), family);
        if self.only_counts() { set.counting() } else { set }
    }

    /// The comment of rules that match the set; empty where kube-proxy writes none.
    #[must_use]
    pub fn comment(self) -> &'static str {
        match self {
            Self::LoopBack => "Kubernetes endpoints dst ip:port, source ip for solving hairpin purpose",
            Self::ClusterIp => "Kubernetes service cluster ip + port for masquerade purpose",
            Self::ExternalIp => "Kubernetes service external ip + port for masquerade and filter purpose",
            Self::ExternalIpLocal => "Kubernetes service external ip + port with externalTrafficPolicy=local",
            Self::LoadBalancer => "Kubernetes service lb portal",
            Self::LoadBalancerFirewall => {
                "Kubernetes service load balancer ip + port for load balancer with sourceRange"
            }
            Self::LoadBalancerLocal => "Kubernetes service load balancer ip + port with externalTrafficPolicy=local",
            Self::LoadBalancerSourceIp => {
                "Kubernetes service load balancer ip + port + source IP for packet filter purpose"
            }
            Self::LoadBalancerSourceCidr => {
                "Kubernetes service load balancer ip + port + source cidr for packet filter purpose"
            }
            Self::NodePortTcp => "Kubernetes nodeport TCP port for masquerade purpose",
            Self::NodePortLocalTcp => "Kubernetes nodeport TCP port with externalTrafficPolicy=local",
            Self::NodePortUdp => "Kubernetes nodeport UDP port for masquerade purpose",
            Self::NodePortLocalUdp => "Kubernetes nodeport UDP port with externalTrafficPolicy=local",
            Self::NodePortSctp => "Kubernetes nodeport SCTP port for masquerade purpose with type 'hash ip:port'",
            Self::NodePortLocalSctp => {
                "Kubernetes nodeport SCTP port with externalTrafficPolicy=local with type 'hash ip:port'"
            }
            Self::HealthCheckNodePort => "Kubernetes health check node port",
            Self::BoundIps => "",
            Self::RefusedNoEndpoints => "Kubernetes service ip + port without endpoints for counting",
            Self::RefusedNoLocalEndpoints => "Kubernetes service ip + port without local endpoints for counting",
            Self::RefusedSources => "Kubernetes service load balancer ip + port with sourceRange for counting",
            Self::RefusedPorts => "Kubernetes service cluster ip for counting",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_names_are_distinct_and_within_the_limit_of_the_kernel() {
        let all = SetId::ALL.iter().flat_map(|id| IpFamily::ALL.map(|family| id.set(family).name));
        let distinct: std::collections::BTreeSet<_> = all.collect();
        assert_eq!(distinct.len(), 2 * SetId::ALL.len());
        for (index, id) in SetId::ALL.into_iter().enumerate() {
            assert_eq!(id as usize, index);
            let cut = id.name(IpFamily::V4).replacen("KUBE-", "KUBE-6-", 1);
            assert_eq!(id.name(IpFamily::V6), &cut[..cut.len().min(31)]);
        }
    }
}
