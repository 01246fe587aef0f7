//! Service ports as a node has them, whoever programmed it.
//!
//! In: what a mode's reader found (`iptables`, `ipvs`, `nftables`), the model if there is one.
//! Out: [`ServicePortView`]s. Must not know: how anything was read from the kernel, or how it is shown.

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

pub use iptables::{Entry, Wanted, dispatch_of, read as from_iptables, unused_chains};
pub use ipvs::{BY_SOURCE, note_draining, read as from_ipvs, shares};
pub use nftables::{
    endpoint_in, node_port_ips, owner as owner_in_table, read as from_nftables, unused_chains as unused_chains_of_table,
};
pub use state::add_model;
pub(super) use state::owners;

use super::rules::Counters;
use proxier::iptables::names::{Namer, hash_of};
use proxier::model::{Protocol, ServicePortName};

/// What the chains of a Service port have in their names.
#[must_use]
pub fn hash_of_name(name: &ServicePortName) -> Option<String> {
    hash_of(Namer::new(name).port().cluster.as_str()).map(str::to_owned)
}

/// A Service port in one family.
#[derive(Clone, Debug, Serialize)]
pub struct ServicePortView {
    /// `namespace/name:port` where it can be told, else the chain it is known by.
    pub name: String,
    /// `IPv4` or `IPv6`.
    pub family: &'static str,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: &'static str,
    /// Where packets for it may be sent.
    pub addresses: Vec<Address>,
    /// `internalTrafficPolicy`, as far as the rules or the objects tell.
    pub internal_policy: Option<Policy>,
    /// `externalTrafficPolicy`, the same.
    pub external_policy: Option<Policy>,
    /// How long a client stays with its endpoint.
    pub affinity_seconds: Option<u32>,
    /// Who may use the load balancer's addresses; empty: everyone.
    pub source_ranges: Vec<IpNet>,
    /// Where packets go, and endpoints that get none.
    pub endpoints: Vec<EndpointView>,
    /// The chains, virtual servers or map elements that make it work.
    pub parts: Vec<Part>,
    /// What is odd about it.
    pub notes: Vec<String>,
    /// Whether objects were compared: then endpoints have a state, and are complete.
    pub known: bool,
}

impl ServicePortView {
    /// One of which nothing is seen yet.
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

/// How far traffic may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Policy {
    /// To every endpoint.
    Cluster,
    /// To endpoints on this node.
    Local,
}

/// What an address of a Service is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[allow(missing_docs)] // they are named as in the API
pub enum AddressKind {
    ClusterIp,
    ExternalIp,
    LoadBalancer,
    NodePort,
    HealthCheckNodePort,
}

impl AddressKind {
    /// As people write it.
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

/// What becomes of a packet to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Fate {
    /// It goes to endpoints.
    Endpoints,
    /// It is refused with an error.
    Rejected,
    /// It is thrown away.
    Dropped,
    /// It reaches whoever listens on the node.
    Accepted,
}

/// An address of a Service.
#[derive(Clone, Debug, Serialize)]
pub struct Address {
    /// What it is.
    pub kind: AddressKind,
    /// The address; of node ports none, as they are served at the node's own; in IPVS mode one for each of those.
    pub ip: Option<IpAddr>,
    /// The port.
    pub port: u16,
    /// What becomes of packets.
    pub fate: Fate,
    /// The chain that its rule leads to.
    pub chain: Option<String>,
    /// What its rule counted: the first packets of connections; in IPVS mode all that clients sent; `None` where nothing
    /// counts.
    pub counters: Option<Counters>,
    /// Its virtual server, in IPVS mode.
    pub server: Option<ServerView>,
}

/// A virtual server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServerView {
    /// How connections are distributed.
    pub scheduler: String,
    /// All of it, as `ipvsadm -S -n` prints it.
    pub text: String,
    /// How long a client stays with its real server.
    pub affinity_seconds: Option<u32>,
    /// Whether its address is bound to kube-ipvs0; node ports' are the node's own.
    pub on_device: bool,
    /// The sets that have it.
    pub sets: Vec<String>,
    /// Connections that it ever took.
    pub connections: u64,
    /// What went back to clients.
    pub answers: Counters,
}

/// An endpoint as a real server of a virtual one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RealView {
    /// The virtual server, as ipvsadm calls it.
    pub server: String,
    /// How packets get there: anything but `masquerading` is not kube-proxy's.
    pub forward: &'static str,
    /// Its weight; with 0 it gets no new connections.
    pub weight: u32,
    /// Connections that are established.
    pub active: u32,
    /// Connections that are being made or closed, and those of UDP.
    pub inactive: u32,
    /// Clients that stay with it.
    pub persistent: u32,
    /// Connections that it ever got.
    pub connections: u64,
    /// What clients sent it.
    pub counters: Counters,
    /// What it sent back.
    pub answers: Counters,
}

/// An endpoint.
#[derive(Clone, Debug, Serialize)]
pub struct EndpointView {
    /// Where packets go; `None` where its chain does not say.
    pub address: Option<SocketAddr>,
    /// Its chain.
    pub chain: Option<String>,
    /// How much of the traffic under policy `Cluster` it gets, 0 to 1.
    pub share: Option<f64>,
    /// The same under policy `Local`.
    pub local_share: Option<f64>,
    /// What its translation counted: connections; in IPVS mode all that clients sent; `None` where nothing counts.
    pub counters: Option<Counters>,
    /// Its state, where objects tell.
    pub state: Option<EndpointState>,
    /// Why it gets no traffic, where it gets none.
    pub unused: Option<String>,
    /// The flows that go to it, by state.
    pub flows: std::collections::BTreeMap<&'static str, u64>,
    /// Of those, the ones that would go elsewhere if they began now.
    pub stale: u64,
    /// What it is to each virtual server, in IPVS mode.
    pub servers: Vec<RealView>,
}

/// An endpoint's state, from its EndpointSlice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs)] // they are named as in the API
pub struct EndpointState {
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    pub local: bool,
}

impl EndpointView {
    /// One that nothing is known of but its address.
    #[must_use]
    pub fn at(address: Option<SocketAddr>) -> Self {
        Self {
            address,
            chain: None,
            share: None,
            local_share: None,
            counters: None,
            state: None,
            unused: None,
            flows: std::collections::BTreeMap::new(),
            stale: 0,
            servers: Vec::new(),
        }
    }

    /// Whether rules or objects have it; otherwise only flows of before still go there.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.used() || self.state.is_some() || self.chain.is_some() || !self.servers.is_empty()
    }

    /// Whether it gets traffic.
    #[must_use]
    pub fn used(&self) -> bool {
        self.share.is_some() || self.local_share.is_some()
    }
}

/// Something in the kernel that makes a Service port work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Part {
    /// The table.
    pub table: &'static str,
    /// The chain, or the set that an element is in.
    pub chain: String,
    /// The element, of nf_tables.
    pub element: Option<String>,
    /// How many rules it has.
    pub rules: usize,
    /// What its rules counted, added up; `None` where nothing counts.
    pub counters: Option<Counters>,
}
