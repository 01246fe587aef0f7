//! Service ports as a node's rules implement them, for any kube-proxy.
//!
//! Each mode has a reader (`iptables`, `ipvs`, `nftables`) that builds [`ServicePortView`]s; [`add_model`] adds what
//! objects say, where they are known.

mod iptables;
mod ipvs;
pub(crate) mod nftables;
mod state;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use netfilter::IpFamily;
use serde::Serialize;

pub use iptables::{
    DISPATCH as DISPATCH_CHAINS, DispatchRule, ServicePortFilter, dispatch_of, dispatch_within, read as from_iptables,
    read_within as from_iptables_within, unused_chains,
};
pub use ipvs::{BY_SOURCE, note_draining, read as from_ipvs, shares};
pub use nftables::{
    endpoint_in, endpoint_of, has_own_addresses, node_port_ips, owner as owner_in_table, read as from_nftables,
    unread_elements, unused_chains as unused_chains_of_table,
};
pub(super) use state::owners;
pub use state::{add_health_checks, add_model};

use super::rules::Counters;
use proxier::iptables::names::{Namer, hash_of};
use proxier::model::{Protocol, ServicePortName};

/// The hash in the names of a Service port's chains.
#[must_use]
pub fn hash_of_name(name: &ServicePortName) -> Option<String> {
    hash_of(Namer::new(name).port().cluster.as_str()).map(str::to_owned)
}

/// A Service port in one family.
#[derive(Clone, Debug, Serialize)]
pub struct ServicePortView {
    /// `namespace/name:port` where known, else the chain that identifies it.
    pub name: String,
    /// `IPv4` or `IPv6`.
    pub family: &'static str,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: &'static str,
    /// The addresses on which clients reach it.
    pub addresses: Vec<Address>,
    /// `internalTrafficPolicy`, where rules or objects imply it.
    pub internal_policy: Option<Policy>,
    /// `externalTrafficPolicy`, where rules or objects imply it.
    pub external_policy: Option<Policy>,
    /// The session affinity timeout, in seconds; `None` without session affinity.
    pub affinity_seconds: Option<u32>,
    /// `loadBalancerSourceRanges`; empty: all sources.
    pub source_ranges: Vec<IpNet>,
    /// The endpoints, including endpoints without traffic.
    pub endpoints: Vec<EndpointView>,
    /// The chains, virtual servers or map elements that implement it.
    pub parts: Vec<KernelObject>,
    /// Anomalies, one sentence each.
    pub notes: Vec<String>,
    /// Whether objects were added, so that endpoints have a state and the list of endpoints is complete.
    pub known: bool,
}

impl ServicePortView {
    /// A view without any data.
    fn of(name: String, family: IpFamily, protocol: Protocol) -> Self {
        Self {
            name,
            family: family.name(),
            protocol: protocol.name(),
            addresses: Vec::new(),
            internal_policy: None,
            external_policy: None,
            affinity_seconds: None,
            source_ranges: Vec::new(),
            endpoints: Vec::new(),
            parts: Vec::new(),
            notes: Vec::new(),
            known: false,
        }
    }
}

/// A traffic policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Policy {
    /// To every endpoint.
    Cluster,
    /// To endpoints on this node.
    Local,
}

/// The kind of a Service's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum AddressKind {
    /// One of `spec.clusterIPs`.
    ClusterIp,
    /// One of `spec.externalIPs`.
    ExternalIp,
    /// One of `status.loadBalancer.ingress`.
    LoadBalancer,
    /// `nodePort` of a port, at the node's own addresses.
    NodePort,
    /// `spec.healthCheckNodePort`, at the node's own addresses.
    HealthCheckNodePort,
}

impl AddressKind {
    /// The name, as printed.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ClusterIp => "cluster IP",
            Self::ExternalIp => "external IP",
            Self::LoadBalancer => "load balancer",
            Self::NodePort => "node port",
            Self::HealthCheckNodePort => "health checks",
        }
    }
}

/// What the rules do with packets to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum AddressVerdict {
    /// Packets go to endpoints.
    Endpoints,
    /// Packets are rejected with an error.
    Rejected,
    /// Packets are dropped.
    Dropped,
    /// Packets are delivered to a process on the node.
    Accepted,
}

/// An address of a Service.
#[derive(Clone, Debug, Serialize)]
pub struct Address {
    /// The kind.
    pub kind: AddressKind,
    /// The IP; `None` for node ports, except in IPVS mode, which has an entry for each of the node's addresses.
    pub ip: Option<IpAddr>,
    /// The port.
    pub port: u16,
    /// What the rules do with packets to it.
    #[serde(rename = "fate")] // the name in schema v1
    pub verdict: AddressVerdict,
    /// The chain that its dispatch rule jumps to.
    pub chain: Option<String>,
    /// The counters of its rule: first packets of connections; in IPVS mode, all packets of clients; `None` without a
    /// counter.
    pub counters: Option<Counters>,
    /// Whether it counts fewer connections than the endpoints' rules, because its chain was written later.
    pub counters_incomplete: bool,
    /// Its virtual server, in IPVS mode.
    pub server: Option<ServerView>,
}

