//! Renders the elements, set members and chains of one Service port.

use std::net::IpAddr;

use netfilter::nft::{Bytes, COMMENT_MAX, Element, Key, Name, Verdict};

use super::names::{
    Balance, EXTERNAL_LOCAL, FIREWALL_SOURCE_RANGES, NODE_PORT_LOCAL, Policy, REJECT, SetId, SharedChain, Sticky,
    VipOrNodePort, localhost_reject, service_number, size_class,
};
use super::port_spec::PortSpec;
use super::ranges::merged;
use super::settings::RenderSettings;
use crate::model::ServicePortName;

/// The rendered objects of a Service port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rendered {
    /// Its own elements, referenced ones first.
    pub elements: Vec<(SetId, Element)>,
    /// Set members that other Service ports may share.
    pub members: Vec<(SetId, Bytes)>,
    /// Chains that its elements refer to.
    pub chains: Vec<SharedChain>,
}

/// The comment on a Service port's elements: `namespace/name:port`.
#[must_use]
pub fn comment(name: &ServicePortName) -> Name {
    let text = name.to_string();
    if text.len() <= COMMENT_MAX {
        return text.into();
    }
    // nft refuses longer comments, and with them all rules of the real kube-proxy; names are ASCII.
    let end = COMMENT_MAX - "...".len();
    format!("{}...", text.get(..end).unwrap_or_default()).into()
}

/// Renders a Service port.
#[must_use]
pub fn render(name: &ServicePortName, spec: &PortSpec, settings: RenderSettings) -> Rendered {
    write(name, spec, settings, true)
}

/// Renders only what the Service port shares with others.
#[must_use]
pub fn render_shared(name: &ServicePortName, spec: &PortSpec, settings: RenderSettings) -> Rendered {
    write(name, spec, settings, false)
}

fn write(name: &ServicePortName, spec: &PortSpec, settings: RenderSettings, elements: bool) -> Rendered {
    let service = if spec.affinity.is_some() { service_number(name) } else { 0 };
    let counts = settings.counts_connections;
    let mut writer = Writer { spec, service, counts, comment: comment(name), elements, out: Rendered::default() };
    if let Some(ip) = spec.cluster_ip {
        writer.cluster_ip(ip);
    }
    for ip in spec.vips.iter().chain(&spec.external_ips) {
        writer.external(VipOrNodePort::Address, Some(*ip));
    }
    if spec.node_port != 0 {
        writer.external(VipOrNodePort::NodePort, None);
        if settings.localhost_rejected.contains(&name.protocol) {
            let key = writer.key(VipOrNodePort::NodePort, None).build();
            let reject = Verdict::Goto(localhost_reject(name.protocol).into());
            writer.push(SetId::LocalhostNodePorts, Element::verdict(key, reject));
        }
    }
    if elements {
        writer.firewall(settings.node_ip);
    }
    let hairpin = spec.here.iter().map(|endpoint| {
        let ip = endpoint.ip();
        (SetId::Hairpin, Key::default().address(ip).address(ip).protocol(spec.protocol).port(endpoint.port()).build())
    });
    writer.out.members.extend(hairpin);
    writer.out
}

struct Writer<'a> {
    spec: &'a PortSpec,
    /// The hash of the Service port, for session affinity.
    service: u32,
    comment: Name,
    /// Whether new connections are counted.
    counts: bool,
    /// Whether to render elements.
    elements: bool,
    out: Rendered,
}

