//! Renders the elements, set members and chains of one Service port.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use netfilter::nft::{Bytes, COMMENT_MAX, Element, Key, Name, Verdict};

use super::names::{
    Balance, EXTERNAL_LOCAL, FIREWALL_SOURCE_RANGES, NODE_PORT_LOCAL, PacketOrigin, Policy, REJECT, RefusedFor, SetId,
    SharedChain, Sticky, VipOrNodePort, localhost_reject, service_number, size_class,
};
use super::port_spec::PortSpec;
use super::ranges::merged;
use super::settings::RenderSettings;
use crate::maglev::{MaglevTable, SLOTS};
use crate::model::{EndpointHash, ServicePortName};

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
pub fn render(name: &ServicePortName, spec: &PortSpec, settings: &RenderSettings) -> Rendered {
    Writer::new(name, spec, settings, true).write(name, settings)
}

/// Renders only what the Service port shares with others.
#[must_use]
pub fn render_shared(name: &ServicePortName, spec: &PortSpec, settings: &RenderSettings) -> Rendered {
    Writer::new(name, spec, settings, false).write(name, settings)
}

/// Renders a Service port before and after a change; `None`: it does not exist then.
///
/// Slots that keep their endpoint are in neither.
#[must_use]
pub fn render_change(
    name: &ServicePortName,
    specs: [Option<&PortSpec>; 2],
    settings: &RenderSettings,
) -> [Option<Rendered>; 2] {
    let mut writers = specs.map(|spec| spec.map(|spec| Writer::new(name, spec, settings, true)));
    if let [Some(old), Some(new)] = &mut writers {
        Writer::leave_out_kept_slots(old, new);
    }
    writers.map(|writer| writer.map(|writer| writer.write(name, settings)))
}

struct Writer<'a> {
    spec: &'a PortSpec,
    /// The hash of the Service port, for session affinity.
    service: u32,
    comment: Name,
    /// Whether new connections are counted.
    counts: bool,
    service_cidrs: &'a [IpNet],
    /// Whether to render elements.
    elements: bool,
    /// The slots to render, by policy: all destinations share them.
    slots: BTreeMap<Policy, Vec<(u32, SocketAddr)>>,
    out: Rendered,
}

impl<'a> Writer<'a> {
    fn new(name: &ServicePortName, spec: &'a PortSpec, settings: &'a RenderSettings, elements: bool) -> Self {
        let service = if spec.affinity.is_some() { service_number(name) } else { 0 };
        let (slots, out) = (BTreeMap::new(), Rendered::default());
        let RenderSettings { counts_connections: counts, service_cidrs, .. } = settings;
        Self { spec, service, counts: *counts, service_cidrs, comment: comment(name), elements, slots, out }
    }

    fn leave_out_kept_slots(before: &mut Self, after: &mut Self) {
        let specs = [before.spec, after.spec];
        if specs.iter().any(|spec| spec.hash.is_none()) || !before.spec.differs_in_endpoints_only(after.spec) {
            return;
        }
        for policy in [Policy::Cluster, Policy::Local] {
            // Fewer endpoints have no slots.
            if specs.iter().any(|spec| spec.endpoints(policy).len() < 2) {
                continue;
            }
            let [old, new] = specs.map(|spec| MaglevTable::of(spec.endpoints(policy).iter().flatten()));
            let slots = (0_u32..).zip(old.iter().zip(new.iter()));
            let changed: Vec<_> = slots.filter(|(_, (old, new))| old != new).collect();
            before.slots.insert(policy, changed.iter().map(|(slot, (old, _))| (*slot, *old)).collect());
            after.slots.insert(policy, changed.iter().map(|(slot, (_, new))| (*slot, *new)).collect());
        }
    }

