//! The expected table of nftables mode, for comparison by inspection commands.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use netfilter::IpFamily;
use netfilter::nft::ruleset;
use netfilter::nft::{Bytes, Chain, ChainType, Element, Hook, Key, Name, Rule, Set};

use super::chain_counts::ChainRefCounts;
use super::names::{self, PacketOrigin, Policy, SetId, SharedChain, TABLE_COMMENT, VipOrNodePort};
use super::numbers::NumberedEndpoints;
use super::owners::AddressOwners;
use super::plan::SetDefinitions;
use super::port_spec::PortSpec;
use super::programmed::{ProgrammedPort, SharedRefCounts};
use super::read::numbers_at;
use super::render::render;
use super::settings::{NftablesSettings, RenderSettings};
use super::sync::programmed;
use super::{rules, structure};
use crate::model::config::ServiceMetrics;
use crate::model::{Config, Destination, ServicePortName, Snapshot};

/// An expected chain.
#[derive(Clone, Debug)]
pub struct ExpectedChain {
    /// The chain itself.
    pub chain: Chain,
    /// Its rules, in order.
    pub rules: Vec<Rule>,
    /// The Service port that alone uses the chain, if any; most are shared.
    pub owner: Option<ServicePortName>,
}

/// An expected element, and the first Service port that needs it.
pub type ExpectedElement = (Element, Option<ServicePortName>);

/// An expected set or map.
#[derive(Clone, Debug)]
pub struct ExpectedSet {
    /// Its definition.
    pub set: Arc<Set>,
    /// Its elements by key. Clients remembered by rules are not compared.
    pub elements: HashMap<Bytes, ExpectedElement>,
}

/// The expected table of a family.
#[derive(Clone, Debug)]
pub struct Expected {
    /// The table's comment.
    pub comment: &'static str,
    /// Its chains.
    pub chains: BTreeMap<Name, ExpectedChain>,
    /// Its sets and maps.
    pub sets: BTreeMap<Name, ExpectedSet>,
}

impl Expected {
    /// The table as the kernel would list it.
    #[must_use]
    pub fn as_held(&self) -> ruleset::Table {
        let chains = self.chains.iter().map(|(name, expected)| {
            let rules = expected.rules.iter().map(|rule| ruleset::Rule {
                handle: 0,
                expressions: rule.expressions(),
                comment: rule.comment.clone(),
                counters: None,
            });
            let Chain { base, comment, .. } = expected.chain.clone();
            (name.clone(), ruleset::Chain { handle: 0, base, comment, rules: Some(rules.collect()) })
        });
        let sets = self.sets.iter().map(|(name, expected)| {
            let elements = expected.elements.values().map(|(element, _)| ruleset::Element {
                end: element.end.clone(),
                value: element.value.clone(),
                comment: element.comment.clone(),
                ..ruleset::Element::member(element.key.clone())
            });
            let elements = ruleset::Elements::complete(elements.collect());
            (name.clone(), ruleset::Set { elements, ..ruleset::Set::of(&expected.set) })
        });
        let comment = Some(self.comment.into());
        ruleset::Table { handle: 0, dormant: false, comment, chains: chains.collect(), sets: sets.collect() }
    }
}

/// Whether a table belongs to kube-proxy, ours or upstream's: both have these base chains.
#[must_use]
pub fn is_kube_proxy(table: &ruleset::Table, id: &ruleset::TableId) -> bool {
    let has = |name, kind, hook| {
        let base = table.chains.get(name).and_then(|chain| chain.base.as_ref());
        base.is_some_and(|base| base.kind == kind && base.hook == hook)
    };
    matches!(id.scope, ruleset::Scope::Family(_))
        && &*id.name == names::TABLE
        && has("nat-prerouting", ChainType::Nat, Hook::Prerouting)
        && has("filter-forward", ChainType::Filter, Hook::Forward)
}

