//! The nftables tables of other kube-proxy releases, derived from one of 1.36.

use super::table::numbered;
use super::{ListedChain, ListedTable};

/// The table of 1.31 and 1.32: other base chains and priorities, a mark chain, and no hairpin connections.
#[must_use]
pub fn before_1_33(table: &ListedTable) -> ListedTable {
    let mut table = table.clone();
    let base = |hook: &str, priority: &str, rules: &[&str]| ListedChain {
        base: Some(numbered(&format!("type filter hook {hook} priority {priority}; policy accept;"))),
        comment: None,
        rules: rules.iter().map(|chain| format!("ct state new jump {chain}")).collect(),
    };
    table.chains.retain(|name, _| !name.ends_with("-pre-dnat"));
    let (services, cluster_ips, firewall) = ("service-endpoints-check", "cluster-ips-check", "firewall-check");
    let bases = [
        ("filter-prerouting", base("prerouting", "dstnat - 10", &[firewall])),
        ("filter-input", base("input", "-110", &["nodeport-endpoints-check", services])),
        ("filter-forward", base("forward", "-110", &[services, cluster_ips])),
        ("filter-output", base("output", "-110", &[services, firewall])),
        ("filter-output-post-dnat", base("output", "-90", &[cluster_ips])),
    ];
    table.chains.extend(bases.map(|(name, chain)| (name.to_owned(), chain)));
    let plain = |rules: &[&str]| ListedChain {
        rules: rules.iter().map(|rule| (*rule).to_owned()).collect(),
        ..ListedChain::default()
    };
    let marks = plain(&["meta mark set meta mark | 0x00004000"]);
    let masquerades = plain(&[
        "meta mark & 0x00004000 == 0x00000000 return",
        "meta mark set meta mark ^ 0x00004000",
        "masquerade fully-random",
    ]);
    table.chains.insert("mark-for-masquerade".to_owned(), marks);
    table.chains.insert("masquerading".to_owned(), masquerades);
    table.sets.remove("hairpin-connections");
    table
}
