//! Renders the desired kernel state of one Service port: virtual servers and set entries.
//!
//! Follows kube-proxy 1.36, where policy `Local` without local endpoints falls back to all endpoints, except for a
//! Service under `internalTrafficPolicy: Local` without external addresses, whose cluster endpoints are not computed.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use netfilter::ipset::{Entry, IpPortProto};
use netfilter::ipvs::{Persistence, SCTP, ServerKey, TCP, UDP};

use super::names::SetId;
use super::settings::IpvsSettings;
use crate::model::{
    CategorizedEndpoints, Endpoint, EndpointHash, ServicePort, ServicePortName, Snapshot, sorted_addresses,
};

/// A desired virtual server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredServer {
    /// Its address, port and protocol.
    pub key: ServerKey,
    /// The addresses of its real servers, in order. Few distinct lists exist per Service port.
    pub reals: Arc<[SocketAddr]>,
    /// Whether its address is bound to the device.
    pub bound: bool,
}

/// The desired kernel state of a Service port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DesiredPort {
    /// Its virtual servers, in order.
    pub servers: Box<[DesiredServer]>,
    /// The real servers that keep connections after their removal, if the Service names them by annotation; sorted.
    pub retained: Option<Arc<[SocketAddr]>>,
    /// Session affinity, if configured.
    pub persistence: Option<Persistence>,
    /// What its scheduler hashes, if it asks for that. It has no persistence then.
    pub hash: Option<EndpointHash>,
    /// Its set entries, except bound addresses.
    pub entries: Box<[(SetId, Entry)]>,
    /// Load balancer addresses that the host may not use.
    pub barred: Box<[ServerKey]>,
    /// Whether it has endpoints, but none on this node, under `internalTrafficPolicy: Local`.
    pub lacks_internal_local: bool,
    /// The same under `externalTrafficPolicy: Local`.
    pub lacks_external_local: bool,
}

/// Renders a Service port; `None` if the snapshot has none of that name.
#[must_use]
pub fn render(snapshot: &Snapshot<'_>, name: &ServicePortName, settings: &IpvsSettings) -> Option<DesiredPort> {
    let port = snapshot.ports.get(name)?;
    let endpoints = snapshot.endpoints.of(name);
    let categorized = CategorizedEndpoints::of(&endpoints, port, snapshot.node);
    let view = PortRenderer { port, settings, protocol: name.protocol.number() };
    Some(view.render(&endpoints, &categorized))
}

struct PortRenderer<'a> {
    port: &'a ServicePort,
    settings: &'a IpvsSettings,
    protocol: u8,
}

