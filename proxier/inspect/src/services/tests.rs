//! Service ports read from recorded rules of large and small clusters.

#![allow(clippy::unwrap_used)]

use netfilter::IpFamily;

use super::*;
use crate::rules::Ruleset;

const SMALL: &str = r#"*filter
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SERVICES - [0:0]
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m comment --comment "default/kubernetes:https has no endpoints" -m tcp --dport 443 -j REJECT --reject-with icmp-port-unreachable
-A KUBE-EXTERNAL-SERVICES -p tcp -m comment --comment "default/web:http has no local endpoints" -m addrtype --dst-type LOCAL -m tcp --dport 30080 -j DROP
-A KUBE-NODEPORTS -p tcp -m comment --comment "default/web:http health check node port" -m tcp --dport 31000 -j ACCEPT
COMMIT
*nat
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-EXT-AAAAAAAAAAAAAAAA - [0:0]
:KUBE-SVC-AAAAAAAAAAAAAAAA - [0:0]
:KUBE-SEP-BBBBBBBBBBBBBBBB - [0:0]
:KUBE-SEP-CCCCCCCCCCCCCCCC - [0:0]
:KUBE-SEP-DDDDDDDDDDDDDDDD - [0:0]
[7:420] -A KUBE-SERVICES -d 10.96.0.9/32 -p tcp -m comment --comment "default/web:http cluster IP" -m tcp --dport 80 -j KUBE-SVC-AAAAAAAAAAAAAAAA
-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-NODEPORTS -p tcp -m comment --comment "default/web:http" -m tcp --dport 30080 -j KUBE-EXT-AAAAAAAAAAAAAAAA
-A KUBE-EXT-AAAAAAAAAAAAAAAA -m comment --comment "masquerade LOCAL traffic for default/web:http external destinations" -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ
-A KUBE-SVC-AAAAAAAAAAAAAAAA ! -s 10.244.0.0/16 -d 10.96.0.9/32 -p tcp -m comment --comment "default/web:http cluster IP" -m tcp --dport 80 -j KUBE-MARK-MASQ
-A KUBE-SVC-AAAAAAAAAAAAAAAA -m recent --rcheck --seconds 90 --reap --name KUBE-SEP-BBBBBBBBBBBBBBBB --mask 255.255.255.255 --rsource -j KUBE-SEP-BBBBBBBBBBBBBBBB
-A KUBE-SVC-AAAAAAAAAAAAAAAA -m statistic --mode random --probability 0.50000000000 -j KUBE-SEP-BBBBBBBBBBBBBBBB
-A KUBE-SVC-AAAAAAAAAAAAAAAA -j KUBE-SEP-CCCCCCCCCCCCCCCC
[4:240] -A KUBE-SEP-BBBBBBBBBBBBBBBB -p tcp -m tcp -j DNAT --to-destination 10.244.1.5:8080
-A KUBE-SEP-CCCCCCCCCCCCCCCC -p tcp -m tcp -j DNAT --to-destination 10.244.2.5:8080
COMMIT
"#;

fn read(text: &str) -> Vec<ServicePortView> {
    let mut ruleset = Ruleset::new(IpFamily::V4);
    assert_eq!(ruleset.read(text), []);
    assert_eq!(unused_chains(&ruleset), ["KUBE-SEP-DDDDDDDDDDDDDDDD"]);
    from_iptables(&ruleset, &|_, _| true)
}

#[test]
fn a_service_port_is_read_whole() {
    let views = read(SMALL);
    // The names are made up, so the chains' hash is not theirs: the refusal is another Service port's for all we know.
    let kubernetes = views.iter().find(|view| view.name == "default/kubernetes:https").unwrap();
    assert_eq!(kubernetes.addresses[0].verdict, AddressVerdict::Rejected);
    let web = views.iter().find(|view| !view.parts.is_empty()).unwrap();
    assert_eq!((&*web.name, web.protocol, web.affinity_seconds), ("default/web:http", "tcp", Some(90)));
    assert_eq!((web.internal_policy, web.external_policy), (Some(Policy::Cluster), Some(Policy::Local)));
    let addresses: Vec<_> =
        web.addresses.iter().map(|a| (a.kind, a.port, a.verdict, a.counters.unwrap().packets)).collect();
    let expected = [
        (AddressKind::ClusterIp, 80, AddressVerdict::Endpoints, 7),
        (AddressKind::NodePort, 30080, AddressVerdict::Endpoints, 0),
    ];
    assert_eq!(addresses, expected);
    let endpoints: Vec<_> =
        web.endpoints.iter().map(|e| (e.address.unwrap().to_string(), e.share, e.counters.unwrap().packets)).collect();
    let expected = [("10.244.1.5:8080".to_owned(), Some(0.5), 4), ("10.244.2.5:8080".to_owned(), Some(0.5), 0)];
    assert_eq!(endpoints, expected);
    assert_eq!(web.parts.iter().map(|part| part.rules).sum::<usize>(), 7);
    assert!(web.notes.iter().any(|note| note.contains("names default/web:http and jumps to chains of another")));
}

#[test]
fn comments_may_be_missing() {
    let silent: String = SMALL
        .lines()
        .map(|line| {
            let mut parts = line.split(" -m comment --comment \"");
            let first = parts.next().unwrap().to_owned();
            parts.fold(first, |line, part| line + part.split_once('"').unwrap().1) + "\n"
        })
        .collect();
    let views = read(&silent);
    let web = views.iter().find(|view| !view.parts.is_empty()).unwrap();
    assert_eq!((&*web.name, web.endpoints.len()), ("KUBE-SVC-AAAAAAAAAAAAAAAA", 2));
    assert_eq!(
        web.addresses.iter().map(|address| address.kind).collect::<Vec<_>>(),
        [AddressKind::ClusterIp, AddressKind::NodePort]
    );
}

/// The chain of the addresses was written after the endpoint's had counted 53 connections.
#[test]
fn counters_of_a_chain_that_was_rewritten_are_incomplete() {
    let counted = |address: &str, endpoint: &str| {
        let text = SMALL.replace("[7:420]", address).replace("[4:240]", endpoint);
        let mut ruleset = Ruleset::new(IpFamily::V4);
        assert_eq!(ruleset.read(&text), []);
        let view = from_iptables(&ruleset, &|name, _| name.is_some_and(|name| &*name.service.name == "web")).remove(0);
        let incomplete =
            |address: &Address| address.kind != AddressKind::HealthCheckNodePort && address.counters_incomplete;
        let addresses = view.addresses.iter().any(incomplete);
        let endpoints = view.endpoints.iter().any(|endpoint| endpoint.counters_incomplete);
        (addresses, endpoints, view.notes.iter().any(|note| note.contains("written later")))
    };
    assert_eq!(counted("[0:0]", "[53:3180]"), (true, false, true));
    assert_eq!(counted("[53:3180]", "[53:3180]"), (false, false, false));
    assert_eq!(counted("[53:3180]", "[4:240]"), (false, true, false));
}
