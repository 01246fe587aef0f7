//! Other programs' chains on the node, in the order in which packets meet them.
//!
//! Also reports table sizes and kube-proxy's canary chains. This module covers iptables, `nftables` the tables of
//! nf_tables.

pub mod nftables;

use serde::Serialize;

use super::rules::{Policy, Rule, Ruleset};

/// Prefixes of chain names, with their owners. The first match counts.
const OWNERS: [(&str, &str); 33] = [
    ("KUBE-KUBELET-CANARY", "kubelet"),
    ("KUBE-IPTABLES-HINT", "kubelet"),
    ("KUBE-FIREWALL", "kubelet"),
    ("KUBE-ROUTER-", "kube-router"),
    ("KUBE-NWPLCY-", "kube-router"),
    ("KUBE-POD-FW-", "kube-router"),
    ("KUBE-IPVS", "kube-proxy"),
    ("KUBE-", "kube-proxy"),
    ("cali-", "Calico"),
    ("felix-", "Calico"),
    ("CILIUM_", "Cilium"),
    ("OLD_CILIUM_", "Cilium"),
    ("FLANNEL-", "flannel"),
    ("WEAVE", "Weave Net"),
    ("ANTREA-", "Antrea"),
    ("OVN-KUBE-", "OVN-Kubernetes"),
    ("AWS-", "AWS VPC CNI"),
    ("AZURE-NPM", "Azure NPM"),
    ("IP-MASQ", "ip-masq-agent"),
    ("CNI-", "CNI plugins"),
    ("ISTIO_", "Istio"),
    ("ts-", "Tailscale"),
    ("DOCKER", "Docker"),
    ("NETAVARK", "Podman"),
    ("LIBVIRT_", "libvirt"),
    ("ufw-", "ufw"),
    ("ufw6-", "ufw"),
    ("IN_", "firewalld"),
    ("FWD_", "firewalld"),
    ("f2b-", "fail2ban"),
    ("sshguard", "sshguard"),
    ("SUSHY", "Metal3"),
    ("neutron-", "OpenStack Neutron"),
];

/// The owner of a chain, by its name.
#[must_use]
pub fn owner(chain: &str) -> Option<&'static str> {
    OWNERS.iter().find(|(beginning, _)| chain.starts_with(beginning)).map(|(_, owner)| *owner)
}

/// The owners of a hook's rules, in the order in which packets meet them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hook {
    /// `IPv4` or `IPv6`.
    pub family: &'static str,
    /// The table.
    pub table: String,
    /// The built-in chain.
    pub hook: String,
    /// The owners, in order; an owner whose rules are interrupted by another appears again.
    pub order: Vec<String>,
    /// Whether the policy drops packets that no rule decides.
    pub drops: bool,
}

/// The size of a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TableSize {
    /// `IPv4` or `IPv6`.
    pub family: &'static str,
    /// The table.
    pub table: String,
    /// The number of chains.
    pub chains: usize,
    /// The number of rules.
    pub rules: usize,
    /// The number of named sets and maps; `None` for iptables.
    pub sets: Option<usize>,
    /// The number of their elements; `None` for iptables, or if they were not read.
    pub elements: Option<usize>,
    /// Whether kube-proxy's canary chain exists; `None` in nftables mode, which has none.
    pub canary: Option<bool>,
    /// Whether chains used only by other Services were not read; the numbers are then too small.
    pub read_in_part: bool,
}

/// The hooks that have rules or a policy other than ACCEPT.
#[must_use]
pub fn hooks(ruleset: &Ruleset) -> Vec<Hook> {
    let mut hooks = Vec::new();
    for table in ruleset.tables() {
        for (name, chain) in ruleset.chains(table) {
            let drops = chain.policy == Some(Policy::Drop);
            if chain.policy.is_none() || (chain.rules.is_empty() && !drops) {
                continue;
            }
            let mut order: Vec<String> = chain.rules.iter().map(|rule| owner_of(rule, ruleset)).collect();
            order.dedup();
            hooks.push(Hook {
                family: ruleset.family().name(),
                table: table.to_owned(),
                hook: name.to_owned(),
                order,
                drops,
            });
        }
    }
    hooks
}