impl PortRenderer<'_> {
    fn render(&self, endpoints: &[Endpoint], categorized: &CategorizedEndpoints<'_>) -> DesiredPort {
        let list = |endpoints: &[&Endpoint]| {
            let mut addresses: Vec<SocketAddr> = endpoints.iter().map(|endpoint| endpoint.address).collect();
            addresses.sort_unstable();
            Arc::from(addresses)
        };
        let cluster: Arc<[SocketAddr]> = list(&categorized.cluster);
        // Without local endpoints, use all endpoints rather than none (kubernetes/kubernetes#97081).
        let no_local = categorized.local.is_empty();
        let local = if no_local { cluster.clone() } else { list(&categorized.local) };
        let of = |only_local: bool| if only_local { &local } else { &cluster };
        let (internal, external) = (of(self.port.internal_local), of(self.port.external_local));
        let servers = self.servers(internal, external);
        let hash = self.port.endpoint_hash().filter(|_| self.settings.hashes);
        let persistence = self.port.affinity_seconds.filter(|_| hash.is_none());
        let mut entries = self.entries(endpoints);
        if self.settings.counts_refused {
            self.refused(&servers, categorized.any, &mut entries);
        }
        let lacks = |policy: bool| no_local && categorized.any && policy && self.asks_for_local();
        DesiredPort {
            servers,
            retained: self.retained(endpoints),
            persistence: persistence.map(|seconds| Persistence { seconds, prefix: self.bits() }),
            hash,
            entries: entries.into(),
            barred: self.barred(),
            lacks_internal_local: lacks(self.port.internal_local),
            lacks_external_local: lacks(self.port.external_local),
        }
    }

    /// Endpoints that are not gone keep TCP connections, and terminating ones UDP flows, if the Service asks for it.
    fn retained(&self, endpoints: &[Endpoint]) -> Option<Arc<[SocketAddr]>> {
        let extensions = self.port.extensions;
        let only_terminating = match self.protocol {
            TCP if extensions.end_stale_connections => false,
            UDP if extensions.keep_terminating_udp_flows => true,
            _ => return None,
        };
        let kept = endpoints.iter().filter(|endpoint| !only_terminating || endpoint.state.terminating);
        Some(sorted_addresses(kept).into())
    }

    /// Whether any of its virtual servers uses local endpoints only.
    fn asks_for_local(&self) -> bool {
        let outside = !self.port.external_ips.is_empty()
            || !self.port.load_balancer_vips.is_empty()
            || (self.port.node_port != 0 && !self.settings.node_ports.is_empty());
        self.port.internal_local || (self.port.external_local && outside)
    }

    fn bits(&self) -> u8 {
        if self.port.cluster_ip.is_ipv4() { 32 } else { 128 }
    }

    fn key(&self, ip: IpAddr, port: u16) -> ServerKey {
        ServerKey { address: SocketAddr::new(ip, port), protocol: self.protocol }
    }

    fn servers(&self, internal: &Arc<[SocketAddr]>, external: &Arc<[SocketAddr]>) -> Box<[DesiredServer]> {
        let mut servers: BTreeMap<ServerKey, DesiredServer> = BTreeMap::new();
        let mut add = |ip: IpAddr, port: u16, reals: &Arc<[SocketAddr]>, bound: bool| {
            let key = self.key(ip, port);
            // An address may be of two kinds; the last kind decides the endpoints.
            let bound = bound || servers.get(&key).is_some_and(|server| server.bound);
            servers.insert(key, DesiredServer { key, reals: reals.clone(), bound });
        };
        let port = self.port.port;
        add(self.port.cluster_ip, port, internal, true);
        for &ip in self.port.external_ips.iter().chain(&self.port.load_balancer_vips) {
            add(ip, port, external, !self.settings.local.contains(&ip));
        }
        if self.port.node_port != 0 {
            for &ip in &self.settings.node_ports {
                add(ip, self.port.node_port, external, false);
            }
        }
        servers.into_values().collect()
    }

    fn place(&self, ip: IpAddr, port: u16) -> IpPortProto {
        IpPortProto { ip, protocol: self.protocol, port }
    }

    fn entries(&self, endpoints: &[Endpoint]) -> Vec<(SetId, Entry)> {
        let mut entries = Vec::new();
        for endpoint in endpoints.iter().filter(|endpoint| endpoint.state.local) {
            let (ip, port) = (endpoint.address.ip(), endpoint.address.port());
            entries.push((SetId::LoopBack, Entry::IpPortIp(self.place(ip, port), ip)));
        }
        let port = self.port.port;
        entries.push((SetId::ClusterIp, Entry::IpPort(self.place(self.port.cluster_ip, port))));
        let set = if self.port.external_local { SetId::ExternalIpLocal } else { SetId::ExternalIp };
        entries.extend(self.port.external_ips.iter().map(|&ip| (set, Entry::IpPort(self.place(ip, port)))));
        for &vip in &self.port.load_balancer_vips {
            self.load_balancer(self.place(vip, port), &mut entries);
        }
        self.node_port(&mut entries);
        // kube-proxy omits the health check port if no address serves node ports.
        let forgotten = self.port.node_port != 0 && self.settings.node_ports.is_empty();
        if self.port.health_check_node_port != 0 && !forgotten {
            entries.push((SetId::HealthCheckNodePort, Entry::Port(self.port.health_check_node_port)));
        }
        entries
    }

    fn load_balancer(&self, vip: IpPortProto, entries: &mut Vec<(SetId, Entry)>) {
        entries.push((SetId::LoadBalancer, Entry::IpPort(vip)));
        if self.port.external_local {
            entries.push((SetId::LoadBalancerLocal, Entry::IpPort(vip)));
        }
        if self.port.source_ranges.is_empty() {
            return;
        }
        entries.push((SetId::LoadBalancerFirewall, Entry::IpPort(vip)));
        let ranges = self.port.source_ranges.iter().map(|range| Entry::IpPortNet(vip, range.trunc()));
        entries.extend(ranges.map(|entry| (SetId::LoadBalancerSourceCidr, entry)));
        // The VIP is a local address here: this node's own packets to it have it as source.
        if self.host_is_in_ranges() {
            entries.push((SetId::LoadBalancerSourceIp, Entry::IpPortIp(vip, vip.ip)));
        }
    }

    /// What counts refused packets: virtual servers without real servers, VIPs with source ranges, the cluster IP.
    ///
    /// Packets to a VIP with source ranges and without endpoints are counted for their source alone: the rules that count
    /// for endpoints see them first, and do not know whether the ranges allow them.
    fn refused(&self, servers: &[DesiredServer], any: bool, entries: &mut Vec<(SetId, Entry)>) {
        let set = if any { SetId::RefusedNoLocalEndpoints } else { SetId::RefusedNoEndpoints };
        let has_ranges = |ip: IpAddr| !self.port.source_ranges.is_empty() && self.port.load_balancer_vips.contains(&ip);
        let unserved = servers.iter().filter(|server| server.reals.is_empty()).map(|server| server.key.address);
        let unserved = unserved.filter(|address| !has_ranges(address.ip()));
        entries.extend(unserved.map(|address| (set, Entry::IpPort(self.place(address.ip(), address.port())))));
        let vips = self.port.load_balancer_vips.iter().filter(|vip| has_ranges(**vip));
        entries.extend(vips.map(|vip| (SetId::RefusedSources, Entry::IpPort(self.place(*vip, self.port.port)))));
        entries.push((SetId::RefusedPorts, Entry::Ip(self.port.cluster_ip)));
    }

    fn host_is_in_ranges(&self) -> bool {
        self.port.source_ranges.iter().any(|range| range.contains(&self.settings.node_ip))
    }

    fn barred(&self) -> Box<[ServerKey]> {
        if self.port.source_ranges.is_empty() || self.host_is_in_ranges() {
            return Box::default();
        }
        self.port.load_balancer_vips.iter().map(|&vip| self.key(vip, self.port.port)).collect()
    }

    fn node_port(&self, entries: &mut Vec<(SetId, Entry)>) {
        let port = self.port.node_port;
        if port == 0 || self.settings.node_ports.is_empty() {
            return;
        }
        let (all, local) = match self.protocol {
            TCP => (SetId::NodePortTcp, SetId::NodePortLocalTcp),
            UDP => (SetId::NodePortUdp, SetId::NodePortLocalUdp),
            _ => (SetId::NodePortSctp, SetId::NodePortLocalSctp),
        };
        // bitmap:port sets do not distinguish SCTP.
        let served: Vec<Entry> = if self.protocol == SCTP {
            self.settings.node_ports.iter().map(|&ip| Entry::IpPort(self.place(ip, port))).collect()
        } else {
            vec![Entry::Port(port)]
        };
        entries.extend(served.iter().map(|entry| (all, *entry)));
        if self.port.external_local {
            entries.extend(served.iter().map(|entry| (local, *entry)));
        }
    }
}
