//! Rules of the fixed chains, and of the chains that Service ports share.

use netfilter::IpFamily;
use netfilter::nft::{Address, Chain, ChainType, Field, Hook, Name, Rule, SetOperation, Statement, Verdict};

use super::names::*;
use super::settings::NftablesSettings;
use crate::maglev;
use crate::model::config::LocalTraffic;
use crate::model::{EndpointHash, Protocol};

/// The standard priorities of NAT.
const DSTNAT: i32 = -100;
const SRCNAT: i32 = 100;

/// A chain with its rules.
pub type ChainWithRules = (Chain, Vec<Rule>);

fn jump(chain: &str) -> Statement {
    Statement::Verdict(Verdict::Jump(chain.into()))
}

fn goto(chain: &str) -> Statement {
    Statement::Verdict(Verdict::Goto(chain.into()))
}

/// Rules for new connections: the first accepts all other packets.
fn for_new(rules: impl IntoIterator<Item = Rule>) -> Vec<Rule> {
    let accept = Rule::new([Statement::CtStateNotNew, Statement::Verdict(Verdict::Accept)]);
    [accept].into_iter().chain(rules).collect()
}

fn jumps(chains: [&str; 2]) -> [Rule; 2] {
    chains.map(|chain| Rule::new([jump(chain)]))
}

/// Looks for packets that may be refused, by address only: most are for endpoints and others, so these have a short way.
fn find_refusals(settings: &NftablesSettings) -> Vec<Rule> {
    let in_cidrs = settings.service_cidrs.iter().map(|net| {
        let net = *net;
        Rule::new([Statement::AddressIn { address: Address::Destination, not: false, net }, goto(REFUSALS)])
    });
    let others = Rule::new([destination_in(settings.family, SetId::RefusableIps), goto(REFUSALS)]);
    for_new(in_cidrs.chain([others]))
}

fn verdicts(family: IpFamily, place: VipOrNodePort, map: SetId) -> Statement {
    Statement::VerdictMap { key: key(family, place), map: map.name().into() }
}

fn destination_in(family: IpFamily, set: SetId) -> Statement {
    Statement::Lookup { key: vec![Field::Destination(family)], set: set.name().into(), not: false }
}

/// The fixed chains: base chains, and the chains that they jump to.
#[must_use]
pub fn fixed(settings: &NftablesSettings) -> Vec<ChainWithRules> {
    let family = settings.family;
    let (filter, nat) = (ChainType::Filter, ChainType::Nat);
    let base = |name: &str, kind, hook, priority, rules| (Chain::base(name, kind, hook, priority), rules);
    let plain = |name: &str, rules| (Chain::plain(name), rules);
    let mut reject = Chain::plain(REJECT);
    reject.comment = Some("helper for @no-endpoint-services / @no-endpoint-nodeports".into());
    let mut node_ports_check = localhost_check(settings);
    node_ports_check.extend(endpoints_check(settings, VipOrNodePort::NodePort));
    let mut chains = localhost_rejects(settings);
    chains.extend([
        (reject, vec![Rule::new([Statement::Reject(family)])]),
        plain(EXTERNAL_LOCAL, local_policy(settings, VipOrNodePort::Address)),
        plain(NODE_PORT_LOCAL, local_policy(settings, VipOrNodePort::NodePort)),
        plain(SERVICES, services(settings)),
        plain(MASQUERADING, masquerading(settings)),
        plain(CLUSTER_IPS_CHECK, cluster_ips_check(settings)),
        plain(SERVICE_ENDPOINTS_CHECK, endpoints_check(settings, VipOrNodePort::Address)),
        plain(NODE_PORT_ENDPOINTS_CHECK, node_ports_check),
        plain(REFUSALS, jumps([SERVICE_ENDPOINTS_CHECK, CLUSTER_IPS_CHECK]).to_vec()),
        plain(FIREWALL_SOURCE_RANGES, source_ranges(settings)),
        base(
            "filter-input",
            filter,
            Hook::Input,
            0,
            for_new(jumps([NODE_PORT_ENDPOINTS_CHECK, SERVICE_ENDPOINTS_CHECK])),
        ),
        base("filter-forward", filter, Hook::Forward, 0, find_refusals(settings)),
        base("filter-output", filter, Hook::Output, 0, find_refusals(settings)),
        base("nat-prerouting", nat, Hook::Prerouting, DSTNAT, vec![Rule::new([jump(SERVICES)])]),
        base("nat-output", nat, Hook::Output, DSTNAT, vec![Rule::new([jump(SERVICES)])]),
        base("nat-postrouting", nat, Hook::Postrouting, SRCNAT, vec![Rule::new([jump(MASQUERADING)])]),
    ]);
    chains
}

