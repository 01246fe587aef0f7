//! `trace` on a node in nftables mode, in both layouts, and beside tables of others.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use golden::flavour::Flavour;
use netfilter::IpFamily;
use serde_json::Value;

use super::node::{Node, json};

fn stdout(node: &Node, words: &str) -> String {
    let output = node.run(words);
    assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn layouts(case: &str) -> [(&'static str, Node); 2] {
    [("real", Node::recorded_tables(case)), ("ours", Node::our_tables(case))]
}

/// Verdicts and destinations with their odds, in order. Several ways may end alike.
fn ends(trace: &Value) -> Vec<String> {
    let mut ends: BTreeMap<String, f64> = BTreeMap::new();
    for way in trace["branches"].as_array().expect("branches") {
        let text = |field: &str| way[field].as_str().unwrap_or_default();
        let end = format!("{} {} {}", text("verdict"), text("to"), way["masqueraded"]);
        *ends.entry(end).or_default() += way["probability"].as_f64().expect("a probability");
    }
    ends.into_iter().map(|(end, odds)| format!("{end} {odds:.3}")).collect()
}

#[test]
fn trace_prints_rules_in_nft_syntax() {
    for (layout, node) in layouts("004-clusterip-2-endpoints") {
        let trace = "trace --from 192.168.50.77 --in-interface eth0 --to";
        let shown = ends(&json(&node.run(&format!("{trace} 10.96.10.11:80 -o json"))));
        let expected = ["10.244.1.5:8080", "10.244.2.5:8080"].map(|to| format!("delivered {to} true 0.500"));
        assert_eq!(shown, expected, "{layout}");
        let text = stdout(&node, &format!("{trace} 10.96.10.11:80 --all"));
        for words in [
            "ip kube-proxy services (prerouting)\n",
            "  ip daddr . meta l4proto . th dport vmap @service-ips\n",
            "      found: 10.96.10.11 . tcp . 80 ",
            "new destination: 10.244.1.5",
            "by chance: ",
            "masquerade fully-random\n",
            "Verdict: delivered to 10.244.2.5:8080, with this node's source address.",
        ] {
            assert!(text.contains(words), "{layout}: {words:?} is not in\n{text}");
        }
        let wrong = stdout(&node, &format!("{trace} 10.96.10.11:81"));
        assert!(wrong.contains("Verdict: rejected"), "{layout}: {wrong}");
        // Objects in files tell nothing of ServiceCIDRs.
        if layout == "real" {
            let unallocated = stdout(&node, &format!("{trace} 10.96.200.200:80"));
            assert!(unallocated.contains("Verdict: dropped"), "{unallocated}");
            let v6 = ends(&json(&node.run("trace --from host --to [fd00:10:96::9:9]:80 -o json")));
            assert_eq!(v6, ["dropped  false 1.000"], "no Service has this address");
        }
    }
}

#[test]
fn trace_follows_session_affinity_sets() {
    for (layout, node) in layouts("500-affinity-clusterip") {
        let ways = || json(&node.run("trace --from host --to 10.96.10.13:80 -o json"))["branches"].clone();
        let before = ways();
        let before = before.as_array().expect("branches");
        assert_eq!(before.len(), 3, "{layout}");
        assert!(before.iter().all(|way| way["remembered"].as_array().is_some_and(|sets| sets.len() == 1)), "{layout}");
        node.lab.node().enter(|| {
            let to: SocketAddr = "10.96.10.13:80".parse().expect("an address");
            // No host answers there; the first packet is enough.
            let _ = TcpStream::connect_timeout(&to, Duration::from_millis(10));
        });
        let after = ways();
        assert_eq!(after.as_array().map(Vec::len), Some(1), "{layout}: {after:#}");
    }
}

#[test]
fn foreign_tables_are_walked_in_every_mode() {
    let firewall = "table inet firewall {\n chain forward {\n type filter hook forward priority filter - 5\n \
        ip daddr 10.244.2.5 tcp dport 8080 drop\n }\n }\n";
    let limited = "table ip limited {\n chain in {\n type filter hook prerouting priority raw\n limit rate over 5/second drop\n }\n }\n";
    for node in
        [Node::recorded_tables("003-clusterip-1-endpoint"), Node::recorded("003-clusterip-1-endpoint", Flavour::Nft)]
    {
        let trace = "trace --from 192.168.50.77 --in-interface eth0 --to 10.96.10.11:80";
        let before = stdout(&node, trace);
        assert!(before.contains("Verdict: delivered to 10.244.2.5:8080"), "{before}");
        node.nft(limited);
        let output = node.run(trace);
        let unsure = String::from_utf8_lossy(&output.stdout).into_owned();
        let doubt = "ip limited in (prerouting): treated as not matching because it cannot be decided (limit is not known here):";
        assert!(unsure.contains(doubt), "{unsure}");
        let hedge =
            "Uncertain: unless a rule in ip limited in (prerouting) matches that cannot be decided (then: dropped).";
        assert!(unsure.contains(hedge) && output.status.code() == Some(2), "{unsure}");
        node.nft(firewall);
        // Whether or not that rule matches, it is dropped.
        let text = stdout(&node, trace);
        assert!(
            text.contains("inet firewall forward (forward)\n  ip daddr 10.244.2.5 tcp dport 8080 drop\n"),
            "{text}"
        );
        assert!(text.contains("Verdict: dropped") && !text.contains("cannot be decided"), "{text}");
    }
}

#[test]
fn packets_are_walked_through_the_rules_of_both_flavours() {
    let node = Node::recorded("003-clusterip-1-endpoint", Flavour::Legacy);
    let trace = "trace --from 192.168.50.77 --in-interface eth0 --to 10.96.10.11:80";
    let said = |node: &Node| String::from_utf8_lossy(&node.run(trace).stderr).into_owned();
    assert_eq!(said(&node), "");
    node.restore(IpFamily::V4, Flavour::Nft, "*filter\n-A FORWARD -p tcp -j DROP\nCOMMIT\n");
    assert_eq!(said(&node), "");
    let branch = json(&node.run(&format!("{trace} -o json")))["branches"][0].clone();
    let steps = branch["steps"].as_array().expect("steps");
    let last = steps.last().expect("a step");
    assert_eq!(
        (&branch["verdict"], &last["hook"]),
        (&"dropped".into(), &"nf_tables filter FORWARD".into()),
        "{branch}"
    );
}

#[test]
fn rules_are_read_without_programs_and_what_only_those_know_is_a_doubt() {
    let node = Node::our_tables("003-clusterip-1-endpoint");
    let kube_proxy = env!("CARGO_BIN_EXE_kube-proxy");
    let run = |words: &str| json(&node.lab.node().try_run(&format!("env PATH=/nowhere {kube_proxy} {words}")));
    let trace = || run("trace --from 192.168.50.77 --in-interface eth0 --to 10.96.10.11:80 -o json");
    let nothing = Value::Array(Vec::new());
    assert_eq!(trace()["unread"], nothing);
    node.restore(IpFamily::V4, Flavour::Nft, "*filter\n-A FORWARD -p tcp -m length --length 1:9999 -j DROP\nCOMMIT\n");
    let unsure = trace();
    assert_eq!((&unsure["certain"], &unsure["unread"]), (&false.into(), &nothing), "{unsure:#}");
    node.restore(IpFamily::V4, Flavour::Nft, "*filter\n-I FORWARD -p tcp -j DROP\nCOMMIT\n");
    let dropped = trace();
    assert_eq!(
        (&dropped["certain"], &dropped["branches"][0]["verdict"]),
        (&true.into(), &"dropped".into()),
        "{dropped:#}"
    );
    assert_eq!(run("dump -o json")["unread"], nothing);
}
