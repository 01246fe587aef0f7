//! The facts of a node that decide how it will behave in nftables mode.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netfilter::IpFamily;
use proxier::iptables::{INVALID_DROPPED_COUNTER, LOCALHOST_NODE_PORTS_COUNTER};
use proxier::model::{Mode, NodeInfo, ServicePort, ServicePortName};
use proxier_inspect::neighbours::owner;
use proxier_inspect::rules::Ruleset;

use crate::config::ValidatedConfig;
use crate::inspect::facts::Facts;
use crate::inspect::{NodeInspection, readiness};

/// What a node is like, as far as it could be read.
#[derive(Clone, Debug)]
pub struct NodeState {
    /// The mode of the rules in the kernel, or else of the configuration.
    pub mode: Mode,
    /// The configuration of the proxy.
    pub settings: ValidatedConfig,
    /// The Node.
    pub node: NodeInfo,
    /// The Service ports by family; `None` without a source of objects.
    pub ports: Option<BTreeMap<IpFamily, BTreeMap<ServicePortName, ServicePort>>>,
    /// The node's addresses, without those of virtual servers.
    pub addresses: Vec<IpAddr>,
    /// Why families cannot run nftables mode.
    pub problems: BTreeMap<IpFamily, Option<String>>,
    /// Hooks for forwarded packets whose policy is to drop, as `IPv4 table filter`.
    pub forward_drops: Vec<String>,
    /// Rules of other programs that jump to chains of iptables mode, with family and table.
    pub foreign_jumps: Vec<String>,
    /// Programs that have chains in iptables.
    pub iptables_users: BTreeSet<&'static str>,
    /// Packets to node ports at loopback addresses, if iptables mode has counted them.
    pub localhost_packets: Option<u64>,
    /// Packets that iptables mode has dropped for their conntrack state.
    pub invalid_packets: Option<u64>,
    /// Whether `nf_conntrack_tcp_be_liberal` is set.
    pub liberal: bool,
}

impl NodeState {
    /// Collects the facts.
    pub fn of(inspection: &NodeInspection) -> Self {
        let facts = Facts::of(inspection);
        let counters = readiness::nfacct_packets();
        let rules = &inspection.rules;
        let mode = rules.mode().and_then(|mode| mode.parse().ok()).unwrap_or(inspection.settings.mode);
        let addresses = rules.families.iter().flat_map(|family| match &family.held {
            Some(held) => held.node_addresses(&family.addresses),
            None => family.addresses.clone(),
        });
        let rulesets = || rules.families.iter().map(|family| &family.ruleset);
        let drops = facts.hooks.iter().filter(|hook| hook.drops && hook.hook.eq_ignore_ascii_case("forward"));
        let ports = inspection.objects.as_ref().map(|objects| {
            let of = |(family, tracker): (&IpFamily, &proxier::track::Tracker)| {
                let snapshot = tracker.snapshot(family.localhost());
                (*family, snapshot.ports.clone())
            };
            objects.iter().map(of).collect()
        });
        let first = inspection.objects.as_ref().and_then(|objects| objects.values().next());
        Self {
            mode,
            settings: inspection.settings.clone(),
            node: first.map(|tracker| tracker.node().clone()).unwrap_or_default(),
            ports,
            addresses: addresses.collect(),
            problems: readiness::nftables_problems(),
            forward_drops: drops.map(|hook| format!("{} table {}", hook.family, hook.table)).collect(),
            foreign_jumps: rulesets().flat_map(foreign_jumps).collect(),
            iptables_users: rulesets().flat_map(chains).filter_map(|(_, chain)| owner(chain)).collect(),
            localhost_packets: counters.get(LOCALHOST_NODE_PORTS_COUNTER).copied(),
            invalid_packets: counters.get(INVALID_DROPPED_COUNTER).copied(),
            liberal: facts.sysctls.get("net/netfilter/nf_conntrack_tcp_be_liberal").is_some_and(|value| *value != 0),
        }
    }
}

fn chains(ruleset: &Ruleset) -> impl Iterator<Item = (&str, &str)> {
    ruleset.tables().flat_map(|table| ruleset.chains(table).map(move |(chain, _)| (table, chain)))
}

/// Whether a chain is kube-proxy's. The kubelet has chains with such names too, which stay.
fn is_of_proxy(chain: &str) -> bool {
    const KUBELET: [&str; 3] = ["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY", "KUBE-FIREWALL"];
    chain.starts_with("KUBE-") && !KUBELET.contains(&chain)
}

/// Rules of other programs that jump to chains of iptables or IPVS mode. The built-in chains' jumps are the proxy's own.
fn foreign_jumps(ruleset: &Ruleset) -> Vec<String> {
    const BUILT_IN: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
    let others = chains(ruleset).filter(|(_, chain)| !chain.starts_with("KUBE-") && !BUILT_IN.contains(chain));
    let rules = others.flat_map(|(table, chain)| {
        let rules = ruleset.chain(table, chain).map_or(&[][..], |chain| &chain.rules);
        rules.iter().map(move |rule| (table, rule))
    });
    let leading = rules.filter(|(_, rule)| rule.leads_to().is_some_and(is_of_proxy));
    leading.map(|(table, rule)| format!("{} {table}: {}", ruleset.family(), rule.text)).collect()
}
