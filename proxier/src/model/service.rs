//! Services: a [`ServicePort`] for each port and IP family.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use super::annotations::ServiceExtensions;
use super::endpoint_hash::EndpointHash;

/// A namespaced object's name, printed `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamespacedName {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
}

impl NamespacedName {
    /// A name from its two parts.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for NamespacedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A transport protocol that Services can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// `TCP`
    Tcp,
    /// `UDP`
    Udp,
    /// `SCTP`
    Sctp,
}

impl Protocol {
    /// The lower case name, for iptables and chain name hashes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }

    /// Parses the lower case name.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        [Self::Tcp, Self::Udp, Self::Sctp].into_iter().find(|protocol| protocol.name() == name)
    }

    /// The protocol's number in IP headers.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// Looks up a protocol by its IP number.
    #[must_use]
    pub fn of_number(number: u8) -> Option<Self> {
        [Self::Tcp, Self::Udp, Self::Sctp].into_iter().find(|protocol| protocol.number() == number)
    }

    /// Parses the API's name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            "SCTP" => Some(Self::Sctp),
            _ => None,
        }
    }
}

/// The identity of a Service port, from which chain names are derived.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServicePortName {
    /// The Service.
    pub service: NamespacedName,
    /// The port's name; empty for the only port of a Service that does not name it.
    pub port: Arc<str>,
    /// The port's protocol: one name may exist once per protocol.
    pub protocol: Protocol,
}

impl ServicePortName {
    /// The lowest name of any port of a Service: where its ports begin in a sorted map.
    #[must_use]
    pub fn first_of(service: &NamespacedName) -> Self {
        Self { service: service.clone(), port: Arc::from(""), protocol: Protocol::Tcp }
    }
}

impl ServicePortName {
    /// Parses the printed form.
    #[must_use]
    pub fn parse(text: &str, protocol: Protocol) -> Option<Self> {
        let (namespace, rest) = text.split_once('/')?;
        let (name, port) = rest.split_once(':').unwrap_or((rest, ""));
        if namespace.is_empty() || name.is_empty() || text.contains(char::is_whitespace) {
            return None;
        }
        Some(Self { service: NamespacedName::new(namespace, name), port: port.into(), protocol })
    }
}

/// `namespace/name:port`, without `:port` where the port has no name. Chain hashes are made of this text.
impl fmt::Display for ServicePortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.service)?;
        if self.port.is_empty() { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}

/// The fields of a Service port that rules depend on, in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// The cluster IP of this family.
    pub cluster_ip: IpAddr,
    /// The port at the cluster IP, external IPs and load balancer VIPs.
    pub port: u16,
    /// The node port; 0 where there is none.
    pub node_port: u16,
    /// External IPs of this family, in the order given.
    pub external_ips: Box<[IpAddr]>,
    /// Load balancer addresses of this family with `ipMode: VIP`.
    pub load_balancer_vips: Box<[IpAddr]>,
    /// Source ranges of this family; empty allows every source.
    pub source_ranges: Box<[IpNet]>,
    /// Timeout of ClientIP affinity in seconds; `None` without affinity.
    pub affinity_seconds: Option<u32>,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`, for a Service that can be reached from outside.
    pub external_local: bool,
    /// The port of the load balancer's health checks; 0 where there is none.
    pub health_check_node_port: u16,
    /// Whether a feature gate keeps the Service's external IPs from being programmed.
    ///
    /// It still counts as externally accessible.
    pub hidden_external_ips: bool,
    /// What the Service asks for by annotations.
    pub extensions: ServiceExtensions,
}

/// A destination of packets for a Service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Destination {
    /// Its cluster IP, an external IP or a load balancer VIP.
    Address(SocketAddr),
    /// A port at the node's addresses.
    NodePort(u16),
}

impl ServicePort {
    /// All destinations of packets for it.
    pub fn destinations(&self) -> impl Iterator<Item = Destination> + '_ {
        let addresses = [&self.cluster_ip].into_iter().chain(&self.external_ips).chain(&self.load_balancer_vips);
        let addresses = addresses.map(|ip| Destination::Address(SocketAddr::new(*ip, self.port)));
        addresses.chain((self.node_port != 0).then_some(Destination::NodePort(self.node_port)))
    }

    /// What the choice of an endpoint is hashed from, in modes that hash; `None`: it is random.
    ///
    /// `sessionAffinity: ClientIP` asks for one endpoint for each client, so then the client's address alone is hashed. No client is
    /// remembered, so the affinity timeout has no effect.
    #[must_use]
    pub fn endpoint_hash(&self) -> Option<EndpointHash> {
        let hash = self.extensions.endpoint_hash?;
        Some(if self.affinity_seconds.is_some() { EndpointHash::Client } else { hash })
    }

    /// Whether it has destinations besides the cluster IP.
    #[must_use]
    pub fn externally_accessible(&self) -> bool {
        self.node_port != 0
            || !self.load_balancer_vips.is_empty()
            || !self.external_ips.is_empty()
            || self.hidden_external_ips
    }

    /// Whether some traffic may go to endpoints on any node.
    #[must_use]
    pub fn uses_cluster_endpoints(&self) -> bool {
        !self.internal_local || self.externally_accessible()
    }

    /// Whether some traffic must stay on this node.
    #[must_use]
    pub fn uses_local_endpoints(&self) -> bool {
        self.internal_local || (self.external_local && self.externally_accessible())
    }
}
