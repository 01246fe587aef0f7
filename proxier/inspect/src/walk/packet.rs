//! The input of a trace: a connection's first packet, the node, and the `recent` lists.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::rules::AddressKind;
use netfilter::ipset::SetQuery;
use netfilter::route::{PolicySelectors, RouteDecision, RouteQuery};
use netfilter::xfrm::XfrmPolicy;
use proxier::ipvs::ObservedState;
use proxier::model::Protocol;

/// Where a packet enters the node's network stack, which decides the hooks it passes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Sent by a process in the host's network namespace.
    Host,
    /// Received on this interface, from a pod on this node or from another machine.
    Interface(String),
}

/// The packet's conntrack state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConnState {
    /// The first packet of a connection: the only one the nat table sees.
    #[default]
    New,
    /// A later packet of a known connection.
    Established,
    /// The same of a connection whose destination this node translated.
    EstablishedDnat,
    /// A new connection that belongs to a known one.
    Related,
    /// A packet that conntrack cannot assign to a connection.
    Invalid,
}

/// One packet as it enters the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The sender.
    pub source: SocketAddr,
    /// The original destination.
    pub destination: SocketAddr,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// Where it enters the network stack.
    pub origin: Origin,
    /// Its conntrack state.
    pub state: ConnState,
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} -> {}", self.protocol.name(), self.source, self.destination)?;
        match &self.origin {
            Origin::Host => write!(f, " from a host process"),
            Origin::Interface(name) => write!(f, " in on {name}"),
        }
    }
}

/// The state of the node beside its rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// The addresses of its interfaces, the one it masquerades to first; loopback is always local and need not be named.
    pub addresses: Vec<IpAddr>,
    /// Known routes: networks and outgoing interfaces. The longest prefix wins.
    pub routes: Vec<(IpNet, String)>,
    /// Results of route lookups in the kernel, or why a lookup failed; `routes` decides the others.
    pub route_answers: BTreeMap<RouteQuery, Result<RouteDecision, String>>,
    /// What policy routing rules choose by; if there are any, they refer to tables that `routes` does not cover.
    pub policy: PolicySelectors,
    /// The indexes of its interfaces, where known.
    pub interfaces: BTreeMap<String, u32>,
    /// Its virtual servers and sets that were read.
    pub held: ObservedState,
    /// Results of set lookups, or why a lookup failed.
    pub answers: BTreeMap<SetQuery, Result<bool, String>>,
    /// Bridges whose bridged packets pass iptables (`bridge-nf-call-iptables`).
    pub bridged: BTreeSet<String>,
    /// The groups of its interfaces, where known.
    pub groups: BTreeMap<String, u32>,
    /// Open sockets: protocol number and local address, which may be unspecified. `None`: unknown.
    pub sockets: Option<BTreeSet<(u8, SocketAddr)>>,
    /// The queues with a listening program; `None`: unknown.
    pub queues: Option<BTreeSet<u16>>,
    /// Interfaces that send nothing, with the reason.
    pub down: BTreeMap<String, &'static str>,
    /// Interfaces that take no packets, with the reason.
    pub closed: BTreeMap<String, &'static str>,
    /// Its IPsec policies.
    pub policies: Vec<XfrmPolicy>,
    /// Why IPsec policies could not be read.
    pub policies_unread: Option<String>,
    /// Chains that packets meet but a walk does not follow.
    pub unwalked: Vec<UnfollowedRules>,
    /// How much of the packet's source is that of a known client.
    pub client: KnownClient,
}

/// What of a packet's source is known, for rules that choose by a hash of it. The rest stands for any client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum KnownClient {
    /// Nothing: the address and port are examples.
    #[default]
    Unknown,
    /// The address.
    Address,
    /// The address and the port.
    AddressAndPort,
}

/// Rules of a chain that a walk does not follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnfollowedRules {
    /// Table and chain, as in "netdev guard ingress".
    pub chain: String,
    /// The interfaces whose packets meet them; empty: all.
    pub interfaces: BTreeSet<String>,
}

impl Node {
    /// Whether the kernel delivers packets for this address to the node itself.
    #[must_use]
    pub fn is_local(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.addresses.contains(&address)
    }

    /// The type of an address.
    #[must_use]
    pub fn kind(&self, address: IpAddr) -> AddressKind {
        let last = |net: &IpNet| !net.contains(&address) || net.broadcast() == address;
        let of_link = |net: &&IpNet| net.prefix_len() > 0 && net.prefix_len() < 31 && net.contains(&address);
        let own = |net: &&IpNet| self.addresses.iter().any(|ip| net.contains(ip));
        let nets = || self.routes.iter().map(|(net, _)| net).filter(of_link).filter(own);
        let broadcast = match address {
            IpAddr::V4(ip) => ip.is_broadcast() || (nets().next().is_some() && nets().all(last)),
            IpAddr::V6(_) => false,
        };
        match address {
            _ if self.is_local(address) => AddressKind::Local,
            _ if broadcast => AddressKind::Broadcast,
            _ if address.is_multicast() => AddressKind::Multicast,
            _ => AddressKind::Unicast,
        }
    }

    /// The outgoing interface of packets to an address, by `routes`.
    #[must_use]
    pub fn out_interface(&self, to: IpAddr) -> Option<&str> {
        let fitting = self.routes.iter().filter(|(net, _)| net.contains(&to));
        fitting.max_by_key(|(net, _)| net.prefix_len()).map(|(_, name)| name.as_str())
    }

    /// The node's address on an interface, in the family of `like`, by `routes`.
    #[must_use]
    pub fn address_on(&self, interface: &str, like: IpAddr) -> Option<IpAddr> {
        let nets = || self.routes.iter().filter(|(net, name)| name == interface && net.prefix_len() > 0);
        let there = |address: &IpAddr| nets().any(|(net, _)| net.contains(address));
        self.addresses.iter().copied().filter(|address| address.is_ipv4() == like.is_ipv4()).find(there)
    }

    /// The source address of masqueraded packets, in the family of `like`.
    #[must_use]
    pub fn masquerade_address(&self, like: IpAddr) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|a| a.is_ipv4() == like.is_ipv4())
    }
}

/// The `recent` lists with the sender, and the seconds since each last saw it.
pub type RecentLists = BTreeMap<String, u32>;
