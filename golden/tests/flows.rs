//! Compares the flow tables with the recorded rules of kube-proxy, and checks that they detect missing rules.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use golden::case;
use golden::flows::{self, check_flows};
use regex::Regex;

/// The recorded rules of a case, IPv4 and IPv6.
fn recorded(case: &str) -> [String; 2] {
    ["00.iptables", "00.ip6tables"].map(|file| {
        let path = case::folder().join(case).join("expected/iptables").join(file);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    })
}

#[test]
fn every_flow_table_holds_on_the_recorded_rules() {
    let mut failures = Vec::new();
    let mut held = 0;
    let cases = flows::cases().unwrap();
    for case in &cases {
        let [v4, v6] = recorded(case);
        match check_flows(case, &v4, &v6) {
            Ok(flows) => held += flows,
            Err(error) => failures.push(error),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    println!("{held} flows of {} cases", cases.len());
    assert!(held > 500, "only {held} flows");
}

#[test]
fn tables_name_no_chain() {
    for case in flows::cases().unwrap() {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("flows/{case}.yaml"));
        assert!(!fs::read_to_string(&path).unwrap().contains("KUBE-"), "{case}");
    }
}

/// Cases with a rule of each kind among them.
const TELLING: [&str; 9] = [
    "003-clusterip-1-endpoint",
    "009-protocols-on-one-port",
    "101-nodeport-no-endpoints",
    "102-nodeport-protocols",
    "210-lb-source-ranges",
    "402-both-local",
    "501-affinity-external",
    "700-masquerade-all",
    "733-sync-periods",
];

/// What a rule is like, whatever service it is for.
fn kind(rule: &str) -> String {
    let kind = Regex::new("--comment (\"[^\"]*\"|[^ ]+)").unwrap().replace_all(rule, "");
    let kind = Regex::new("(KUBE-(SVC|SVL|EXT|SEP|FW))-[A-Z0-9]+").unwrap().replace_all(&kind, "$1");
    Regex::new("[0-9a-f:.]*[0-9][0-9a-f:.]*(/[0-9]+)?( |$)").unwrap().replace_all(&kind, "N ").into_owned()
}

/// Takes one IPv4 rule away at a time; the kinds some flow missed, and those no flow did.
fn noticed(case: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let [v4, v6] = recorded(case);
    let (mut noticed, mut unnoticed) = (BTreeSet::new(), BTreeSet::new());
    for (number, line) in v4.lines().enumerate().filter(|(_, line)| line.starts_with("-A")) {
        if noticed.contains(&kind(line)) {
            continue;
        }
        let kept = v4.lines().enumerate().filter(|(other, _)| *other != number);
        let less: String = kept.map(|(_, line)| format!("{line}\n")).collect();
        let missed = check_flows(case, &less, &v6).is_err();
        if missed { &mut noticed } else { &mut unnoticed }.insert(kind(line));
    }
    (noticed, unnoticed)
}

/// Rules that decide nothing in these cases: they count, or tidy up behind themselves; they let through what would pass
/// anyway, every policy being ACCEPT; or, at the end, another rule decides the same.
fn decides_nothing(kind: &str) -> bool {
    let known = [
        "-A INPUT -m comment  -j KUBE-NODEPORTS",
        "-A KUBE-POSTROUTING -j MARK",
        "localhost_nps_accepted_pkts",
        // Only needed while the load balancer's address is one of the node's own, which it is in no case with ranges.
        "-A INPUT -m conntrack --ctstate NEW -m comment  -j KUBE-PROXY-FIREWALL",
        // What it catches comes back in through lo, where INPUT catches it.
        "-A OUTPUT -j KUBE-FIREWALL",
    ];
    kind.ends_with("-j ACCEPT") || !kind.contains(" -j ") || known.iter().any(|part| kind.contains(part))
}

#[test]
fn a_rule_of_any_kind_that_goes_missing_is_noticed() {
    let (mut noticed_kinds, mut all) = (BTreeSet::new(), BTreeSet::new());
    for case in TELLING {
        let (some, others) = noticed(case);
        all.extend(some.iter().cloned().chain(others));
        noticed_kinds.extend(some);
    }
    let unnoticed: Vec<_> = all.difference(&noticed_kinds).filter(|kind| !decides_nothing(kind)).collect();
    assert!(noticed_kinds.len() > 30, "{noticed_kinds:#?}");
    assert!(unnoticed.is_empty(), "{unnoticed:#?}");
}
