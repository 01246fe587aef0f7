//! Renders the rules of one Service port.
//!
//! Rules, their order and their comments are those of kube-proxy 1.36.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use netfilter::iptables::{Chain, Comment, Match, Negatable, Rule, Suffix, Table, Target};

use super::names::{self, Namer, PortChains};
use super::settings::{IptablesSettings, LOCALHOST_NODE_PORTS_COUNTER};
use crate::model::{CategorizedEndpoints, ServicePort, ServicePortName};
use crate::xtables::masquerade::from_local_traffic;

/// The chains that all Service ports share, in the order in which they are written.
pub const SHARED: [(Table, Chain); 6] = [
    (Table::Filter, names::SERVICES),
    (Table::Filter, names::EXTERNAL_SERVICES),
    (Table::Filter, names::NODE_PORTS),
    (Table::Filter, names::PROXY_FIREWALL),
    (Table::Nat, names::SERVICES),
    (Table::Nat, names::NODE_PORTS),
];

const FILTER_SERVICES: usize = 0;
const FILTER_EXTERNAL_SERVICES: usize = 1;
const FILTER_NODE_PORTS: usize = 2;
const FILTER_PROXY_FIREWALL: usize = 3;
const NAT_SERVICES: usize = 4;
const NAT_NODE_PORTS: usize = 5;

/// A Service port's rules in each of the chains of [`SHARED`].
pub type SharedRules = [Vec<Rule>; SHARED.len()];

/// Renders a Service port's rules.
#[derive(Debug)]
pub struct PortRules<'a> {
    port: &'a ServicePort,
    endpoints: &'a CategorizedEndpoints<'a>,
    settings: &'a IptablesSettings,
    protocol: &'static str,
    subject: Arc<str>,
    namer: Namer,
    chains: PortChains,
    comments: bool,
}

impl<'a> PortRules<'a> {
    /// Creates a renderer. Without `comments`, per-endpoint rules have none, as in large clusters.
    #[must_use]
    pub fn new(
        name: &ServicePortName,
        port: &'a ServicePort,
        endpoints: &'a CategorizedEndpoints<'a>,
        settings: &'a IptablesSettings,
        comments: bool,
    ) -> Self {
        let namer = Namer::new(name);
        let chains = namer.port();
        let subject = name.to_string().into();
        Self { port, endpoints, settings, protocol: name.protocol.name(), subject, namer, chains, comments }
    }

    /// Whether traffic to the cluster IP has usable endpoints.
    fn has_internal(&self) -> bool {
        if self.port.internal_local { !self.endpoints.local.is_empty() } else { self.endpoints.any }
    }

    /// Whether external traffic has usable endpoints.
    fn has_external(&self) -> bool {
        if self.port.external_local { !self.endpoints.local.is_empty() } else { self.endpoints.any }
    }

    /// Whether the cluster IP is dropped because no endpoint is local, as a metric counts.
    #[must_use]
    pub fn lacks_internal_local(&self) -> bool {
        self.endpoints.any && !self.has_internal()
    }

    /// The same for external traffic.
    #[must_use]
    pub fn lacks_external_local(&self) -> bool {
        self.endpoints.any && !self.has_external()
    }

    fn uses_firewall(&self) -> bool {
        self.endpoints.any && !self.port.load_balancer_vips.is_empty() && !self.port.source_ranges.is_empty()
    }

    fn internal_chain(&self) -> Chain {
        if self.port.internal_local { self.chains.local } else { self.chains.cluster }
    }

    /// The rules in the chains that all Service ports share.
    #[must_use]
    pub fn shared(&self) -> SharedRules {
        let mut rules = SharedRules::default();
        self.cluster_ip(&mut rules);
        self.external_ips(&mut rules);
        self.load_balancer(&mut rules);
        self.node_port(&mut rules);
        if self.port.health_check_node_port != 0 {
            rules[FILTER_NODE_PORTS].push(Rule {
                protocol: Some("tcp"),
                matches: vec![
                    self.comment("", " health check node port"),
                    Match::DestinationPort("tcp", self.port.health_check_node_port),
                ],
                target: Some(Target::Accept),
                ..Rule::default()
            });
        }
        rules
    }

    fn cluster_ip(&self, rules: &mut SharedRules) {
        let ip = self.port.cluster_ip;
        if self.has_internal() {
            let jump = Target::Jump(self.internal_chain());
            rules[NAT_SERVICES].push(self.to(ip, self.comment("", " cluster IP"), jump));
        } else {
            rules[FILTER_SERVICES].push(self.refuse(ip));
        }
    }

    fn external_ips(&self, rules: &mut SharedRules) {
        for &ip in &self.port.external_ips {
            if self.endpoints.any {
                let jump = Target::Jump(self.chains.external);
                rules[NAT_SERVICES].push(self.to(ip, self.comment("", " external IP"), jump));
            }
            if !self.has_external() {
                rules[FILTER_EXTERNAL_SERVICES].push(self.refuse(ip));
            }
        }
    }

