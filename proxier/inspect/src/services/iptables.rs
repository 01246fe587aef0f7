//! Reads Service ports from the rules of iptables mode, ours and upstream's.
//!
//! The result is a [`ServicePortView`] for each Service port that a dispatch rule matches. Chains are recognized by
//! structure and Service ports by the hash in their chains' names: large clusters omit the comments with the names.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use netfilter::IpFamily;

use super::{Address, AddressKind, AddressVerdict, EndpointView, KernelObject, Policy, ServicePortView};
use crate::rules::{Chain, Counters, Meaning, RecentAction, RecentMatch, Rule, Ruleset, Target, Test};
use proxier::iptables::names::{self, Namer};
use proxier::model::{Protocol, ServicePortName};

/// The dispatch chains, by table: see [`dispatch_of`].
pub const DISPATCH: [(&str, &str); 6] = [
    ("nat", "KUBE-SERVICES"),
    ("nat", "KUBE-NODEPORTS"),
    ("filter", "KUBE-SERVICES"),
    ("filter", "KUBE-EXTERNAL-SERVICES"),
    ("filter", "KUBE-NODEPORTS"),
    ("filter", "KUBE-PROXY-FIREWALL"),
];

/// Endings of rule comments, with the kind of address that they imply.
const ENDINGS: [(&str, Option<AddressKind>); 7] = [
    (" cluster IP", Some(AddressKind::ClusterIp)),
    (" external IP", Some(AddressKind::ExternalIp)),
    (" loadbalancer IP", Some(AddressKind::LoadBalancer)),
    (" health check node port", Some(AddressKind::HealthCheckNodePort)),
    (" has no endpoints", None),
    (" has no local endpoints", None),
    (" traffic not accepted by ", None),
];

/// Selects Service ports by name, where known, and key.
pub type ServicePortFilter<'a> = &'a dyn Fn(Option<&ServicePortName>, &str) -> bool;

/// A rule of a dispatch chain.
#[derive(Debug)]
pub struct DispatchRule {
    table: &'static str,
    chain: &'static str,
    /// The Service port's name, where a comment gives it.
    name: Option<ServicePortName>,
    /// The hash or chain that identifies the Service port.
    key: String,
    kind: AddressKind,
    ip: Option<IpAddr>,
    port: u16,
    protocol: Protocol,
    target: Target,
    counters: Counters,
    /// Whether it is a second rule for the same address, which only counts or restricts.
    secondary: bool,
}

impl DispatchRule {
    /// The Service port's name, where a comment gives it.
    #[must_use]
    pub fn name(&self) -> Option<&ServicePortName> {
        self.name.as_ref()
    }

    /// Whether the rule matches packets to that address; `local`: the address is one of the node's, which serve node
    /// ports.
    #[must_use]
    pub fn is_for(&self, to: SocketAddr, protocol: Protocol, local: bool) -> bool {
        let node_port = self.kind == AddressKind::NodePort && local;
        self.protocol == protocol && self.port == to.port() && (self.ip == Some(to.ip()) || node_port)
    }

    /// Whether the rule is for the health check node port at that address of the node.
    #[must_use]
    pub fn is_health_check_at(&self, to: SocketAddr, protocol: Protocol) -> bool {
        let is_any = self.ip.is_none_or(|ip| ip == to.ip());
        self.kind == AddressKind::HealthCheckNodePort && protocol == Protocol::Tcp && self.port == to.port() && is_any
    }

    /// The destination address, unless it is a node port.
    #[must_use]
    pub fn destination(&self) -> Option<(IpAddr, u16, Protocol)> {
        Some((self.ip?, self.port, self.protocol))
    }

    /// The chain that the rule jumps to, if any.
    #[must_use]
    pub fn jump_target(&self) -> Option<&str> {
        match &self.target {
            Target::Jump(chain) => Some(chain),
            _ => None,
        }
    }
}

/// The dispatch rules of the wanted Service ports.
#[must_use]
pub fn dispatch_of(ruleset: &Ruleset, wanted: ServicePortFilter<'_>) -> Vec<DispatchRule> {
    dispatch_within(ruleset, &|_| true, wanted)
}