fn owner_of(rule: &Rule, ruleset: &Ruleset) -> String {
    if let Some(owner) = rule.jump_target().and_then(owner) {
        return owner.to_owned();
    }
    let comment = rule.read(ruleset.family()).comment.unwrap_or_default();
    match (&*comment, rule.jump_target()) {
        (comment, _) if comment.contains("NodeLocal DNS Cache") => "node-local DNS".to_owned(),
        (comment, _) if comment.starts_with("cali:") => "Calico".to_owned(),
        (comment, _) if comment.starts_with("flanneld") => "flannel".to_owned(),
        (comment, _) if comment.to_lowercase().contains("cilium") => "Cilium".to_owned(),
        (_, Some(chain)) => format!("chain {chain}"),
        _ => "rules of no known owner".to_owned(),
    }
}

/// The sizes of the tables.
#[must_use]
pub fn sizes(ruleset: &Ruleset) -> Vec<TableSize> {
    let size = |table: &str| TableSize {
        family: ruleset.family().name(),
        table: table.to_owned(),
        chains: ruleset.chains(table).count(),
        rules: ruleset.chains(table).map(|(_, chain)| chain.rules.len()).sum(),
        sets: None,
        elements: None,
        canary: Some(ruleset.chain(table, "KUBE-PROXY-CANARY").is_some()),
        read_in_part: false,
    };
    ruleset.tables().map(size).collect()
}

/// Whether kube-proxy owns the chain; `drift` compares those.
fn is_own(chain: &str) -> bool {
    owner(chain) == Some("kube-proxy")
}

/// Rules of other programs that cannot be decided: chain, rule and reason.
#[must_use]
pub fn not_understood(ruleset: &Ruleset) -> Vec<(String, String, String)> {
    let mut found = Vec::new();
    for table in ruleset.tables() {
        for (name, chain) in ruleset.chains(table).filter(|(name, _)| !is_own(name)) {
            let of_kube = |rule: &Rule| rule.jump_target().is_some_and(is_own);
            for rule in chain.rules.iter().filter(|rule| !of_kube(rule)) {
                if let Some(problem) = rule.read(ruleset.family()).problem {
                    found.push((format!("{table} {name}"), rule.text.to_string(), problem));
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use netfilter::IpFamily;

    #[test]
    fn owners_are_named_in_the_order_in_which_packets_meet_them() {
        let text = "*filter\n:FORWARD DROP [0:0]\n:cali-FORWARD - [0:0]\n:KUBE-FORWARD - [0:0]\n:mine - [0:0]\n\
            -A FORWARD -m comment --comment \"cali:x\" -j cali-FORWARD\n-A FORWARD -j KUBE-FORWARD\n\
            -A FORWARD -m set --match-set x src -j KUBE-FORWARD\n-A FORWARD -j mine\n-A FORWARD -p tcp -j ACCEPT\nCOMMIT\n\
            *raw\n-A OUTPUT -d 169.254.20.10/32 -m comment --comment \"NodeLocal DNS Cache: skip conntrack\" -j CT --notrack\nCOMMIT\n";
        let mut ruleset = Ruleset::new(IpFamily::V4);
        assert_eq!(ruleset.read(text), []);
        let hooks = hooks(&ruleset);
        let order = ["Calico", "kube-proxy", "chain mine", "rules of no known owner"];
        assert_eq!((&*hooks[0].hook, hooks[0].drops, hooks[0].order.join(",")), ("FORWARD", true, order.join(",")));
        assert_eq!(hooks[1].order, ["node-local DNS"]);
        assert_eq!(sizes(&ruleset)[0].rules, 5);
        assert_eq!(not_understood(&ruleset), [], "KUBE- rules are looked at elsewhere");
    }
}