/// The chains that reject new connections to localhost node ports, one for each protocol that no proxy serves.
fn localhost_rejects(settings: &NftablesSettings) -> Vec<ChainWithRules> {
    let reject = [Statement::Counter, Statement::Reject(settings.family)];
    let of = |protocol: &Protocol| (Chain::plain(localhost_reject(*protocol)), vec![Rule::new(reject.clone())]);
    settings.localhost_rejected.iter().map(of).collect()
}

/// Sends packets to loopback node ports there.
fn localhost_check(settings: &NftablesSettings) -> Vec<Rule> {
    if settings.localhost_rejected.is_empty() {
        return Vec::new();
    }
    let net = settings.family.loopback();
    let to_loopback = Statement::AddressIn { address: Address::Destination, not: false, net };
    vec![Rule::new([to_loopback, verdicts(settings.family, VipOrNodePort::NodePort, SetId::LocalhostNodePorts)])]
}

/// Matches packets to addresses that serve node ports. After routing they are known to be local.
fn node_port_ips(settings: &NftablesSettings, before_routing: bool) -> Vec<Statement> {
    if settings.node_port_ips.is_some() {
        return vec![destination_in(settings.family, SetId::NodePortIps)];
    }
    let local = before_routing.then_some(Statement::AddressIsLocal(Address::Destination));
    let net = settings.family.loopback();
    let not_loopback = Statement::AddressIn { address: Address::Destination, not: true, net };
    local.into_iter().chain([not_loopback]).collect()
}

fn services(settings: &NftablesSettings) -> Vec<Rule> {
    let family = settings.family;
    let mut rules = Vec::with_capacity(5);
    let mark = Statement::SetMark(settings.masquerade_mark);
    let to_cluster_ip = destination_in(family, SetId::ClusterIps);
    if settings.masquerade_all {
        rules.push(Rule::new([to_cluster_ip, mark]).comment("masquerade all clusterIP traffic"));
    } else if let Some(local) = &settings.local_traffic {
        let elsewhere = from_local_traffic(local, true);
        let comment = "masquerade clusterIP traffic from outside cluster";
        // The sender first, other than upstream: for packets of local pods it spares a lookup among all cluster IPs.
        rules.push(Rule::new([elsewhere, to_cluster_ip, mark]).comment(comment));
    }
    for place in VipOrNodePort::ALL {
        // Before the verdict, which ends the chain.
        let counted = settings.counts_connections.then(|| counted(family, place, SetId::Connections(place)));
        for last in counted.into_iter().chain([verdicts(family, place, SetId::Service(place))]) {
            let conditions = if place == VipOrNodePort::NodePort { node_port_ips(settings, true) } else { Vec::new() };
            rules.push(Rule::new([conditions, vec![last]].concat()));
        }
    }
    rules
}

/// Counts a packet by its destination.
fn counted(family: IpFamily, place: VipOrNodePort, set: SetId) -> Statement {
    Statement::Lookup { key: key(family, place), set: set.name().into(), not: false }
}

