//! Causes of failures around a node in IPVS mode, created by hand, in diagnosis and dump.
//!
//! Another proxy's rules, another flavour, source ranges, and a changed order of rules.

use golden::flavour::Flavour;
use golden::lab::Lab;
use netfilter::kernel::{Host, SystemHost};
use serde_json::Value;

use super::{case, causes, left, list, run, set};

/// A node that forwards, as the proxy itself leaves IPv6 alone.
fn forwarding(name: &str) -> Lab {
    let lab = left(&case(name), Flavour::Nft);
    lab.node().enter(|| SystemHost.set_sysctl("net/ipv6/conf/all/forwarding", 1)).expect("a sysctl");
    lab
}

/// What a sync in iptables mode would have left beside virtual servers.
#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn rules_of_iptables_mode_beside_virtual_servers_are_two_proxies() {
    let lab = forwarding("003-clusterip-1-endpoint");
    assert_eq!(causes(&lab, "default/local"), set(&[]));
    for edit in [
        "-N KUBE-SVC-3ENVKKDUT2EZ6WIE",
        "-N KUBE-SEP-SA5H4ODZBICXEPBI",
        "-A KUBE-SEP-SA5H4ODZBICXEPBI -p tcp -j DNAT --to-destination 10.244.1.5:8080",
        "-A KUBE-SVC-3ENVKKDUT2EZ6WIE -j KUBE-SEP-SA5H4ODZBICXEPBI",
        "-I KUBE-SERVICES -d 10.96.10.12/32 -p tcp --dport 80 -j KUBE-SVC-3ENVKKDUT2EZ6WIE",
    ] {
        lab.node().run(&format!("iptables-nft -w 5 -t nat {edit}"));
    }
    assert_eq!(causes(&lab, "default/local"), set(&["two-proxies", "rules-altered"]));
    assert_eq!(run(&lab, "dump -o json", false)["facts"]["mode"], "ipvs");
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn rules_in_the_other_flavour_are_named() {
    let lab = forwarding("003-clusterip-1-endpoint");
    lab.node().run("iptables-legacy -w 5 -t nat -N KUBE-SERVICES");
    lab.node().run("iptables-legacy -w 5 -t nat -A PREROUTING -j KUBE-SERVICES");
    lab.node().run("iptables-legacy -w 5 -t nat -A KUBE-SERVICES -d 10.96.99.99/32 -j RETURN");
    assert_eq!(causes(&lab, "default/local"), set(&["wrong-flavour"]));
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn a_client_in_no_source_range_is_named() {
    let lab = forwarding("210-lb-source-ranges");
    let dump = run(&lab, "dump -o json", true);
    let ranged = list(&dump, "services").iter().find(|s| s["family"] == "IPv4" && !list(s, "source_ranges").is_empty());
    let addresses = list(ranged.expect("a Service with ranges"), "addresses");
    let vip = addresses.iter().find(|a| a["kind"] == "LoadBalancer").expect("its address");
    let to = format!("{}:{}", vip["ip"].as_str().expect("an address"), vip["port"]);
    assert_eq!(causes(&lab, &format!("{to} --from 192.0.2.200")), set(&["source-range-refuses"]));
    let range = list(ranged.expect("it"), "source_ranges")[0].as_str().expect("a network");
    let inside = range.split('/').next().expect("an address");
    assert_eq!(causes(&lab, &format!("{to} --from {inside}")), set(&[]), "{range}");
}

/// Masquerading is decided before this rule; after it no packet is masqueraded.
#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn rules_in_another_order_are_found() {
    let lab = left(&case("220-lb-etp-local"), Flavour::Nft);
    let rules = lab.node().run("iptables-nft -w 5 -t nat -S KUBE-SERVICES");
    let accept = rules.lines().find(|rule| rule.ends_with("KUBE-CLUSTER-IP dst,dst -j ACCEPT")).expect("a rule");
    let rest = accept.strip_prefix("-A ").expect("a rule");
    lab.node().run(&format!("iptables-nft -w 5 -t nat -D {rest}"));
    lab.node().run(&format!("iptables-nft -w 5 -t nat -I {rest}"));
    let dump = run(&lab, "dump -o json", true);
    let word = |difference: &Value, field: &str| difference[field].as_str().unwrap_or_default().to_owned();
    let found: Vec<[String; 3]> =
        list(&dump, "differences").iter().map(|d| ["kind", "chain", "found"].map(|field| word(d, field))).collect();
    assert_eq!(found, [["moved_rule", "KUBE-SERVICES", accept].map(str::to_owned)]);
}
