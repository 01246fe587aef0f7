//! The iptables rules of IPVS mode. They match ipsets, so Services change without rule changes.
//!
//! Rules, their order and their comments are those of kube-proxy 1.36.

use std::sync::Arc;

use ipnet::IpNet;
use netfilter::iptables::{Chain, Comment, Match, Negatable, Rule, Suffix, Table, Target};
use netfilter::ipvs::ServerKey;

use super::names::{IPVS_FILTER, IPVS_OUT_FILTER, LOAD_BALANCER, NODE_PORT, SOURCE_RANGES_FIREWALL, SetId};
use super::settings::IpvsSettings;
use crate::xtables::masquerade::{self, comment, from_local_traffic, target};
use crate::xtables::{FORWARD, Jump, MARK_MASQ, POSTROUTING, PROXY_FIREWALL, SERVICES};

/// The set directions: destination port or address; destination address and port; the same and the source.
const DESTINATION: &str = "dst";
const ADDRESS_AND_PORT: &str = "dst,dst";
const FROM: &str = "dst,dst,src";

/// All jumps, in the order of insertion at the head of their chains: the last one ends up first.
#[must_use]
pub fn jumps() -> Vec<Jump> {
    const PORTALS: &str = "kubernetes service portals";
    const FIREWALL: &str = "kube-proxy firewall rules";
    const ACCESS: &str = "kubernetes ipvs access filter";
    let jump = |table, from, to, text| Jump::new(table, from, to, vec![comment(text)]);
    vec![
        jump(Table::Nat, "OUTPUT", SERVICES, PORTALS),
        jump(Table::Nat, "PREROUTING", SERVICES, PORTALS),
        jump(Table::Nat, "POSTROUTING", POSTROUTING, "kubernetes postrouting rules"),
        jump(Table::Filter, "FORWARD", FORWARD, "kubernetes forwarding rules"),
        jump(Table::Filter, "INPUT", NODE_PORT, "kubernetes health check rules"),
        jump(Table::Filter, "INPUT", PROXY_FIREWALL, FIREWALL),
        jump(Table::Filter, "FORWARD", PROXY_FIREWALL, FIREWALL),
        jump(Table::Filter, "INPUT", IPVS_FILTER, ACCESS),
        jump(Table::Filter, "OUTPUT", IPVS_OUT_FILTER, ACCESS),
    ]
}

/// The chains of the mode.
pub const CHAINS: [(Table, Chain); 11] = [
    (Table::Nat, SERVICES),
    (Table::Nat, POSTROUTING),
    (Table::Nat, NODE_PORT),
    (Table::Nat, LOAD_BALANCER),
    (Table::Nat, MARK_MASQ),
    (Table::Filter, FORWARD),
    (Table::Filter, NODE_PORT),
    (Table::Filter, PROXY_FIREWALL),
    (Table::Filter, SOURCE_RANGES_FIREWALL),
    (Table::Filter, IPVS_FILTER),
    (Table::Filter, IPVS_OUT_FILTER),
];

/// The chains that built-in chains jump to; only [`jumps`] refer to them.
pub static ENTRY_CHAINS: [(Table, &[Chain]); 2] = [
    (Table::Nat, &[SERVICES, POSTROUTING]),
    (Table::Filter, &[FORWARD, NODE_PORT, PROXY_FIREWALL, IPVS_FILTER, IPVS_OUT_FILTER]),
];

/// Renders the chains.
#[derive(Debug)]
pub struct ChainRenderer<'a, F, G> {
    /// The settings.
    pub settings: &'a IpvsSettings,
    /// Whether a set has entries.
    pub used: F,
    /// Whether rules may match a set: not if a foreign set of another type has its name.
    pub usable: G,
}