/// Refuses packets to destinations without usable endpoints, and counts them before.
fn endpoints_check(settings: &NftablesSettings, place: VipOrNodePort) -> Vec<Rule> {
    let family = settings.family;
    let reasons = RefusedFor::ALL.into_iter().filter(|_| settings.counts_connections);
    let counted = reasons.map(|reason| counted(family, place, SetId::Refused(place, reason)));
    let of_place = || if place == VipOrNodePort::NodePort { node_port_ips(settings, false) } else { Vec::new() };
    let all = counted.chain([verdicts(family, place, SetId::NoEndpoint(place))]);
    all.map(|last| Rule::new([of_place(), vec![last]].concat())).collect()
}

/// Rules for Services with `externalTrafficPolicy: Local`.
///
/// Traffic from this node is treated as if it came back through a load balancer.
fn local_policy(settings: &NftablesSettings, place: VipOrNodePort) -> Vec<Rule> {
    let family = settings.family;
    let short_circuit = verdicts(family, place, SetId::ShortCircuit(place));
    let host = Statement::AddressIsLocal(Address::Source);
    let mut rules = Vec::with_capacity(4);
    if let Some(local) = &settings.local_traffic {
        let pods = from_local_traffic(local, false);
        rules.push(Rule::new([pods, short_circuit.clone()]).comment("short-circuit pod traffic"));
    }
    let mark = Statement::SetMark(settings.masquerade_mark);
    rules.push(Rule::new([host.clone(), mark]).comment("masquerade local traffic"));
    rules.push(Rule::new([host, short_circuit]).comment("short-circuit local traffic"));
    rules.push(Rule::new([verdicts(family, place, SetId::LocalPolicy(place))]));
    rules
}

fn from_local_traffic(local: &LocalTraffic, not: bool) -> Statement {
    match local {
        LocalTraffic::From(net) => Statement::AddressIn { address: Address::Source, not, net: *net },
        LocalTraffic::Interface(name) => Statement::InputInterface { name: name.clone(), prefix: false, not },
        LocalTraffic::InterfacePrefix(name) => Statement::InputInterface { name: name.clone(), prefix: true, not },
    }
}

fn masquerading(settings: &NftablesSettings) -> Vec<Rule> {
    let family = settings.family;
    let masquerade = Statement::Masquerade { random: true };
    let mark = settings.masquerade_mark;
    let ips = [Field::Source(family), Field::Destination(family)];
    let connection = [&ips[..], &[Field::Protocol, Field::Port]].concat();
    let lookup = |key, set: SetId| Statement::Lookup { key, set: set.name().into(), not: false };
    // The addresses alone first: that is all that most connections meet.
    let to_itself = lookup(ips.to_vec(), SetId::HairpinIps);
    let hairpin = lookup(connection, SetId::Hairpin);
    vec![
        // Clear the mark: the packet may traverse the hook again.
        Rule::new([Statement::HasMark(mark), Statement::FlipMark(mark), masquerade.clone()]),
        Rule::new([to_itself, Statement::CtStatusDnat, hairpin, masquerade]),
    ]
}

fn cluster_ips_check(settings: &NftablesSettings) -> Vec<Rule> {
    let family = settings.family;
    let reject = [destination_in(family, SetId::ClusterIps), Statement::Reject(family)];
    let counted = settings.counts_connections.then(|| Rule::new([destination_in(family, SetId::RefusedPorts)]));
    let mut rules: Vec<Rule> = counted.into_iter().collect();
    rules.push(Rule::new(reject).comment("Reject traffic to invalid ports of ClusterIPs"));
    rules.extend(settings.service_cidrs.iter().map(|net| {
        let to = Statement::AddressIn { address: Address::Destination, not: false, net: *net };
        Rule::new([to, Statement::Verdict(Verdict::Drop)]).comment("Drop traffic to unallocated ClusterIPs")
    }));
    rules
}

fn source_ranges(settings: &NftablesSettings) -> Vec<Rule> {
    let (family, place) = (settings.family, VipOrNodePort::Address);
    let from = [key(family, place), vec![Field::Source(family)]].concat();
    let refused = Statement::Lookup { key: from, set: SetId::FirewallAllowed.name().into(), not: true };
    let counted = settings.counts_connections.then(|| counted(family, place, SetId::RefusedSources));
    let last = counted.into_iter().chain([Statement::Verdict(Verdict::Drop)]);
    last.map(|last| Rule::new([refused.clone(), last])).collect()
}