/// As [`dispatch_of`], of rules that `likely` selects: by their text, because to parse all takes long.
#[must_use]
pub fn dispatch_within(
    ruleset: &Ruleset,
    likely: &dyn Fn(&Rule) -> bool,
    wanted: ServicePortFilter<'_>,
) -> Vec<DispatchRule> {
    let mut entries = Vec::new();
    for (table, chain) in DISPATCH {
        let rules = ruleset.chain(table, chain).map(|chain| chain.rules.as_slice()).unwrap_or_default();
        let read = rules.iter().filter(|rule| likely(rule));
        let read = read.filter_map(|rule| entry(table, chain, rule, ruleset.family()));
        entries.extend(read.filter(|entry| wanted(entry.name.as_ref(), &entry.key)));
    }
    entries
}

fn entry(table: &'static str, chain: &'static str, rule: &Rule, family: IpFamily) -> Option<DispatchRule> {
    let Meaning { conditions, target, comment, .. } = rule.read(family);
    let (mut net, mut port, mut protocol) = (None, None, None);
    for condition in conditions.iter().filter(|condition| !condition.negated) {
        match &condition.test {
            Test::Destination(to) => net = Some(*to),
            Test::DestinationPorts(ports) => port = ports.first().map(|(from, _)| *from),
            Test::Protocol(one) => protocol = Some(*one),
            _ => {}
        }
    }
    let (port, protocol, target) = (port?, protocol?, target?);
    let comment = comment.as_deref().unwrap_or_default();
    let ending = ENDINGS.iter().find(|(ending, _)| comment.contains(ending));
    let subject = comment.split(' ').next().unwrap_or_default();
    let name = ServicePortName::parse(subject, protocol);
    let to = match &target {
        Target::Jump(to) => Some(to.as_str()),
        _ => None,
    };
    let hash = to.and_then(names::hash_of).map(str::to_owned);
    let hash = hash.or_else(|| names::hash_of(Namer::new(name.as_ref()?).port().cluster.as_str()).map(str::to_owned));
    let whole = net.filter(|net| net.prefix_len() == net.max_prefix_len()).map(|net| net.addr());
    let node_port = chain == "KUBE-NODEPORTS" || whole.is_none();
    let kind = match (ending.and_then(|(_, kind)| *kind), to) {
        (Some(kind), _) => kind,
        _ if node_port && table == "filter" && chain == "KUBE-NODEPORTS" => AddressKind::HealthCheckNodePort,
        _ if node_port => AddressKind::NodePort,
        (None, Some(to)) if to.starts_with("KUBE-FW-") => AddressKind::LoadBalancer,
        (None, Some(to)) if to.starts_with("KUBE-EXT-") => AddressKind::ExternalIp,
        _ if chain == "KUBE-EXTERNAL-SERVICES" => AddressKind::ExternalIp,
        _ if chain == "KUBE-PROXY-FIREWALL" => AddressKind::LoadBalancer,
        _ => AddressKind::ClusterIp,
    };
    // Node ports on loopback addresses have a second rule, which counts packets.
    let secondary = chain == "KUBE-PROXY-FIREWALL" || (node_port && net.is_some());
    let key = hash.unwrap_or_else(|| {
        format!("{}:{port}/{}", whole.map_or_else(String::new, |ip| ip.to_string()), protocol.name())
    });
    let ip = whole.filter(|_| !node_port);
    Some(DispatchRule { table, chain, name, key, kind, ip, port, protocol, target, counters: rule.counters, secondary })
}

/// The wanted Service ports, in the order of their names.
#[must_use]
pub fn read(ruleset: &Ruleset, wanted: ServicePortFilter<'_>) -> Vec<ServicePortView> {
    read_within(ruleset, &|_| true, wanted)
}

