//! The rules of iptables mode that do not depend on Services.

use ipnet::IpNet;
use netfilter::iptables::{Chain, Match, Negatable, Rule, Table, Target};

use super::names;
use super::settings::{INVALID_DROPPED_COUNTER, IptablesSettings, NodePortDestinations};
use crate::xtables::Jump;
use crate::xtables::masquerade::{self, comment, target};

/// All jumps, in the order of insertion at the head of their chains: the last one ends up first.
#[must_use]
pub fn jumps() -> Vec<Jump> {
    const NEW: Option<Match> = Some(Match::CtState(Negatable::new("NEW")));
    const EXTERNAL: &str = "kubernetes externally-visible service portals";
    const PORTALS: &str = "kubernetes service portals";
    const FIREWALL: &str = "kubernetes load balancer firewall";
    let jump = |table, to, from, text: &'static str, state: Option<Match>| {
        let comment = (!text.is_empty()).then(|| comment(text));
        Jump::new(table, from, to, state.into_iter().chain(comment).collect())
    };
    vec![
        jump(Table::Filter, names::EXTERNAL_SERVICES, "INPUT", EXTERNAL, NEW),
        jump(Table::Filter, names::EXTERNAL_SERVICES, "FORWARD", EXTERNAL, NEW),
        jump(Table::Filter, names::NODE_PORTS, "INPUT", "kubernetes health check service ports", None),
        jump(Table::Filter, names::SERVICES, "FORWARD", PORTALS, NEW),
        jump(Table::Filter, names::SERVICES, "OUTPUT", PORTALS, NEW),
        jump(Table::Filter, names::FORWARD, "FORWARD", "kubernetes forwarding rules", None),
        jump(Table::Filter, names::PROXY_FIREWALL, "INPUT", FIREWALL, NEW),
        jump(Table::Filter, names::PROXY_FIREWALL, "OUTPUT", FIREWALL, NEW),
        jump(Table::Filter, names::PROXY_FIREWALL, "FORWARD", FIREWALL, NEW),
        jump(Table::Nat, names::SERVICES, "OUTPUT", PORTALS, None),
        jump(Table::Nat, names::SERVICES, "PREROUTING", PORTALS, None),
        jump(Table::Nat, names::POSTROUTING, "POSTROUTING", "kubernetes postrouting rules", None),
        jump(Table::Filter, names::KUBELET_FIREWALL, "INPUT", "", None),
        jump(Table::Filter, names::KUBELET_FIREWALL, "OUTPUT", "", None),
    ]
}

/// The chains whose rules depend on settings alone.
#[must_use]
pub fn chains(settings: &IptablesSettings) -> Vec<(Table, Chain, Vec<Rule>)> {
    let mut chains = vec![
        (
            Table::Nat,
            names::POSTROUTING,
            masquerade::postrouting(settings.masquerade_mark, settings.features.random_fully),
        ),
        (Table::Nat, names::MARK_MASQ, vec![masquerade::mark(settings.masquerade_mark)]),
        (Table::Filter, names::FORWARD, forward(settings)),
    ];
    if settings.localhost_node_ports {
        chains.push((Table::Filter, names::KUBELET_FIREWALL, vec![guard_loopback(settings)]));
    }
    chains
}

/// Chains that must exist, but are empty or belong to the kubelet.
pub const ENSURED: [(Table, Chain); 4] = [
    (Table::Filter, names::KUBELET_FIREWALL),
    (Table::Mangle, names::CANARY),
    (Table::Nat, names::CANARY),
    (Table::Filter, names::CANARY),
];

/// The chains that built-in chains jump to; only [`jumps`] and this mode's rules refer to them.
pub static ENTRY_CHAINS: [(Table, &[Chain]); 3] = [
    (Table::Nat, &[names::SERVICES, names::POSTROUTING, names::NODE_PORTS]),
    (
        Table::Filter,
        &[names::EXTERNAL_SERVICES, names::NODE_PORTS, names::SERVICES, names::FORWARD, names::PROXY_FIREWALL],
    ),
    (Table::Mangle, &[names::CANARY]),
];

/// The last rules of nat's KUBE-SERVICES: packets to node addresses may be for node ports.
#[must_use]
pub fn node_port_dispatch(settings: &IptablesSettings) -> Vec<Rule> {
    let rule = Rule {
        matches: vec![comment("kubernetes service nodeports; NOTE: this must be the last rule in this chain")],
        target: Some(Target::Jump(names::NODE_PORTS)),
        ..Rule::default()
    };
    match &settings.node_ports {
        NodePortDestinations::All => {
            let mut rule = rule;
            rule.matches.push(Match::DestinationIsLocal);
            if !settings.localhost_node_ports {
                rule.destination = Some(Negatable::not(settings.family.loopback()));
            }
            vec![rule]
        }
        NodePortDestinations::Addresses(addresses) => addresses
            .iter()
            .map(|&ip| Rule { destination: Some(Negatable::new(IpNet::from(ip))), ..rule.clone() })
            .collect(),
    }
}

fn forward(settings: &IptablesSettings) -> Vec<Rule> {
    let mut rules = Vec::with_capacity(3);
    if !settings.features.tcp_be_liberal {
        // Such packets would reach the client untranslated and make it reset the connection
        // (kubernetes/kubernetes#74839).
        let mut matches = vec![Match::CtState(Negatable::new("INVALID"))];
        if settings.features.nfacct {
            matches.push(Match::Account(INVALID_DROPPED_COUNTER));
        }
        rules.push(Rule { matches, ..target(Target::Drop) });
    }
    rules.extend(masquerade::forward(settings.masquerade_mark));
    rules
}

/// Blocks what `route_localnet` would allow: neighbours reaching services on loopback addresses
/// (kubernetes/kubernetes#90259).
fn guard_loopback(settings: &IptablesSettings) -> Rule {
    let loopback = settings.family.loopback();
    Rule {
        source: Some(Negatable::not(loopback)),
        destination: Some(Negatable::new(loopback)),
        matches: vec![
            comment("block incoming localnet connections"),
            Match::CtState(Negatable::not("RELATED,ESTABLISHED,DNAT")),
        ],
        ..target(Target::Drop)
    }
}
