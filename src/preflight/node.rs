//! The facts of a node that decide how it will behave in nftables mode.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netfilter::IpFamily;
use netfilter::nft::{Name, ruleset as nft};
use proxier::iptables::{INVALID_DROPPED_COUNTER, LOCALHOST_NODE_PORTS_COUNTER};
use proxier::model::{Mode, NodeInfo, ServicePort, ServicePortName};
use proxier_inspect::neighbours::owner;
use proxier_inspect::node::facts::Facts;
use proxier_inspect::node::readiness::{self, NftablesSupport};
use proxier_inspect::node::{FamilyRules, Unread};
use proxier_inspect::rules::{Rule, Ruleset};

use super::forward::ForwardCheck;
use crate::config::ValidatedConfig;
use crate::inspect::NodeInspection;

/// What a node is like, as far as it could be read.
#[derive(Clone, Debug)]
pub struct NodeState {
    /// The mode of the rules in the kernel, or else of the configuration.
    pub mode: Mode,
    /// The configuration of the proxy.
    pub settings: ValidatedConfig,
    /// What that configuration means in nftables mode, if it can be read and is valid there.
    pub in_nftables_mode: Option<ValidatedConfig>,
    /// The Node.
    pub node: NodeInfo,
    /// The Service ports by family; `None` without a source of objects.
    pub ports: Option<BTreeMap<IpFamily, BTreeMap<ServicePortName, ServicePort>>>,
    /// The node's addresses, without those of virtual servers.
    pub addresses: Vec<IpAddr>,
    /// Why the kernel cannot run nftables mode, by family.
    pub lacking: BTreeMap<IpFamily, String>,
    /// Forwarded packets that the firewall will refuse and does not now, with what refuses them.
    pub forward_drops: Vec<String>,
    /// Rules of other programs that jump to chains of iptables mode, with family and table.
    pub foreign_jumps: Vec<String>,
    /// Programs that have chains in iptables; without kube-proxy, whose chains go, and the kubelet.
    pub iptables_users: BTreeSet<&'static str>,
    /// Packets to node ports at loopback addresses, if iptables mode has counted them.
    pub localhost_packets: Option<u64>,
    /// Packets that iptables mode has dropped for their conntrack state.
    pub invalid_packets: Option<u64>,
    /// Whether `nf_conntrack_tcp_be_liberal` is set.
    pub liberal: bool,
}

impl NodeState {
    /// Collects the facts, and adds what cannot be read to those of `inspection`.
    pub fn of(inspection: &mut NodeInspection, in_nftables_mode: Result<ValidatedConfig, String>) -> Self {
        let facts = Facts::of(&inspection.rules);
        let NftablesSupport { lacking, mut unread } = NftablesSupport::of_kernel();
        let invalid = |why| Unread::new("the configuration in nftables mode", why);
        let in_nftables_mode = in_nftables_mode.map_err(|why| unread.push(invalid(why))).ok();
        let counters = readiness::nfacct_packets().map_err(|why| unread.push(why)).unwrap_or_default();
        let rules = &inspection.rules;
        let mode = rules.mode().and_then(|mode| mode.parse().ok()).unwrap_or(inspection.settings.mode);
        let addresses = rules.families.iter().flat_map(|family| match &family.held {
            Some(held) => held.node_addresses(&family.addresses),
            None => family.addresses.clone(),
        });
        let ForwardCheck { refused, unread: undecided } = ForwardCheck::of(inspection, mode, &facts);
        unread.extend(undecided);
        let rulesets = || rules.families.iter().map(|family| &family.ruleset);
        let ports = inspection.objects.as_ref().map(|objects| {
            let of = |(family, tracker): (&IpFamily, &proxier::track::Tracker)| {
                let snapshot = tracker.snapshot(family.localhost());
                (*family, snapshot.ports.clone())
            };
            objects.iter().map(of).collect()
        });
        let first = inspection.objects.as_ref().and_then(|objects| objects.values().next());
        let state = Self {
            mode,
            settings: inspection.settings.clone(),
            in_nftables_mode,
            node: first.map(|tracker| tracker.node().clone()).unwrap_or_default(),
            ports,
            addresses: addresses.collect(),
            lacking,
            forward_drops: refused,
            foreign_jumps: rules.families.iter().flat_map(foreign_jumps).collect(),
            iptables_users: rulesets().flat_map(iptables_users).collect(),
            localhost_packets: counters.get(LOCALHOST_NODE_PORTS_COUNTER).copied(),
            invalid_packets: counters.get(INVALID_DROPPED_COUNTER).copied(),
            liberal: facts.sysctls.get("net/netfilter/nf_conntrack_tcp_be_liberal").is_some_and(|value| *value != 0),
        };
        inspection.unread.extend(unread);
        state
    }
}

fn chains(ruleset: &Ruleset) -> impl Iterator<Item = (&str, &str)> {
    ruleset.tables().flat_map(|table| ruleset.chains(table).map(move |(chain, _)| (table, chain)))
}

/// The programs of other chains than kube-proxy's, which nftables mode removes, and the kubelet's.
fn iptables_users(ruleset: &Ruleset) -> impl Iterator<Item = &'static str> {
    let owners = chains(ruleset).filter_map(|(_, chain)| owner(chain));
    owners.filter(|owner| !["kube-proxy", "kubelet"].contains(owner))
}

/// Whether a chain is kube-proxy's. The kubelet and kube-router have chains with such names too, which stay.
pub fn is_of_proxy(chain: &str) -> bool {
    owner(chain) == Some("kube-proxy")
}

/// Rules of other programs that jump to chains of iptables or IPVS mode, from any chain.
fn foreign_jumps(rules: &FamilyRules) -> Vec<String> {
    let ruleset = &rules.ruleset;
    let others = chains(ruleset).filter(|(_, chain)| !is_of_proxy(chain));
    let leading = others.flat_map(|(table, chain)| {
        let rules = ruleset.chain(table, chain).map_or(&[][..], |chain| &chain.rules);
        rules.iter().filter(move |rule| is_foreign_jump(chain, rule)).map(move |rule| (table, rule))
    });
    let texts = leading.map(|(table, rule)| format!("{} {table}: {}", ruleset.family(), rule.text));
    texts.chain(foreign_base_jumps(&rules.nftables)).collect()
}

/// The built-in chains of iptables.
const BUILT_IN: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];

/// Whether another program's rule in a chain jumps to a chain of the proxy. The proxy's own jumps from built-in chains
/// have a comment that begins with `kubernetes`, in every mode and version.
fn is_foreign_jump(chain: &str, rule: &Rule) -> bool {
    let is_own = BUILT_IN.contains(&chain) && rule.text.contains("--comment \"kubernetes ");
    !is_own && rule.jump_target().is_some_and(is_of_proxy)
}

/// The same from base chains that other programs put into tables of iptables, which iptables does not show.
fn foreign_base_jumps(tables: &nft::Ruleset) -> Vec<String> {
    let of_iptables = tables.tables.iter().filter(|(id, _)| id.is_of_iptables());
    let mut found = Vec::new();
    for (id, table) in of_iptables {
        let foreign = |(name, chain): &(&Name, &nft::Chain)| chain.base.is_some() && !chain.is_of_iptables(name);
        for (name, chain) in table.chains.iter().filter(foreign) {
            let rules = chain.rules.iter().flatten();
            let leading = rules.filter(|rule| rule.jump_target().is_some_and(|to| is_of_proxy(to)));
            found.extend(leading.map(|rule| format!("{id} {name}: {}", rule.text(id, table))));
        }
    }
    found
}