/// As [`read`], by dispatch rules that `likely` selects: see [`dispatch_within`].
#[must_use]
pub fn read_within(
    ruleset: &Ruleset,
    likely: &dyn Fn(&Rule) -> bool,
    wanted: ServicePortFilter<'_>,
) -> Vec<ServicePortView> {
    let mut groups: BTreeMap<(String, &'static str), Vec<DispatchRule>> = BTreeMap::new();
    for entry in dispatch_within(ruleset, likely, wanted) {
        groups.entry((entry.key.clone(), entry.protocol.name())).or_default().push(entry);
    }
    assign_health_checks(&mut groups);
    let mut views: Vec<ServicePortView> =
        groups.into_iter().map(|((key, _), entries)| PortRules { ruleset, key, entries }.view()).collect();
    views.sort_by(|a, b| (&a.name, a.protocol).cmp(&(&b.name, b.protocol)));
    views
}

/// Assigns health check node ports, which are TCP, to the Service port that has them, whatever its protocol.
fn assign_health_checks(groups: &mut BTreeMap<(String, &'static str), Vec<DispatchRule>>) {
    let is_check = |entry: &DispatchRule| entry.kind == AddressKind::HealthCheckNodePort;
    let strays: Vec<_> =
        groups.iter().filter(|(_, entries)| entries.iter().all(is_check)).map(|(key, _)| key.clone()).collect();
    for stray in strays {
        let name = groups[&stray].iter().find_map(|entry| entry.name.clone());
        let is_home = |entry: &DispatchRule| {
            let same = |a: &ServicePortName, b: &ServicePortName| a.service == b.service && a.port == b.port;
            !is_check(entry) && entry.name.as_ref().zip(name.as_ref()).is_some_and(|(a, b)| same(a, b))
        };
        let home = groups.iter().find(|(_, entries)| entries.iter().any(is_home)).map(|(key, _)| key.clone());
        if let Some(home) = home
            && let Some(entries) = groups.remove(&stray)
        {
            groups.entry(home).or_default().extend(entries);
        }
    }
}

struct PortRules<'a> {
    ruleset: &'a Ruleset,
    key: String,
    entries: Vec<DispatchRule>,
}

impl PortRules<'_> {
    fn view(&self) -> ServicePortView {
        let protocol = self.entries.first().map_or("", |entry| entry.protocol.name());
        let mut view = ServicePortView {
            name: self.name(),
            family: self.ruleset.family().name(),
            protocol,
            addresses: self.addresses(),
            internal_policy: self.internal_policy(),
            external_policy: self.external_policy(),
            affinity_seconds: None,
            source_ranges: self.source_ranges(),
            endpoints: Vec::new(),
            parts: Vec::new(),
            notes: self.notes(),
            known: false,
        };
        for kind in ["SVC", "SVL"] {
            let name = format!("KUBE-{kind}-{}", self.key);
            if let Some(chain) = self.nat(&name) {
                self.policy_chain(&mut view, &name, chain, kind == "SVL");
            }
        }
        view.endpoints.sort_by_key(|endpoint| endpoint.address);
        self.compare_counters(&mut view);
        self.parts(&mut view);
        view
    }

    /// Marks counters that cannot have seen all connections. A rule counts since its chain was last written: the chains of
    /// addresses are written at changes of any Service, those of endpoints at changes of their own.
    fn compare_counters(&self, view: &mut ServicePortView) {
        let is_of_nat = |entry: &&DispatchRule| entry.table == "nat" && entry.jump_target().is_some();
        let sent: u64 = self.entries.iter().filter(is_of_nat).map(|entry| entry.counters.packets).sum();
        let counted = |endpoint: &EndpointView| endpoint.counters.map(|counters| counters.packets);
        let taken: u64 = view.endpoints.iter().filter_map(counted).sum();
        let leads = |address: &&mut Address| address.verdict == AddressVerdict::Endpoints || address.chain.is_some();
        view.addresses.iter_mut().filter(leads).for_each(|address| address.counters_incomplete = sent < taken);
        let endpoints = view.endpoints.iter_mut().filter(|endpoint| endpoint.counters.is_some());
        endpoints.for_each(|endpoint| endpoint.counters_incomplete = taken < sent);
        if sent < taken {
            view.notes.push(format!(
                "the rules of the addresses counted {sent} connections, those of the endpoints {taken}: the addresses' chain was \
                 written later, or connections came while it was read"
            ));
        }
    }

    fn nat(&self, chain: &str) -> Option<&Chain> {
        self.ruleset.chain("nat", chain)
    }

    fn rules(&self, kind: &str) -> impl Iterator<Item = (&Rule, Meaning)> {
        let rules = self.nat(&format!("KUBE-{kind}-{}", self.key)).map(|chain| chain.rules.as_slice());
        rules.unwrap_or_default().iter().map(|rule| (rule, rule.read(self.ruleset.family())))
    }

    fn name(&self) -> String {
        let named = self.entries.iter().find_map(|entry| entry.name.as_ref());
        let chain = || self.entries.iter().find_map(DispatchRule::jump_target).unwrap_or(&self.key).to_owned();
        named.map_or_else(chain, ToString::to_string)
    }

    fn addresses(&self) -> Vec<Address> {
        let mut addresses: Vec<Address> = Vec::new();
        for entry in self.entries.iter().filter(|entry| !entry.secondary) {
            let verdict = match entry.target {
                Target::Reject => AddressVerdict::Rejected,
                Target::Drop => AddressVerdict::Dropped,
                Target::Accept => AddressVerdict::Accepted,
                _ => AddressVerdict::Endpoints,
            };
            let known = addresses
                .iter_mut()
                .find(|a| (a.ip, a.port) == (entry.ip, entry.port) && a.kind != AddressKind::HealthCheckNodePort);
            match known {
                // An external address dropped under policy Local still has endpoints for traffic from inside.
                Some(known) if entry.table == "filter" => {
                    add(&mut known.counters, entry.counters);
                    known.verdict = if known.verdict == AddressVerdict::Endpoints {
                        AddressVerdict::Dropped
                    } else {
                        known.verdict
                    };
                }
                Some(known) => add(&mut known.counters, entry.counters),
                None => addresses.push(Address {
                    kind: entry.kind,
                    ip: entry.ip,
                    port: entry.port,
                    verdict,
                    chain: entry.jump_target().map(str::to_owned),
                    counters: Some(entry.counters),
                    counters_incomplete: false,
                    server: None,
                }),
            }
        }
        // Only the second rule matches packets to a node port at a loopback address.
        for entry in self.entries.iter().filter(|entry| entry.secondary && entry.table == "nat") {
            let known = addresses.iter_mut().find(|a| a.kind == entry.kind && a.port == entry.port);
            known.into_iter().for_each(|known| add(&mut known.counters, entry.counters));
        }
        addresses.sort_by_key(|address| (address.kind, address.ip, address.port));
        addresses
    }

    fn internal_policy(&self) -> Option<Policy> {
        let mut of_cluster_ip = self.entries.iter().filter(|entry| entry.kind == AddressKind::ClusterIp);
        of_cluster_ip.find_map(|entry| match &entry.target {
            Target::Jump(to) if to.starts_with("KUBE-SVL-") => Some(Policy::Local),
            Target::Jump(_) => Some(Policy::Cluster),
            Target::Drop => Some(Policy::Local),
            _ => None,
        })
    }

    fn external_policy(&self) -> Option<Policy> {
        let marks = |meaning: &Meaning| meaning.target == Some(Target::Jump("KUBE-MARK-MASQ".to_owned()));
        let mut marking = self.rules("EXT").filter(|(_, meaning)| marks(meaning));
        let (_, marking) = marking.next()?;
        let of_node = marking.conditions.iter().any(|condition| condition.test == Test::SourceLocal);
        Some(if of_node { Policy::Local } else { Policy::Cluster })
    }

    fn source_ranges(&self) -> Vec<IpNet> {
        let sources = self.rules("FW").flat_map(|(_, meaning)| meaning.conditions);
        let mut ranges: Vec<IpNet> = sources
            .filter_map(|condition| match condition.test {
                Test::Source(net) => Some(net),
                _ => None,
            })
            .collect();
        ranges.dedup();
        ranges
    }

    /// Reads a chain that chooses among endpoints.
    fn policy_chain(&self, view: &mut ServicePortView, name: &str, chain: &Chain, local: bool) {
        let (mut left, mut some) = (1.0, false);
        for rule in &chain.rules {
            let Meaning { conditions, target, .. } = rule.read(self.ruleset.family());
            let Some(Target::Jump(to)) = target else { continue };
            let recent = conditions.iter().find_map(|condition| match &condition.test {
                Test::Recent(RecentMatch { action: RecentAction::Check, seconds, .. }) => Some(*seconds),
                _ => None,
            });
            if let Some(seconds) = recent {
                view.affinity_seconds = seconds.or(view.affinity_seconds);
                continue;
            }
            if to == "KUBE-MARK-MASQ" {
                continue;
            }
            let chance = conditions.iter().find_map(|condition| match condition.test {
                Test::Random(chance) => Some(chance),
                _ => None,
            });
            let share = left * chance.unwrap_or(1.0);
            (left, some) = (left - share, true);
            let endpoint = self.endpoint(view, &to);
            let slot = if local { &mut endpoint.local_share } else { &mut endpoint.share };
            *slot = Some(slot.unwrap_or_default() + share);
        }
        if !some {
            view.notes.push(format!("chain {name} has no endpoint"));
        } else if left > 1e-6 {
            view.notes.push(format!("{:.1} % of the packets in chain {name} match none of its rules", left * 100.0));
        }
    }

    fn endpoint<'a>(&self, view: &'a mut ServicePortView, chain: &str) -> &'a mut EndpointView {
        let known = view.endpoints.iter().position(|endpoint| endpoint.chain.as_deref() == Some(chain));
        let at = known.unwrap_or_else(|| {
            let dnat = self.nat(chain).into_iter().flat_map(|chain| &chain.rules).find_map(|rule| {
                let Some(Target::Dnat(to)) = rule.read(self.ruleset.family()).target else { return None };
                Some((to, rule.counters))
            });
            if dnat.is_none() {
                let state = if self.nat(chain).is_some() { "translates nothing" } else { "does not exist" };
                view.notes.push(format!("chain {chain} {state}"));
            }
            let mut endpoint = EndpointView::at(dnat.map(|(to, _)| to));
            endpoint.counters = dnat.map(|(_, counters)| counters);
            endpoint.chain = Some(chain.to_owned());
            view.endpoints.push(endpoint);
            view.endpoints.len() - 1
        });
        &mut view.endpoints[at]
    }

    fn parts(&self, view: &mut ServicePortView) {
        let own = ["FW", "EXT", "SVC", "SVL"].map(|kind| format!("KUBE-{kind}-{}", self.key));
        let endpoints: Vec<String> = view.endpoints.iter().filter_map(|endpoint| endpoint.chain.clone()).collect();
        for name in own.into_iter().chain(endpoints) {
            if let Some(chain) = self.nat(&name) {
                let mut counters = Counters::default();
                chain.rules.iter().for_each(|rule| counters += rule.counters);
                view.parts.push(KernelObject {
                    table: "nat",
                    chain: name,
                    element: None,
                    rules: chain.rules.len(),
                    counters: Some(counters),
                });
            }
        }
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = BTreeSet::new();
        for entry in &self.entries {
            if let Some(to) = entry.jump_target().filter(|to| self.nat(to).is_none()) {
                notes.insert(format!(
                    "{} of table {} jumps to chain {to}, which does not exist",
                    entry.chain, entry.table
                ));
            }
            if let Some(name) = &entry.name
                && let named = Namer::new(name).port().cluster
                && names::hash_of(named.as_str()) != Some(&self.key)
                && entry.kind != AddressKind::HealthCheckNodePort
            {
                notes.insert(format!(
                    "a rule of {} names {name} and jumps to chains of another Service port",
                    entry.chain
                ));
            }
        }
        notes.into_iter().collect()
    }
}

fn add(sum: &mut Option<Counters>, counters: Counters) {
    *sum.get_or_insert_default() += counters;
}

/// Chains of Service ports without references.
#[must_use]
pub fn unused_chains(ruleset: &Ruleset) -> Vec<String> {
    let Some(nat) = ruleset.table("nat") else { return Vec::new() };
    let used: BTreeSet<&str> = nat.values().flat_map(|chain| &chain.rules).filter_map(Rule::jump_target).collect();
    let of_service = nat.keys().filter(|name| names::hash_of(name).is_some());
    of_service.filter(|name| !used.contains(&***name)).map(ToString::to_string).collect()
}
