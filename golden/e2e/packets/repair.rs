//! Rules removed by another program: they are restored without a change of objects, and traffic works again.

use std::time::Duration;

use golden::cluster::Protocol::Tcp;
use golden::cluster::{Cluster, FAR_5, Family, NODE, POD_5, POD_9, SavedRules, Service, becomes_true, ready};
use serde_json::json;

const NODE_PORT: u16 = 30080;
/// The timeout for a repair.
///
/// The proxy checks every second but uses at most one hundredth of a CPU: where a check takes 100 ms, as on a busy
/// machine, a second repair waits for ten seconds.
const REPAIR: Duration = Duration::from_secs(30);

fn running(cluster: Cluster) -> (Cluster, Service) {
    let web = Service::new("web", 80).node_port(NODE_PORT).endpoints([ready(POD_5), ready(FAR_5)]);
    // An empty one, so that the filter table has a rule to lose.
    let empty = Service::new("empty", 81);
    let quick = json!({ "syncPeriod": "1s", "minSyncPeriod": "100ms" });
    (cluster.configured("iptables", quick).running(&[web.clone(), empty]), web)
}

/// The rules are as they were after `damage`, which is one iptables command for each family.
fn comes_back(cluster: &Cluster, web: &Service, damage: impl Fn(&SavedRules, &SavedRules) -> String) {
    let state = |family| ["nat", "filter"].map(|table| cluster.rules(family, table));
    let before = Family::BOTH.map(state);
    for (family, [nat, filter]) in Family::BOTH.into_iter().zip(&before) {
        cluster.iptables(family, &damage(nat, filter));
    }
    let mut now = before.clone();
    let repaired = becomes_true(REPAIR, || {
        now = Family::BOTH.map(state);
        now == before
    });
    let lost: Vec<_> =
        before.iter().flatten().zip(now.iter().flatten()).map(|(was, is)| was.missing_from(is)).collect();
    assert!(repaired, "still not as before after {REPAIR:?}; missing, or else in another order: {lost:#?}");
    for family in Family::BOTH {
        let _ = cluster.pod(POD_9).reach(Tcp, web.address(family));
        let _ = cluster.outside().reach(Tcp, NODE.at(family, NODE_PORT));
    }
}

pub(super) fn an_emptied_chain_comes_back(cluster: Cluster) {
    let (cluster, web) = running(cluster);
    comes_back(&cluster, &web, |nat, _| {
        let chains = nat.chains_with("KUBE-SVC-", &web.full_name());
        assert_eq!(chains.len(), 1, "{}", nat.text());
        format!("-t nat -F {}", chains[0])
    });
}

pub(super) fn a_removed_rule_comes_back(cluster: Cluster) {
    let (cluster, web) = running(cluster);
    comes_back(&cluster, &web, |nat, _| {
        let mut rules = nat.of("KUBE-SERVICES").iter();
        let at = rules.position(|rule| rule.contains(&web.full_name())).expect("a rule for the cluster IP");
        format!("-t nat -D KUBE-SERVICES {}", at + 1)
    });
}

pub(super) fn a_removed_translation_comes_back(cluster: Cluster) {
    let (cluster, web) = running(cluster);
    // Twice: a repair must not make the proxy forget to look.
    for nth in [0, 1] {
        comes_back(&cluster, &web, |nat, _| {
            let chains = nat.chains_with("KUBE-SEP-", &web.full_name());
            assert_eq!(chains.len(), 2, "{}", nat.text());
            format!("-t nat -D {} 2", chains[nth])
        });
    }
}

pub(super) fn a_removed_jump_comes_back(cluster: Cluster) {
    let (cluster, web) = running(cluster);
    comes_back(&cluster, &web, |nat, _| {
        let rules = nat.of("PREROUTING");
        assert_eq!(rules.len(), 1, "{rules:?}");
        "-t nat -D PREROUTING 1".to_owned()
    });
}

pub(super) fn a_flushed_nat_table_comes_back(cluster: Cluster) {
    let (cluster, web) = running(cluster);
    let mut session = cluster.pod(POD_9).session(web.address(Family::V4));
    comes_back(&cluster, &web, |_, _| "-t nat -F".to_owned());
    session.still_works();
}

pub(super) fn a_flushed_filter_table_comes_back(cluster: Cluster) {
    let (cluster, web) = running(cluster);
    comes_back(&cluster, &web, |_, filter| {
        assert!(filter.mention("default/empty"), "{}", filter.text());
        "-t filter -F".to_owned()
    });
}

/// Whatever is done to nftables mode's table, in both families, it is soon the very same again.
pub(super) fn a_damaged_table_comes_back(cluster: Cluster) {
    let web = Service::new("web", 80).node_port(NODE_PORT).endpoints([ready(POD_5), ready(FAR_5)]);
    let quick = json!({ "syncPeriod": "1s", "minSyncPeriod": "100ms" });
    let cluster = cluster.configured("nftables", quick).running(&[web.clone(), Service::new("empty", 81)]);
    let table = |family| cluster.table_parts(family);
    let before = Family::BOTH.map(table);
    let damages = |family: Family| {
        let table = if family == Family::V4 { "ip kube-proxy" } else { "ip6 kube-proxy" };
        let ip = web.address(family).ip();
        [
            format!("flush chain {table} nat-prerouting"),
            format!("delete element {table} service-ips {{ {ip} . tcp . 80 }}"),
            format!("delete element {table} endpoints {{ {ip} . tcp . 80 . 1 }}"),
            format!("flush set {table} cluster-ips"),
            format!("insert rule {table} services drop"),
            format!("add element {table} cluster-ips {{ {} }}", NODE.of(family)),
            "flush ruleset".to_owned(),
        ]
    };
    for [v4, v6] in damages(Family::V4).into_iter().zip(damages(Family::V6)).map(|(v4, v6)| [v4, v6]) {
        for damage in [&v4, &v6] {
            let _ = cluster.on_node(&format!("nft {damage}"));
        }
        let repaired = becomes_true(REPAIR, || Family::BOTH.map(table) == before);
        assert!(repaired, "{v4}: still not as before after {REPAIR:?}: {:#?}", Family::BOTH.map(table));
    }
    for family in Family::BOTH {
        let _ = cluster.pod(POD_9).reach(Tcp, web.address(family));
        let _ = cluster.outside().reach(Tcp, NODE.at(family, NODE_PORT));
    }
}