/// The chains that a shared chain needs, itself last, and the number of client sets that it reads.
#[must_use]
pub fn needs(chain: SharedChain) -> (Vec<SharedChain>, u32) {
    match chain {
        SharedChain::Stick { number, .. } => (vec![chain], number + 1),
        SharedChain::Balance(Balance { place, policy, sticky, .. }) => {
            let Sticky { numbers, seconds, service } = sticky.unwrap_or_default();
            let sticks = (0..numbers).map(|number| SharedChain::Stick { place, policy, number, seconds, service });
            (sticks.chain([chain]).collect(), numbers)
        }
        SharedChain::SourceRanges(_) => (vec![chain], 0),
        SharedChain::External(balance) => {
            let (mut chains, numbers) = needs(SharedChain::Balance(balance));
            chains.push(chain);
            (chains, numbers)
        }
    }
}

/// The rules of a shared chain.
#[must_use]
pub fn shared(chain: SharedChain, settings: &NftablesSettings) -> Vec<Rule> {
    let family = settings.family;
    match chain {
        SharedChain::External(balance) => vec![
            Rule::new([Statement::SetMark(settings.masquerade_mark)]).comment("masquerade"),
            Rule::new([Statement::Verdict(Verdict::Goto(SharedChain::Balance(balance).to_name()))]),
        ],
        SharedChain::Balance(balance) => self::balance(family, balance),
        SharedChain::SourceRanges(_) => {
            for_new([Rule::new([verdicts(family, VipOrNodePort::Address, SetId::FirewallIps)])])
        }
        SharedChain::Stick { place, policy, number, seconds, service } => {
            let change = |operation, timeout| Statement::UpdateSet {
                operation,
                set: affinity_name(number),
                key: client_key(family, service),
                timeout,
            };
            let number = Field::constant(number);
            let dnat = Statement::Dnat {
                family,
                key: [key(family, place), vec![number]].concat(),
                map: SetId::Endpoints(place, policy).name().into(),
            };
            vec![
                Rule::new([change(SetOperation::Update, Some(seconds))]),
                Rule::new([dnat]),
                Rule::new([change(SetOperation::Delete, None)]).comment("the endpoint is gone"),
            ]
        }
    }
}

fn balance(family: IpFamily, balance: Balance) -> Vec<Rule> {
    let Balance { place, policy, count, sticky, hash } = balance;
    if let Some(hash) = hash {
        return vec![slot_of_client(family, (place, policy), count, hash)];
    }
    let among = |count| [key(family, place), vec![Field::random(count)]].concat();
    let Some(Sticky { numbers, seconds, service }) = sticky else {
        return if count == 1 {
            vec![only_endpoint(family, place, policy)]
        } else {
            random_draws(family, place, policy, count)
        };
    };
    let remembered = (0..numbers).map(|number| {
        let set = affinity_name(number);
        let stick = SharedChain::Stick { place, policy, number, seconds, service };
        Rule::new([Statement::Lookup { key: client_key(family, service), set, not: false }, jump(&stick.to_string())])
    });
    let choose = Statement::VerdictMap { key: among(count), map: SetId::Choices(place, policy).name().into() };
    remembered.chain([Rule::new([choose])]).collect()
}

/// A rule for the endpoint in the slot that a client is hashed to: see [`maglev`].
fn slot_of_client(family: IpFamily, (place, policy): (VipOrNodePort, Policy), slots: u32, hash: EndpointHash) -> Rule {
    let slot = Field::Hash { of: maglev::hashed(family, hash), modulus: slots, seed: maglev::SEED };
    let map = SetId::Endpoints(place, policy).name().into();
    Rule::new([Statement::Dnat { family, key: [key(family, place), vec![slot]].concat(), map }])
}

/// A rule for the endpoint of Service ports that have only one.
fn only_endpoint(family: IpFamily, place: VipOrNodePort, policy: Policy) -> Rule {
    let map = SetId::OnlyEndpoint(place, policy).name().into();
    Rule::new([Statement::Dnat { family, key: key(family, place), map }])
}

