//! What a diagnosis finds.
//!
//! The known causes, and what `diagnose` says of them.

use serde::Serialize;

/// A known cause of connections that fail. The first ones explain the later ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// No rules of a kube-proxy on the node, and none runs.
    NoProxy,
    /// A kube-proxy runs on the node and has written no rules.
    NoRules,
    /// Rules in the flavour of iptables that is not in use, or in both.
    WrongFlavour,
    /// Two proxies, or leftovers of another mode.
    TwoProxies,
    /// The proxy cannot change its rules.
    SyncFails,
    /// The proxy cannot read objects from the API server.
    WatchFails,
    /// No such Service.
    NoSuchService,
    /// The Service exists, and has no address that a proxy serves.
    NoVirtualIp,
    /// A Service has the address, and another port.
    NoSuchPort,
    /// It has no endpoints.
    NoEndpoints,
    /// It has endpoints, and none is ready.
    EndpointsNotReady,
    /// All its real servers are draining, in IPVS mode.
    DrainingOnly,
    /// Policy Local, and no endpoint on this node.
    NoLocalEndpoints,
    /// The load balancer's source ranges refuse the client.
    SourceRangeRefuses,
    /// Rules are not as they should be.
    RulesAltered,
    /// A rule of another program refuses the packets.
    RefusedByOthers,
    /// A rule of another program refuses the replies.
    ReplyRefused,
    /// A rule of another program sends the packets to another destination.
    DivertedByOthers,
    /// A rule of another program keeps packets from being masqueraded, or gives them another source.
    MasqueradeSkipped,
    /// Nothing translates packets to that address.
    NotTranslated,
    /// The kernel sends packets for an endpoint nowhere: no route, or one that refuses.
    NoRoute,
    /// The interface that an endpoint is behind is down.
    LinkDown,
    /// An endpoint, or the next hop to it, does not answer the kernel's neighbour discovery.
    NeighbourUnreachable,
    /// No process listens at an endpoint's address and port.
    NotListening,
    /// Packets from 127.0.0.0/8 may not leave the node.
    RouteLocalnetOff,
    /// The proxy does not answer at a health check node port.
    HealthCheckUnserved,
    /// UDP flows that go where endpoints were before.
    StaleUdpFlow,
    /// The conntrack table is full, or nearly.
    ConntrackFull,
    /// The node does not forward packets.
    IpForwardOff,
    /// The configured network of the cluster's pods does not contain a pod of this node.
    WrongClusterCidr,
    /// IPVS tells conntrack nothing, in IPVS mode.
    IpvsConntrackOff,
    /// Packets within a bridge do not meet the rules.
    BridgeNetfilterOff,
    /// Replies may be thrown away as coming in on the wrong interface.
    ReversePathFilter,
    /// A tunnel's MTU leaves no room for its header.
    Mtu,
    /// A pod may not reach itself through its Service.
    Hairpin,
    /// A rule that is not understood may decide.
    NotUnderstood,
}

impl Cause {
    /// As in the JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NoProxy => "no-proxy",
            Self::NoRules => "no-rules",
            Self::WrongFlavour => "wrong-flavour",
            Self::TwoProxies => "two-proxies",
            Self::SyncFails => "sync-fails",
            Self::WatchFails => "watch-fails",
            Self::NoSuchService => "no-such-service",
            Self::NoVirtualIp => "no-virtual-ip",
            Self::NoSuchPort => "no-such-port",
            Self::NoEndpoints => "no-endpoints",
            Self::EndpointsNotReady => "endpoints-not-ready",
            Self::DrainingOnly => "draining-only",
            Self::NoLocalEndpoints => "no-local-endpoints",
            Self::SourceRangeRefuses => "source-range-refuses",
            Self::RulesAltered => "rules-altered",
            Self::RefusedByOthers => "refused-by-others",
            Self::ReplyRefused => "reply-refused",
            Self::DivertedByOthers => "diverted-by-others",
            Self::MasqueradeSkipped => "masquerade-skipped",
            Self::NotTranslated => "not-translated",
            Self::NoRoute => "no-route",
            Self::LinkDown => "link-down",
            Self::NeighbourUnreachable => "neighbour-unreachable",
            Self::NotListening => "not-listening",
            Self::RouteLocalnetOff => "route-localnet-off",
            Self::HealthCheckUnserved => "health-check-unserved",
            Self::StaleUdpFlow => "stale-udp-flow",
            Self::ConntrackFull => "conntrack-full",
            Self::IpForwardOff => "ip-forward-off",
            Self::WrongClusterCidr => "wrong-cluster-cidr",
            Self::IpvsConntrackOff => "ipvs-conntrack-off",
            Self::BridgeNetfilterOff => "bridge-netfilter-off",
            Self::ReversePathFilter => "reverse-path-filter",
            Self::Mtu => "mtu",
            Self::Hairpin => "hairpin",
            Self::NotUnderstood => "not-understood",
        }
    }
}

/// Something found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Which cause.
    pub cause: Cause,
    /// Whether it is certain, or only worth a look.
    pub certain: bool,
    /// What is so.
    pub what: String,
    /// What to do.
    pub next: String,
    /// What shows it: a rule, in most cases.
    pub evidence: Option<String>,
}

impl Finding {
    /// A cause that is certain.
    pub fn certain(cause: Cause, what: impl Into<String>, next: impl Into<String>) -> Self {
        Self { cause, certain: true, what: what.into(), next: next.into(), evidence: None }
    }

    /// The same with what shows it.
    pub fn shown_by(self, evidence: impl Into<String>) -> Self {
        Self { evidence: Some(evidence.into()), ..self }
    }

    /// One that is worth a look.
    pub fn suspect(cause: Cause, what: impl Into<String>, next: impl Into<String>) -> Self {
        Self { certain: false, ..Self::certain(cause, what, next) }
    }
}