impl Writer<'_> {
    fn key(&self, place: VipOrNodePort, ip: Option<IpAddr>) -> Key {
        let port = if place == VipOrNodePort::NodePort { self.spec.node_port } else { self.spec.port };
        let key = ip.into_iter().fold(Key::default(), Key::address);
        key.protocol(self.spec.protocol).port(port)
    }

    fn push(&mut self, set: SetId, element: Element) {
        if self.elements {
            self.out.elements.push((set, Element { comment: Some(self.comment.clone()), ..element }));
        }
    }

    /// Sends new connections to a chain, and counts them.
    fn dispatch(&mut self, place: VipOrNodePort, key: Key, chain: Name) {
        let key = key.build();
        if self.counts {
            self.push(SetId::Connections(place), Element::member(key.clone()));
        }
        self.push(SetId::Service(place), Element::verdict(key, Verdict::Goto(chain)));
    }

    fn cluster_ip(&mut self, ip: IpAddr) {
        self.out.members.push((SetId::ClusterIps, Key::default().address(ip).build()));
        let key = self.key(VipOrNodePort::Address, Some(ip));
        let policy = if self.spec.internal_local { Policy::Local } else { Policy::Cluster };
        match self.balance(VipOrNodePort::Address, Some(ip), policy) {
            Some(balance) if self.spec.has_internal() => {
                let chain = self.needs(SharedChain::Balance(balance));
                self.dispatch(VipOrNodePort::Address, key, chain);
            }
            _ => self.refuse(VipOrNodePort::Address, key),
        }
    }

    fn external(&mut self, place: VipOrNodePort, ip: Option<IpAddr>) {
        let key = self.key(place, ip);
        let goto = |chain: Name| Element::verdict(key.clone().build(), Verdict::Goto(chain));
        if self.spec.any && self.spec.external_local {
            for (policy, set) in
                [(Policy::Cluster, SetId::ShortCircuit(place)), (Policy::Local, SetId::LocalPolicy(place))]
            {
                if let Some(balance) = self.balance(place, ip, policy) {
                    let chain = self.needs(SharedChain::Balance(balance));
                    self.push(set, goto(chain));
                }
            }
            let chain = if place == VipOrNodePort::NodePort { NODE_PORT_LOCAL } else { EXTERNAL_LOCAL };
            self.dispatch(place, key.clone(), chain.into());
        } else if self.spec.any
            && let Some(balance) = self.balance(place, ip, Policy::Cluster)
        {
            let chain = self.needs(SharedChain::External(balance));
            self.dispatch(place, key.clone(), chain);
        }
        if !self.spec.has_external() {
            self.refuse(place, key);
        }
    }

    /// Refuses traffic without usable endpoints: rejected without any endpoint, dropped without local ones.
    fn refuse(&mut self, place: VipOrNodePort, key: Key) {
        let verdict = if self.spec.any { Verdict::Drop } else { Verdict::Goto(REJECT.into()) };
        self.push(SetId::NoEndpoint(place), Element::verdict(key.build(), verdict));
    }

    fn needs(&mut self, chain: SharedChain) -> Name {
        self.out.chains.push(chain);
        chain.to_name()
    }

    /// Renders the endpoints of a policy for one destination; returns how to choose among them, if there are any.
    fn balance(&mut self, place: VipOrNodePort, ip: Option<IpAddr>, policy: Policy) -> Option<Balance> {
        let (spec, service, key, elements) = (self.spec, self.service, self.key(place, ip), self.elements);
        let numbered = spec.endpoints(policy);
        if spec.affinity.is_none()
            && let [only] = numbered.iter().flatten().collect::<Vec<_>>()[..]
        {
            if elements {
                let value = Key::default().socket(only).build();
                let element = Element::data(key.build(), value);
                self.out.elements.push((SetId::OnlyEndpoint(place, policy), element));
            }
            return Some(Balance { place, policy, count: 1, sticky: None });
        }
        let numbers = || (0_u32..).zip(numbered.iter()).filter_map(|(number, endpoint)| Some((number, endpoint?)));
        let rendered = || numbers().filter(|_| elements);
        let endpoints = rendered().map(|(number, endpoint)| {
            let value = Key::default().socket(endpoint).build();
            (SetId::Endpoints(place, policy), Element::data(key.clone().number(number).build(), value))
        });
        self.out.elements.extend(endpoints);
        let sticky = spec.affinity.map(|seconds| {
            let choices = (0_u32..).zip(rendered()).map(|(choice, (number, _))| {
                let chain = SharedChain::Stick { place, policy, number, seconds, service };
                let element = Element::verdict(key.clone().number(choice).build(), Verdict::Goto(chain.to_name()));
                (SetId::Choices(place, policy), element)
            });
            self.out.elements.extend(choices);
            Sticky { numbers: u32::try_from(numbered.len()).unwrap_or(u32::MAX), seconds, service }
        });
        let count = u32::try_from(numbers().count()).unwrap_or(u32::MAX);
        let most = if sticky.is_some() { count } else { *size_class(count).end() };
        (count > 0).then_some(Balance { place, policy, count: most, sticky })
    }

    /// Renders the source ranges of load balancer addresses.
    fn firewall(&mut self, node_ip: IpAddr) {
        let spec = self.spec;
        if spec.ranges.is_empty() {
            return;
        }
        let mut ranges = spec.ranges.to_vec();
        // A VIP is often a local address too: this node's own packets to it then have it as source.
        if ranges.iter().any(|range| range.contains(&node_ip)) {
            ranges.extend(spec.vips.iter().map(|vip| ipnet::IpNet::from(*vip)));
        }
        let ranges = merged(&ranges);
        for vip in &spec.vips {
            let key = self.key(VipOrNodePort::Address, Some(*vip));
            let allowed = ranges.iter().map(|(first, last)| Element {
                end: Some(key.clone().address(*last).build()),
                ..Element::member(key.clone().address(*first).build())
            });
            self.out.elements.extend(allowed.map(|element| (SetId::FirewallAllowed, element)));
            let check = Verdict::Goto(FIREWALL_SOURCE_RANGES.into());
            self.push(SetId::FirewallIps, Element::verdict(key.build(), check));
        }
    }
}