    fn write(mut self, name: &ServicePortName, settings: &RenderSettings) -> Rendered {
        let spec = self.spec;
        if let Some(ip) = spec.cluster_ip {
            self.cluster_ip(ip);
        }
        for ip in spec.vips.iter().chain(&spec.external_ips) {
            self.external(VipOrNodePort::Address, Some(*ip));
        }
        if spec.node_port != 0 {
            self.external(VipOrNodePort::NodePort, None);
            if settings.localhost_rejected.contains(&name.protocol) {
                let key = self.key(VipOrNodePort::NodePort, None).build();
                let reject = Verdict::Goto(localhost_reject(name.protocol).into());
                self.push(SetId::LocalhostNodePorts, Element::verdict(key, reject));
            }
        }
        if !spec.ranges.is_empty() && !spec.vips.is_empty() {
            self.out.chains.extend(PacketOrigin::ALL.map(SharedChain::SourceRanges));
        }
        if self.elements {
            self.firewall(settings.node_ip);
        }
        let hairpin = spec.here.iter().flat_map(|endpoint| {
            let ips = Key::default().address(endpoint.ip()).address(endpoint.ip());
            let connection = ips.clone().protocol(spec.protocol).port(endpoint.port());
            [(SetId::Hairpin, connection.build()), (SetId::HairpinIps, ips.build())]
        });
        self.out.members.extend(hairpin);
        self.out
    }

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
        let sets = [Some(SetId::ClusterIps), self.counts.then_some(SetId::RefusedPorts)];
        self.out.members.extend(sets.into_iter().flatten().map(|set| (set, Key::default().address(ip).build())));
        self.may_refuse(ip);
        let key = self.key(VipOrNodePort::Address, Some(ip));
        let policy = if self.spec.internal_local { Policy::Local } else { Policy::Cluster };
        match self.balance(VipOrNodePort::Address, Some(ip), policy) {
            Some(balance) if self.spec.has_internal() => {
                let chain = self.needs(SharedChain::Balance(balance));
                self.dispatch(VipOrNodePort::Address, key, chain);
            }
            _ => self.refuse(VipOrNodePort::Address, Some(ip), key),
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
            self.refuse(place, ip, key);
        }
    }

    /// Refuses traffic without usable endpoints: rejected without any endpoint, dropped without local ones.
    fn refuse(&mut self, place: VipOrNodePort, ip: Option<IpAddr>, key: Key) {
        ip.into_iter().for_each(|ip| self.may_refuse(ip));
        let (verdict, reason) = if self.spec.any {
            (Verdict::Drop, RefusedFor::NoLocalEndpoints)
        } else {
            (Verdict::Goto(REJECT.into()), RefusedFor::NoEndpoints)
        };
        let key = key.build();
        self.push(SetId::NoEndpoint(place), Element::verdict(key.clone(), verdict));
        if self.counts {
            self.push(SetId::Refused(place, reason), Element::member(key));
        }
    }

    /// Has packets to an address checked. Those to ServiceCIDRs are in any case.
    fn may_refuse(&mut self, ip: IpAddr) {
        if !self.service_cidrs.iter().any(|net| net.contains(&ip)) {
            self.out.members.push((SetId::RefusableIps, Key::default().address(ip).build()));
        }
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
            return Some(Balance { place, policy, count: 1, sticky: None, hash: None });
        }
        if let Some(hash) = spec.hash {
            return self.hashed(place, key, policy, hash);
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
        (count > 0).then_some(Balance { place, policy, count: most, sticky, hash: None })
    }

    /// Renders the slots of a policy's endpoints for one destination.
    fn hashed(&mut self, place: VipOrNodePort, key: Key, policy: Policy, hash: EndpointHash) -> Option<Balance> {
        let endpoints = self.spec.endpoints(policy);
        if endpoints.is_empty() {
            return None;
        }
        if self.elements {
            let all = || (0_u32..).zip(MaglevTable::of(endpoints.iter().flatten()).iter()).collect();
            let slots = self.slots.entry(policy).or_insert_with(all).iter().map(|(slot, endpoint)| {
                let value = Key::default().socket(*endpoint).build();
                (SetId::Endpoints(place, policy), Element::data(key.clone().number(*slot).build(), value))
            });
            self.out.elements.extend(slots);
        }
        Some(Balance { place, policy, count: SLOTS, sticky: None, hash: Some(hash) })
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
            if self.counts {
                self.push(SetId::RefusedSources, Element::member(key.clone().build()));
            }
            self.push(SetId::FirewallIps, Element::verdict(key.build(), check));
        }
    }
}