/// Rules that choose one of at most `most` endpoints uniformly.
///
/// A drawn number may be unused, as there may be fewer endpoints; the next rule then draws among one less. Whichever
/// draw hits, all endpoints are equally likely.
fn random_draws(family: IpFamily, place: VipOrNodePort, policy: Policy, most: u32) -> Vec<Rule> {
    let map: Name = SetId::Endpoints(place, policy).name().into();
    let draw = |count| {
        let key = [key(family, place), vec![Field::random(count)]].concat();
        Rule::new([Statement::Dnat { family, key, map: map.clone() }])
    };
    size_class(most).rev().map(draw).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The range of each rule's draw.
    fn draws(most: u32) -> Vec<u32> {
        let random = |rule: &Rule| {
            let text = rule.to_string();
            text.split("random mod ").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok()).expect("a draw")
        };
        random_draws(IpFamily::V4, VipOrNodePort::Address, Policy::Cluster, most).iter().map(random).collect()
    }

    #[test]
    fn every_endpoint_is_chosen_with_the_same_probability() {
        for count in 2..300 {
            let most = *size_class(count).end();
            // The fraction of packets that reach a rule; rules draw among at most `most`.
            let (mut rest, mut each) = (1.0_f64, 0.0);
            for among in draws(most) {
                // Numbers below `count` are used, and drawn equally often.
                let used = f64::from(count.min(among)) / f64::from(among);
                if count < among {
                    each += rest / f64::from(among);
                } else if rest > 0.0 {
                    // All packets that reach the rule are sent to an endpoint, uniformly only if none is excluded.
                    assert_eq!(among, count, "draws for {count} endpoints");
                    each += rest / f64::from(count);
                }
                rest *= 1.0 - used;
            }
            assert_eq!(rest, 0.0, "packets find no endpoint of {count}");
            assert!((each * f64::from(count) - 1.0).abs() < 1e-9, "{count} endpoints: {each}");
        }
    }

    #[test]
    fn a_single_endpoint_needs_no_draw() {
        let of = |count| {
            let balance =
                Balance { place: VipOrNodePort::Address, policy: Policy::Cluster, count, sticky: None, hash: None };
            self::balance(IpFamily::V4, balance).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(of(1), ["dnat ip to ip daddr . meta l4proto . th dport map @only-endpoint"]);
        assert!(of(4).iter().all(|rule| rule.contains("numgen random mod ")), "{:?}", of(4));
    }

    #[test]
    fn hashed_choice_is_one_rule_for_all_service_ports() {
        let of = |family, hash| {
            let (place, policy) = (VipOrNodePort::Address, Policy::Cluster);
            let hashed = Balance { place, policy, count: maglev::SLOTS, sticky: None, hash: Some(hash) };
            self::balance(family, hashed).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(
            of(IpFamily::V4, EndpointHash::Client),
            ["dnat ip to ip daddr . meta l4proto . th dport . jhash ip saddr mod 16381 seed 0x6d61676c map @endpoints"]
        );
        assert_eq!(
            of(IpFamily::V6, EndpointHash::Flow),
            [
                "dnat ip6 to ip6 daddr . meta l4proto . th dport . jhash ip6 saddr . th sport mod 16381 seed 0x6d61676c map @endpoints"
            ]
        );
    }

    #[test]
    fn counts_of_one_size_class_yield_that_class() {
        assert_eq!(
            [0, 1, 2, 3, 5, 8, 9, 13, 32, 33, 49].map(|n| *size_class(n).end()),
            [1, 1, 2, 4, 6, 8, 12, 16, 32, 48, 64]
        );
        for count in 1..5000 {
            let all = size_class(count);
            assert!(all.contains(&count) && all.clone().count() <= 16);
            assert!(all.clone().all(|other| size_class(other) == all), "{count}");
        }
        assert!(size_class(u32::MAX).contains(&u32::MAX));
    }
}