    fn load_balancer(&self, rules: &mut SharedRules) {
        for &vip in &self.port.load_balancer_vips {
            if self.endpoints.any {
                let chain = if self.uses_firewall() { self.chains.firewall } else { self.chains.external };
                let comment = self.comment("", " loadbalancer IP");
                rules[NAT_SERVICES].push(self.to(vip, comment, Target::Jump(chain)));
            }
            if self.uses_firewall() {
                let comment = Match::Comment(Comment {
                    prefix: "",
                    subject: self.subject.clone(),
                    suffix: Suffix::Chain(" traffic not accepted by ", self.chains.firewall),
                });
                rules[FILTER_PROXY_FIREWALL].push(self.to(vip, comment, Target::Drop));
            }
            if !self.has_external() {
                rules[FILTER_EXTERNAL_SERVICES].push(self.refuse(vip));
            }
        }
    }

    fn node_port(&self, rules: &mut SharedRules) {
        let port = self.port.node_port;
        if port == 0 {
            return;
        }
        if self.endpoints.any {
            let rule = Rule {
                protocol: Some(self.protocol),
                matches: vec![self.comment("", ""), Match::DestinationPort(self.protocol, port)],
                target: Some(Target::Jump(self.chains.external)),
                ..Rule::default()
            };
            if self.settings.localhost_node_ports && self.settings.features.nfacct {
                let mut counted = rule.clone();
                counted.destination = Some(Negatable::new(self.settings.family.loopback()));
                counted.matches.push(Match::Account(LOCALHOST_NODE_PORTS_COUNTER));
                rules[NAT_NODE_PORTS].push(counted);
            }
            rules[NAT_NODE_PORTS].push(rule);
        }
        if !self.has_external() {
            let (comment, target) = self.refusal();
            rules[FILTER_EXTERNAL_SERVICES].push(Rule {
                protocol: Some(self.protocol),
                matches: vec![comment, Match::DestinationIsLocal, Match::DestinationPort(self.protocol, port)],
                target: Some(target),
                ..Rule::default()
            });
        }
    }

    /// The refusal of traffic without usable endpoints.
    ///
    /// Rejected where no endpoint exists at all, dropped where only this node has none, so that a load balancer tries
    /// another node and a client does not take it for a refusal.
    fn refusal(&self) -> (Match, Target) {
        if self.endpoints.any {
            (self.comment("", " has no local endpoints"), Target::Drop)
        } else {
            (self.comment("", " has no endpoints"), Target::Reject(self.settings.family))
        }
    }

    fn refuse(&self, ip: IpAddr) -> Rule {
        let (comment, target) = self.refusal();
        self.to(ip, comment, target)
    }

    fn to(&self, ip: IpAddr, comment: Match, target: Target) -> Rule {
        Rule {
            destination: Some(Negatable::new(IpNet::from(ip))),
            protocol: Some(self.protocol),
            matches: vec![comment, Match::DestinationPort(self.protocol, self.port.port)],
            target: Some(target),
            ..Rule::default()
        }
    }

    fn comment(&self, prefix: &'static str, suffix: &'static str) -> Match {
        Match::Comment(Comment { prefix, subject: self.subject.clone(), suffix: Suffix::Text(suffix) })
    }

    /// Passes the Service port's own chains to `write`, each complete.
    ///
    /// The order suits hashing, not jumps: declare all chains before the first rule.
    pub fn own(&mut self, mut write: impl FnMut(Chain, Vec<Rule>)) {
        if !self.endpoints.any {
            return;
        }
        let endpoint_chains = self.endpoint_chains(&mut write);
        self.policy_chain(self.chains.cluster, &self.endpoints.cluster, &endpoint_chains, &mut write);
        self.policy_chain(self.chains.local, &self.endpoints.local, &endpoint_chains, &mut write);
        if self.port.externally_accessible() {
            write(self.chains.external, self.external_rules());
        }
        if self.uses_firewall() {
            write(self.chains.firewall, self.firewall_rules());
        }
    }

    /// KUBE-SEP-*: hairpin, affinity, DNAT. Returns the names in the order of the reachable endpoints.
    fn endpoint_chains(&mut self, write: &mut impl FnMut(Chain, Vec<Rule>)) -> Vec<Chain> {
        let mut chains = Vec::with_capacity(self.endpoints.reachable.len());
        for endpoint in &self.endpoints.reachable {
            let chain = self.namer.endpoint(endpoint.address);
            let comment = self.comments.then(|| self.comment("", ""));
            let hairpin = Rule {
                source: Some(Negatable::new(IpNet::from(endpoint.address.ip()))),
                matches: comment.clone().into_iter().collect(),
                target: Some(Target::Jump(names::MARK_MASQ)),
                ..Rule::default()
            };
            let mut matches = Vec::with_capacity(3);
            matches.extend(comment);
            if self.port.affinity_seconds.is_some() {
                matches.push(Match::RememberSource { list: chain, family: self.settings.family });
            }
            matches.push(Match::Transport(self.protocol));
            let dnat = Rule {
                protocol: Some(self.protocol),
                matches,
                target: Some(Target::Dnat(endpoint.address)),
                ..Rule::default()
            };
            write(chain, vec![hairpin, dnat]);
            chains.push(chain);
        }
        chains
    }