/// Whether a kube-proxy has a chain of that name even without references.
#[must_use]
pub fn is_always_there(chain: &str) -> bool {
    let is_balance = |balance| SharedChain::Balance(balance).to_string() == chain;
    names::ALWAYS.into_iter().any(is_balance) || names::is_localhost_reject(chain)
}

/// Whether a base chain exists only while some Service port has source ranges.
#[must_use]
pub fn checks_source_ranges(chain: &str) -> bool {
    PacketOrigin::ALL.into_iter().any(|origin| SharedChain::SourceRanges(origin).to_string() == chain)
}

/// Whether only this layout has a set of that name, not upstream's.
#[must_use]
pub fn is_own_set(name: &str) -> bool {
    let own = |id: &SetId| {
        id.only_counts()
            || matches!(
                id,
                SetId::FirewallAllowed
                    | SetId::RefusableIps
                    | SetId::HairpinIps
                    | SetId::ShortCircuit(_)
                    | SetId::LocalPolicy(_)
                    | SetId::LocalhostNodePorts
                    | SetId::OnlyEndpoint(..)
                    | SetId::Endpoints(..)
                    | SetId::Choices(..)
            )
    };
    SetId::ALL.iter().any(|id| own(id) && id.name() == name)
}

/// Looks up the endpoint that an endpoint map has for a key.
pub type EndpointLookup<'a> = &'a dyn Fn(&str, &[u8]) -> Option<SocketAddr>;

/// Renders the expected table.
///
/// An endpoint keeps the number that it has, according to `endpoints`, at most of the Service port's addresses. `hashes`: whether
/// the kernel can choose endpoints by a hash (see [`can_hash`](super::can_hash)).
#[must_use]
pub fn expected(
    family: IpFamily,
    config: &Config,
    snapshot: &Snapshot<'_>,
    addresses: &[IpAddr],
    endpoints: EndpointLookup<'_>,
    hashes: bool,
) -> Expected {
    let settings = NftablesSettings::of(family, config, snapshot, || addresses.to_vec());
    let settings = NftablesSettings { hashes, ..settings };
    let mut owners = AddressOwners::default();
    for (name, port) in snapshot.ports.iter() {
        owners.replace(name, &[], &port.destinations().collect::<Vec<Destination>>(), |_| ());
    }
    let mut wanted = ExpectedElements::of(family, config.service_metrics);
    for ip in settings.node_port_ips.iter().flatten() {
        wanted.add(SetId::NodePortIps, Element::member(Key::default().address(*ip).build()), None);
    }
    for (name, _) in snapshot.ports.iter() {
        let current = |spec: &PortSpec, policy, wanted: &[SocketAddr]| majority_vote(endpoints, spec, policy, wanted);
        if let Some(port) = programmed(name, snapshot, &owners, settings.hashes, current) {
            wanted.add_port(name, &port, &settings.rendering());
        }
    }
    let ExpectedElements { mut sets, mut chains, owners, .. } = wanted;
    let (shared, affinity_sets) = chains.take_new();
    for set in affinity_sets.map(|number| names::affinity_set(family, number)) {
        sets.insert(set.name.clone(), ExpectedSet { set, elements: HashMap::new() });
    }
    let written = structure::chains(&settings, &shared).into_iter();
    let chains = written.map(|(chain, rules)| {
        let owner = owners.get(&chain.name).cloned();
        (chain.name.clone(), ExpectedChain { chain, rules, owner })
    });
    Expected { comment: TABLE_COMMENT, chains: chains.collect(), sets }
}

/// Collects the expected elements and chains of Service ports.
struct ExpectedElements {
    sets: BTreeMap<Name, ExpectedSet>,
    chains: ChainRefCounts,
    owners: HashMap<Name, ServicePortName>,
}

impl ExpectedElements {
    fn of(family: IpFamily, metrics: ServiceMetrics) -> Self {
        let sets = SetDefinitions::of(family, metrics);
        let sets =
            sets.iter().map(|(_, set)| (set.name.clone(), ExpectedSet { set: set.clone(), elements: HashMap::new() }));
        Self { sets: sets.collect(), chains: SharedRefCounts::new().chains, owners: HashMap::new() }
    }