impl Address {
    /// A health check node port, where the proxy itself listens at the node's addresses.
    #[must_use]
    pub fn of_health_checks(port: u16) -> Self {
        Self {
            kind: AddressKind::HealthCheckNodePort,
            ip: None,
            port,
            verdict: AddressVerdict::Accepted,
            chain: None,
            counters: None,
            counters_incomplete: false,
            server: None,
        }
    }
}

/// A virtual server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServerView {
    /// The scheduler.
    pub scheduler: String,
    /// The virtual server as `ipvsadm -S -n` prints it.
    pub text: String,
    /// The persistence timeout, in seconds.
    pub affinity_seconds: Option<u32>,
    /// Whether its address is bound to `kube-ipvs0`; node ports use addresses of other interfaces.
    pub on_device: bool,
    /// The sets with an entry for it.
    pub sets: Vec<String>,
    /// All connections since its creation.
    pub connections: u64,
    /// Packets to clients.
    pub answers: Counters,
}

/// An endpoint as a real server of one virtual server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RealView {
    /// The virtual server, as ipvsadm names it.
    pub server: String,
    /// The forwarding method; kube-proxy only uses `masquerading`.
    pub forward: &'static str,
    /// The weight; with 0, the server drains and gets no new connections.
    pub weight: u32,
    /// Established connections (`ActiveConn`).
    pub active: u32,
    /// Connections in all other states, and all UDP connections (`InActConn`).
    pub inactive: u32,
    /// Persistence templates: clients bound to it (`PersistConn`).
    pub persistent: u32,
    /// All connections since its creation.
    pub connections: u64,
    /// Packets from clients.
    pub counters: Counters,
    /// Packets to clients.
    pub answers: Counters,
}

/// An endpoint.
#[derive(Clone, Debug, Serialize)]
pub struct EndpointView {
    /// The address; `None` if its chain has no translation.
    pub address: Option<SocketAddr>,
    /// Its chain.
    pub chain: Option<String>,
    /// Its share of the traffic under policy `Cluster`, 0 to 1.
    pub share: Option<f64>,
    /// The same under policy `Local`.
    pub local_share: Option<f64>,
    /// The counters of its DNAT rule: connections; in IPVS mode, all packets of clients; `None` without a counter.
    pub counters: Option<Counters>,
    /// Whether all endpoints together count fewer connections than the addresses' rules.
    pub counters_incomplete: bool,
    /// Its state, where objects are known.
    pub state: Option<EndpointState>,
    /// Why it gets no traffic; `None` if it does.
    pub unused: Option<String>,
    /// The number of flows to it, by conntrack state.
    pub flows: std::collections::BTreeMap<&'static str, u64>,
    /// The number of stale UDP flows: a new flow of the same client would go elsewhere.
    pub stale: u64,
    /// Its real servers, one for each virtual server, in IPVS mode.
    pub servers: Vec<RealView>,
}

/// An endpoint's state, from its EndpointSlice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct EndpointState {
    /// Condition `ready`.
    pub ready: bool,
    /// Condition `serving`.
    pub serving: bool,
    /// Condition `terminating`.
    pub terminating: bool,
    /// Whether it is on this node.
    pub local: bool,
}

impl EndpointView {
    /// An endpoint of which only the address is known.
    #[must_use]
    pub fn at(address: Option<SocketAddr>) -> Self {
        Self {
            address,
            chain: None,
            share: None,
            local_share: None,
            counters: None,
            counters_incomplete: false,
            state: None,
            unused: None,
            flows: std::collections::BTreeMap::new(),
            stale: 0,
            servers: Vec::new(),
        }
    }

    /// Whether rules or objects have it; otherwise only existing flows refer to it.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.used() || self.state.is_some() || self.chain.is_some() || !self.servers.is_empty()
    }

    /// Whether it gets new connections.
    #[must_use]
    pub fn used(&self) -> bool {
        self.share.is_some() || self.local_share.is_some()
    }
}

/// A kernel object that implements a Service port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KernelObject {
    /// The table.
    pub table: &'static str,
    /// The chain, or the set that an element is in.
    pub chain: String,
    /// The element of an nf_tables set or map.
    pub element: Option<String>,
    /// The number of its rules; in IPVS mode, of real servers.
    pub rules: usize,
    /// The sum of its rules' counters; `None` without counters.
    pub counters: Option<Counters>,
}