    /// KUBE-SVC-* or KUBE-SVL-*: masquerade mark, session affinity, and a uniform random choice.
    fn policy_chain(
        &self,
        chain: Chain,
        endpoints: &[&crate::model::Endpoint],
        endpoint_chains: &[Chain],
        write: &mut impl FnMut(Chain, Vec<Rule>),
    ) {
        if endpoints.is_empty() {
            return;
        }
        let mut rules = Vec::with_capacity(endpoints.len() + 1);
        if self.has_internal() && chain == self.internal_chain() {
            rules.extend(self.masquerade_to_cluster_ip());
        }
        // Both lists are subsequences of `reachable`.
        let mut rest = self.endpoints.reachable.iter().zip(endpoint_chains);
        let targets: Vec<_> = endpoints
            .iter()
            .filter_map(|endpoint| {
                rest.find(|(e, _)| std::ptr::eq(**e, *endpoint)).map(|(e, chain)| (e.address, *chain))
            })
            .collect();
        let comment = |address| {
            self.comments.then(|| {
                let suffix = Suffix::Endpoint(address);
                Match::Comment(Comment { prefix: "", subject: self.subject.clone(), suffix })
            })
        };
        if let Some(seconds) = self.port.affinity_seconds {
            rules.extend(targets.iter().map(|&(address, list)| {
                let mut matches: Vec<_> = comment(address).into_iter().collect();
                matches.push(Match::RecentlySeen { list, seconds, family: self.settings.family });
                Rule { matches, target: Some(Target::Jump(list)), ..Rule::default() }
            }));
        }
        let count = u32::try_from(targets.len()).unwrap_or(u32::MAX);
        rules.extend(targets.iter().zip((1..=count).rev()).map(|(&(address, endpoint_chain), left)| {
            let mut matches = Vec::with_capacity(2);
            matches.extend(comment(address));
            if left > 1 {
                matches.push(Match::OneIn(left));
            }
            Rule { matches, target: Some(Target::Jump(endpoint_chain)), ..Rule::default() }
        }));
        write(chain, rules);
    }

    /// Masquerades traffic to the cluster IP from outside this node's pods.
    ///
    /// Otherwise replies may bypass this node.
    fn masquerade_to_cluster_ip(&self) -> Option<Rule> {
        let mark = Target::Jump(names::MARK_MASQ);
        let mut rule = self.to(self.port.cluster_ip, self.comment("", " cluster IP"), mark);
        if !self.settings.masquerade_all {
            from_local_traffic(&mut rule, self.settings.local_traffic.as_ref()?, true);
        }
        Some(rule)
    }

    /// KUBE-EXT-*: traffic to external addresses.
    fn external_rules(&self) -> Vec<Rule> {
        let rule = |prefix, to| Rule {
            matches: vec![self.comment(prefix, " external destinations")],
            target: Some(Target::Jump(to)),
            ..Rule::default()
        };
        let mut rules = Vec::with_capacity(4);
        if self.port.external_local {
            // Traffic from this node is treated as if it came back through a load balancer.
            if let Some(local) = &self.settings.local_traffic {
                let mut pods = rule("pod traffic for ", self.chains.cluster);
                from_local_traffic(&mut pods, local, false);
                rules.push(pods);
            }
            for (prefix, to) in
                [("masquerade LOCAL traffic for ", names::MARK_MASQ), ("route LOCAL traffic for ", self.chains.cluster)]
            {
                let mut host = rule(prefix, to);
                host.matches.push(Match::SourceIsLocal);
                rules.push(host);
            }
        } else {
            rules.push(rule("masquerade traffic for ", names::MARK_MASQ));
        }
        if self.has_external() {
            let policy_chain = if self.port.external_local { self.chains.local } else { self.chains.cluster };
            rules.push(Rule { target: Some(Target::Jump(policy_chain)), ..Rule::default() });
        }
        rules
    }

    /// KUBE-FW-*: the source ranges of load balancer addresses. Packets that return from here are dropped in filter.
    fn firewall_rules(&self) -> Vec<Rule> {
        let allow = |source: IpNet| Rule {
            source: Some(Negatable::new(source)),
            matches: vec![self.comment("", " loadbalancer IP")],
            target: Some(Target::Jump(self.chains.external)),
            ..Rule::default()
        };
        let mut rules: Vec<_> = self.port.source_ranges.iter().copied().map(allow).collect();
        // A VIP is often a local address too: this node's own packets to it then have it as source.
        if self.port.source_ranges.iter().any(|range| range.contains(&self.settings.node_ip)) {
            rules.extend(self.port.load_balancer_vips.iter().map(|&vip| allow(IpNet::from(vip))));
        }
        rules.push(Rule {
            matches: vec![self.comment("other traffic to ", " will be dropped by KUBE-PROXY-FIREWALL")],
            ..Rule::default()
        });
        rules
    }
}