impl<F: Fn(SetId) -> bool, G: Fn(SetId) -> bool> ChainRenderer<'_, F, G> {
    /// The rules of one of [`CHAINS`], except KUBE-IPVS-OUT-FILTER.
    #[must_use]
    pub fn of(&self, table: Table, chain: Chain) -> Vec<Rule> {
        let mark = self.settings.masquerade_mark;
        match (table, chain) {
            (Table::Nat, SERVICES) => self.services(),
            (Table::Nat, POSTROUTING) => {
                let hairpin = self.when_used(SetId::LoopBack, FROM, Target::Masquerade { random_fully: false });
                let rest = masquerade::postrouting(mark, self.settings.random_fully);
                hairpin.into_iter().chain(rest).collect()
            }
            (Table::Nat, NODE_PORT) => self.node_port(),
            (Table::Nat, LOAD_BALANCER) => {
                let local = self.when_used(SetId::LoadBalancerLocal, ADDRESS_AND_PORT, Target::Return);
                local.into_iter().chain([target(Target::Jump(MARK_MASQ))]).collect()
            }
            (Table::Nat, MARK_MASQ) => vec![masquerade::mark(mark)],
            (Table::Filter, FORWARD) => masquerade::forward(mark).into(),
            (Table::Filter, NODE_PORT) => {
                let id = SetId::HealthCheckNodePort;
                (self.usable)(id).then(|| self.commented(id, DESTINATION, Target::Accept)).into_iter().collect()
            }
            (Table::Filter, PROXY_FIREWALL) => {
                let jump = Target::Jump(SOURCE_RANGES_FIREWALL);
                self.when_used(SetId::LoadBalancerFirewall, ADDRESS_AND_PORT, jump).into_iter().collect()
            }
            (Table::Filter, SOURCE_RANGES_FIREWALL) => {
                let sets = [SetId::LoadBalancerSourceCidr, SetId::LoadBalancerSourceIp];
                let allowed = sets.into_iter().filter_map(|id| self.when_used(id, FROM, Target::Return));
                let counted = self.counted(SetId::RefusedSources, ADDRESS_AND_PORT);
                allowed.chain(counted).chain([target(Target::Drop)]).collect()
            }
            (Table::Filter, IPVS_FILTER) => self.ipvs_filter(),
            _ => Vec::new(),
        }
    }

    fn set(&self, id: SetId, directions: &'static str) -> Match {
        Match::Set { name: id.name(self.settings.family), directions }
    }

    fn commented(&self, id: SetId, directions: &'static str, to: Target) -> Rule {
        Rule { matches: vec![about(id), self.set(id, directions)], ..target(to) }
    }

    fn bare(&self, id: SetId, directions: &'static str, to: Target) -> Rule {
        Rule { matches: vec![self.set(id, directions)], ..target(to) }
    }

    fn when_used(&self, id: SetId, directions: &'static str, to: Target) -> Option<Rule> {
        (self.used)(id).then(|| self.commented(id, directions, to))
    }

    /// Counts packets in the entries of a set.
    fn counted(&self, id: SetId, directions: &'static str) -> Option<Rule> {
        let matches = vec![about(id), self.set(id, directions)];
        (self.used)(id).then(|| Rule { matches, ..Rule::default() })
    }

    fn services(&self) -> Vec<Rule> {
        let loopback = Negatable::new(self.settings.family.loopback());
        let mut rules = vec![Rule { source: Some(loopback), ..target(Target::Return) }];
        // IPVS itself counts only packets that it sends somewhere.
        let refused = [SetId::RefusedNoEndpoints, SetId::RefusedNoLocalEndpoints];
        rules.extend(refused.into_iter().filter_map(|id| self.counted(id, ADDRESS_AND_PORT)));
        rules.extend(self.when_used(SetId::LoadBalancer, ADDRESS_AND_PORT, Target::Jump(LOAD_BALANCER)));
        if (self.used)(SetId::ClusterIp) {
            rules.push(self.masquerade_to_cluster_ips());
        }
        for (id, masqueraded) in [(SetId::ExternalIp, true), (SetId::ExternalIpLocal, false)] {
            if (self.used)(id) {
                if masqueraded {
                    rules.push(self.commented(id, ADDRESS_AND_PORT, Target::Jump(MARK_MASQ)));
                }
                rules.extend(self.external_ips(id));
            }
        }
        let local = Rule { matches: vec![Match::DestinationIsLocal], ..target(Target::Jump(NODE_PORT)) };
        rules.push(local);
        // Accept, so that no later rule of another program redirects Service traffic.
        for id in [SetId::ClusterIp, SetId::LoadBalancer] {
            if (self.used)(id) {
                rules.push(self.bare(id, ADDRESS_AND_PORT, Target::Accept));
            }
        }
        rules
    }

    /// Masquerades traffic to cluster IPs from outside this node's pods.
    ///
    /// Otherwise replies may bypass this node.
    fn masquerade_to_cluster_ips(&self) -> Rule {
        let mark = Target::Jump(MARK_MASQ);
        match &self.settings.local_traffic {
            Some(local) if !self.settings.masquerade_all => {
                let mut rule = self.commented(SetId::ClusterIp, ADDRESS_AND_PORT, mark);
                from_local_traffic(&mut rule, local, true);
                rule
            }
            // The host's own packets to a cluster IP have a cluster IP as source, because the device has them all.
            None if !self.settings.masquerade_all => self.commented(SetId::ClusterIp, "src,dst", mark),
            _ => self.commented(SetId::ClusterIp, ADDRESS_AND_PORT, mark),
        }
    }

    /// Accepts traffic from outside, and traffic to an external IP that is a local address.
    fn external_ips(&self, id: SetId) -> [Rule; 2] {
        let accept = |more: &[Match]| {
            let mut rule = self.commented(id, ADDRESS_AND_PORT, Target::Accept);
            rule.matches.extend_from_slice(more);
            rule
        };
        [accept(&[Match::NotFromBridge, Match::SourceIsNotLocal]), accept(&[Match::DestinationIsLocal])]
    }

    fn node_port(&self) -> Vec<Rule> {
        let sets = [
            ("tcp", DESTINATION, SetId::NodePortLocalTcp, SetId::NodePortTcp),
            ("udp", DESTINATION, SetId::NodePortLocalUdp, SetId::NodePortUdp),
            ("sctp", ADDRESS_AND_PORT, SetId::NodePortLocalSctp, SetId::NodePortSctp),
        ];
        let rules = sets.into_iter().flat_map(|(protocol, directions, local, all)| {
            let targets = [(local, Target::Return), (all, Target::Jump(MARK_MASQ))];
            targets.map(|(id, to)| {
                self.when_used(id, directions, to).map(|rule| Rule { protocol: Some(protocol), ..rule })
            })
        });
        rules.flatten().collect()
    }

    fn ipvs_filter(&self) -> Vec<Rule> {
        let services = [SetId::LoadBalancer, SetId::ClusterIp, SetId::ExternalIp, SetId::ExternalIpLocal];
        let usable = |id: &SetId| (self.usable)(*id);
        if !usable(&SetId::BoundIps) {
            return Vec::new();
        }
        let services = services.into_iter().filter(usable);
        let mut rules: Vec<Rule> = services.map(|id| self.bare(id, ADDRESS_AND_PORT, Target::Return)).collect();
        let health_check = Some(SetId::HealthCheckNodePort).filter(usable);
        rules.extend(health_check.map(|id| self.bare(id, DESTINATION, Target::Return)));
        let new = Match::CtState(Negatable::new("NEW"));
        if let Some(mut counted) = self.counted(SetId::RefusedPorts, DESTINATION) {
            counted.matches.insert(1, new.clone());
            rules.push(counted);
        }
        let mut reject = self.bare(SetId::BoundIps, DESTINATION, Target::Reject(self.settings.family));
        reject.matches.insert(0, new);
        rules.push(reject);
        rules
    }
}

/// Drops the host's packets to a load balancer whose source ranges exclude it.
///
/// Their source is the VIP itself.
#[must_use]
pub fn bar(server: ServerKey) -> Rule {
    Rule {
        source: Some(Negatable::new(IpNet::from(server.address.ip()))),
        matches: vec![Match::Ipvs { protocol: server.protocol, address: server.address }],
        ..target(Target::Drop)
    }
}

fn about(id: SetId) -> Match {
    Match::Comment(Comment { prefix: "", subject: Arc::from(id.comment()), suffix: Suffix::Text("") })
}