    fn add(&mut self, id: SetId, element: Element, owner: Option<&ServicePortName>) {
        if let Some(set) = self.sets.get_mut(id.name()) {
            set.elements.entry(element.key.clone()).or_insert_with(|| (element, owner.cloned()));
        }
    }

    fn add_port(&mut self, name: &ServicePortName, port: &ProgrammedPort, settings: &RenderSettings) {
        let rendered = render(name, &port.spec, settings);
        for (set, element) in rendered.elements {
            self.add(set, element, Some(name));
        }
        for (set, key) in rendered.members {
            self.add(set, Element::member(key), Some(name));
        }
        for chain in rendered.chains {
            self.chains.add(chain);
            let own = rules::needs(chain).0.into_iter().filter(has_single_owner);
            self.owners.extend(own.map(|chain| (chain.to_name(), name.clone())));
        }
    }
}

/// Whether only one Service port can use the chain.
fn has_single_owner(chain: &SharedChain) -> bool {
    match chain {
        SharedChain::Stick { .. } => true,
        SharedChain::SourceRanges(_) => false,
        SharedChain::Balance(balance) | SharedChain::External(balance) => balance.sticky.is_some(),
    }
}

/// The numbers of a Service port's endpoints, by majority vote over its addresses.
///
/// One altered address must not be taken for the correct one. Numbers of unknown endpoints do not vote.
fn majority_vote(
    endpoints: EndpointLookup<'_>,
    spec: &PortSpec,
    policy: Policy,
    wanted: &[SocketAddr],
) -> NumberedEndpoints {
    let mut votes: Vec<BTreeMap<SocketAddr, usize>> = Vec::new();
    for (place, of, ip, port) in spec.endpoint_map_keys().filter(|(_, of, ..)| *of == policy) {
        let at = |set: SetId, key: &[u8]| endpoints(set.name(), key);
        let numbered = numbers_at(at, spec.protocol, (place, of), ip, port);
        votes.resize(votes.len().max(numbered.len()), BTreeMap::new());
        for (votes, endpoint) in votes.iter_mut().zip(numbered.iter()) {
            if let Some(endpoint) = endpoint.filter(|endpoint| wanted.contains(endpoint)) {
                *votes.entry(endpoint).or_default() += 1;
            }
        }
    }
    // Ties go to the lowest address.
    let most = |votes: BTreeMap<SocketAddr, usize>| votes.into_iter().rev().max_by_key(|(_, count)| *count);
    votes.into_iter().map(|votes| most(votes).map(|(endpoint, _)| endpoint)).collect()
}

/// The kind of destination that the keys of a set begin with, and its length in bytes.
///
/// `None` for sets with other keys.
#[must_use]
pub fn place_of(family: IpFamily, set: &str) -> Option<(VipOrNodePort, usize)> {
    let id = SetId::ALL.into_iter().find(|id| id.name() == set)?;
    let place = match id {
        SetId::ClusterIps
        | SetId::NodePortIps
        | SetId::RefusableIps
        | SetId::Hairpin
        | SetId::HairpinIps
        | SetId::RefusedPorts => return None,
        SetId::FirewallIps | SetId::FirewallAllowed | SetId::RefusedSources => VipOrNodePort::Address,
        SetId::LocalhostNodePorts => VipOrNodePort::NodePort,
        SetId::Service(place)
        | SetId::ShortCircuit(place)
        | SetId::LocalPolicy(place)
        | SetId::NoEndpoint(place)
        | SetId::OnlyEndpoint(place, _)
        | SetId::Endpoints(place, _)
        | SetId::Choices(place, _)
        | SetId::Connections(place)
        | SetId::Refused(place, _) => place,
    };
    Some((place, Set::length(&names::key(family, place))))
}
