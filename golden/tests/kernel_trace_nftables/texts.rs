//! Compares printed rules with `nft list`.

use golden::case::{Mode, cases};
use golden::probe::Node;
use netfilter::IpFamily;
use netfilter::kernel::NftReader;
use netfilter::nft::ruleset::TableId;
use proxier::nftables::is_kube_proxy;

use crate::{TELLING, ours};

/// The rules that `nft list` printed, in its order: lines of chains that are neither of their heads nor ends.
fn listed(text: &str) -> Vec<String> {
    let mut in_chain = false;
    let mut rules = Vec::new();
    for line in text.lines() {
        let words = line.trim();
        match words.split(' ').next().unwrap_or_default() {
            "chain" => in_chain = true,
            "}" => in_chain = false,
            "type" | "comment" => {}
            _ if in_chain => rules.push(words.to_owned()),
            _ => {}
        }
    }
    rules.sort();
    rules
}

#[test]
fn rules_are_printed_in_nft_syntax() {
    let node = Node::new();
    let mut compared = 0;
    for case in cases().into_iter().filter(|case| case.has(Mode::Nftables) && TELLING.contains(&&*case.name)) {
        for rules in [case.recorded_tables(0), ours(&case)] {
            node.clear();
            node.feed("nft", &["-f", "-"], &rules).unwrap();
            for family in IpFamily::ALL {
                let id = TableId::of(family, "kube-proxy");
                let (ruleset, _) = node.netns().enter(|| NftReader::new(family).read_all().unwrap());
                let Some(table) = ruleset.tables.get(&id) else { continue };
                assert!(is_kube_proxy(table, &id) && !table.is_iptables(&id));
                let rules = table.chains.values().flat_map(|chain| chain.rules.iter().flatten());
                let mut printed: Vec<String> = rules.map(|rule| rule.text(&id, table)).collect();
                printed.sort();
                let listed = listed(&node.netns().run(&format!("nft list table {id}")));
                // Long anonymous sets are abbreviated.
                let long = |text: &str| text.matches(" : ").count() > 3 || text.matches(", ").count() > 3;
                for (printed, listed) in printed.iter().filter(|t| !long(t)).zip(listed.iter().filter(|t| !long(t))) {
                    assert_eq!(printed, listed, "{}", case.name);
                    compared += 1;
                }
            }
        }
    }
    assert!(compared > 300, "{compared}");
}
