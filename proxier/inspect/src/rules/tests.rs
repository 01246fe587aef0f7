//! Walks through rulesets that are small enough to check by hand.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;

use netfilter::IpFamily;

use super::Ruleset;
use crate::walk::{ConnState, Node, NodeRules, Origin, Packet, RecentLists, Trace};
use proxier::model::Protocol;

const NAT: &str = "\
*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:SERVICES - [0:0]
:MASQ - [0:0]
-A PREROUTING -m comment --comment \"all \\\"services\\\"\" -j SERVICES
-A OUTPUT -j SERVICES
-A POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A POSTROUTING -j MASQUERADE --random-fully
-A MASQ -j MARK --set-xmark 0x4000/0x4000
-A SERVICES ! -s 10.244.0.0/16 -d 10.96.0.10/32 -p tcp -m tcp --dport 80 -j MASQ
-A SERVICES -d 10.96.0.10/32 -p tcp -m tcp --dport 80 -m statistic --mode random --probability 0.25 -j DNAT --to-destination 10.244.1.5:8080
-A SERVICES -d 10.96.0.10/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.244.2.5:8080
-A SERVICES -p udp -m udp --dport 30053 -m addrtype --dst-type LOCAL -j DNAT --to-destination 192.168.50.2:53
COMMIT
";

fn rules(text: &str) -> Ruleset {
    Ruleset::parse(IpFamily::V4, text).unwrap()
}

fn problem(text: &str) -> String {
    Ruleset::parse(IpFamily::V4, text).unwrap_err().to_string()
}

/// The problem with one rule in the filter table's INPUT chain.
fn rule_problem(rule: &str) -> String {
    problem(&format!("*filter\n-A INPUT {rule}\nCOMMIT\n"))
}

fn node() -> Node {
    Node { addresses: vec!["192.168.50.2".parse().unwrap(), "192.168.60.2".parse().unwrap()], ..Node::default() }
}

fn packet(from: &str, to: &str, origin: Origin) -> Packet {
    let (destination, protocol) = to.split_once('/').unwrap();
    Packet {
        source: SocketAddr::new(from.parse().unwrap(), 40000),
        destination: destination.parse().unwrap(),
        protocol: Protocol::of_name(protocol).unwrap(),
        origin,
        state: ConnState::New,
    }
}

fn on(interface: &str) -> Origin {
    Origin::Interface(interface.to_owned())
}

fn ends(trace: &Trace) -> String {
    trace.outcomes().iter().map(ToString::to_string).collect::<Vec<_>>().join(" | ")
}

fn trace(text: &str, packet: &Packet) -> String {
    ends(&rules(text).trace(packet, &node(), &RecentLists::new()).unwrap())
}

#[test]
fn every_random_branch_is_taken_with_its_share() {
    let pod = packet("10.244.1.9", "10.96.0.10:80/tcp", on("cbr0"));
    assert_eq!(trace(NAT, &pod), "10.244.1.5:8080 (25.0%) | 10.244.2.5:8080 (75.0%)");
}

#[test]
fn a_mark_is_carried_to_postrouting() {
    let outside = packet("198.51.100.7", "10.96.0.10:80/tcp", on("eth0"));
    assert_eq!(trace(NAT, &outside), "10.244.1.5:8080, masqueraded (25.0%) | 10.244.2.5:8080, masqueraded (75.0%)");
}

#[test]
fn packet_for_the_node_skips_postrouting() {
    let marked = NAT.replace("-A SERVICES -p udp", "-A SERVICES -p udp -j MASQ\n-A SERVICES -p udp");
    let outside = packet("198.51.100.7", "192.168.60.2:30053/udp", on("eth0"));
    assert_eq!(trace(&marked, &outside), "192.168.50.2:53");
    let host = packet("192.168.60.2", "192.168.60.2:30053/udp", Origin::Host);
    assert_eq!(trace(&marked, &host), "192.168.50.2:53, masqueraded");
    assert_eq!(trace(NAT, &packet("198.51.100.7", "192.168.70.9:30053/udp", on("eth0"))), "untouched");
}

#[test]
fn only_the_first_packet_of_a_connection_meets_the_nat_table() {
    let mut pod = packet("10.244.1.9", "10.96.0.10:80/tcp", on("cbr0"));
    pod.state = ConnState::Established;
    assert_eq!(trace(NAT, &pod), "untouched");
}

#[test]
fn filter_table_sees_the_translated_destination_and_state_dnat() {
    let filter = "*filter\n-A FORWARD -d 10.244.1.5/32 -j DROP\n\
                  -A FORWARD -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j REJECT --reject-with icmp-port-unreachable\nCOMMIT\n";
    let both = format!("{NAT}{filter}");
    assert_eq!(
        trace(&both, &packet("10.244.1.9", "10.96.0.10:80/tcp", on("cbr0"))),
        "10.244.2.5:8080 (75.0%) | drop (25.0%)"
    );
    assert_eq!(trace(&both, &packet("10.244.1.9", "10.96.0.10:81/tcp", on("cbr0"))), "reject");
}

#[test]
fn a_host_packet_to_the_node_itself_comes_back_in_through_lo() {
    let filter = "*filter\n-A INPUT -i lo -p tcp -m tcp --dport 81 -j REJECT\n-A INPUT -i e+ -j DROP\nCOMMIT\n";
    assert_eq!(trace(filter, &packet("192.168.60.2", "192.168.60.2:81/tcp", Origin::Host)), "reject");
    assert_eq!(trace(filter, &packet("192.168.60.2", "192.168.60.3:81/tcp", Origin::Host)), "untouched");
    assert_eq!(trace(filter, &packet("198.51.100.7", "192.168.60.2:81/tcp", on("eth0"))), "drop");
}

#[test]
fn return_continues_in_the_caller_and_the_policy_decides_last() {
    let filter = "*filter\n:FORWARD DROP [0:0]\n:A - [0:0]\n:B - [0:0]\n-A FORWARD -j A\n-A A -j B\n\
                  -A A -p tcp -j ACCEPT\n-A B -j RETURN\n-A B -j REJECT\nCOMMIT\n";
    assert_eq!(trace(filter, &packet("10.244.1.9", "10.0.0.1:80/tcp", on("cbr0"))), "untouched");
    assert_eq!(trace(filter, &packet("10.244.1.9", "10.0.0.1:80/udp", on("cbr0"))), "drop");
}

#[test]
fn recent_lists_are_read_from_the_memory_and_named_in_the_branch() {
    let text = "*nat\n:SEP - [0:0]\n\
        -A PREROUTING -m recent --rcheck --seconds 100 --reap --name SEP --mask 255.255.255.255 --rsource -j SEP\n\
        -A PREROUTING -m statistic --mode random --probability 0.5 -j SEP\n\
        -A SEP -p tcp -m recent --set --name SEP --mask 255.255.255.255 --rsource -m tcp -j DNAT --to-destination 10.244.1.5:80\n\
        COMMIT\n";
    let packet = packet("10.244.1.9", "10.96.0.10:80/tcp", on("cbr0"));
    let rules = rules(text);
    let first = rules.trace(&packet, &node(), &RecentLists::new()).unwrap();
    assert_eq!(ends(&first), "10.244.1.5:80 (50.0%) | untouched (50.0%)");
    let put = first.branches.iter().flat_map(|branch| &branch.remembered).collect::<Vec<_>>();
    assert_eq!(put, ["SEP"]);
    let ago = |seconds| RecentLists::from([("SEP".to_owned(), seconds)]);
    assert_eq!(ends(&rules.trace(&packet, &node(), &ago(100)).unwrap()), "10.244.1.5:80");
    assert_eq!(ends(&rules.trace(&packet, &node(), &ago(101)).unwrap()), ends(&first));
}

#[test]
fn restore_input_goes_on_top_of_what_is_there() {
    let mut rules = rules(NAT);
    let update = "*nat\n:MASQ - [0:0]\n:SERVICES - [0:0]\n-A MASQ -j MARK --or-mark 0x4000\n\
        -A SERVICES -d 10.96.0.10 --protocol\nCOMMIT\n";
    assert!(rules.clone().apply(update).unwrap_err().to_string().contains("unknown option --protocol"));
    rules
        .apply(&update.replace("--protocol", "-m tcp -p tcp --dport 80 -j DNAT --to-destination 10.244.3.5:1"))
        .unwrap();
    let packet = packet("198.51.100.7", "10.96.0.10:80/tcp", on("eth0"));
    assert_eq!(ends(&rules.trace(&packet, &node(), &RecentLists::new()).unwrap()), "10.244.3.5:1");
    rules.apply("*nat\n-I PREROUTING -j MASQ\nCOMMIT\n").unwrap();
    assert_eq!(ends(&rules.trace(&packet, &node(), &RecentLists::new()).unwrap()), "10.244.3.5:1, masqueraded");
}

#[test]
fn a_removed_rule_is_noticed() {
    let pod = packet("198.51.100.7", "10.96.0.10:80/tcp", on("eth0"));
    for line in NAT.lines().filter(|line| line.starts_with("-A") && !line.contains("udp") && !line.contains("OUTPUT")) {
        let without = NAT.replace(&format!("{line}\n"), "");
        // This one only clears the mark behind itself.
        let same = line.contains("0x4000/0x0");
        assert_eq!(trace(&without, &pod) == trace(NAT, &pod), same || line.contains("-j RETURN"), "without {line}");
    }
}

#[test]
fn unknown_options_are_refused_with_their_line() {
    for (rule, complaint) in [
        ("-m set --match-set KUBE-X srcs -j DROP", "line 2: unknown direction srcs"),
        ("-m tcp -j DROP", "-m tcp without -p tcp"),
        ("-p udp -m tcp -j DROP", "-m tcp with another protocol"),
        ("-p tcp -m tcp --tcp-flags SYN,BAD SYN -j DROP", "unknown flag BAD"),
        ("-p nonsense -j DROP", "does not take nonsense"),
        ("--dport 80 -j DROP", "unknown option --dport"),
        ("--ctstate NEW -j DROP", "unknown option --ctstate"),
        ("-m conntrack --ctstate OLD -j DROP", "unknown connection state OLD"),
        ("-m addrtype --dst-type NEAR -j DROP", "unknown address type NEAR"),
        ("-m statistic --mode nth -j DROP", "--mode nth and --every"),
        ("-m statistic --mode random -j DROP", "needs --mode random and --probability"),
        ("-m recent --name A -j DROP", "needs one of --set, --rcheck"),
        ("-s fd00::1/128 -j DROP", "other family"),
        ("-s nonsense -j DROP", "no address"),
        ("-m comment --comment \"open -j DROP", "a quote is not closed"),
        ("! -m comment --comment x -j DROP", "cannot be negated"),
        ("-j TPROXY --on-port 1", "TPROXY: whether a socket"),
        ("-j MARK", "target MARK lacks its option"),
        ("-j REJECT --reject-with a-word", "unknown way to reject"),
        ("-j DROP -j ACCEPT", "a second target"),
        ("-g KUBE-X", "no known target KUBE-X"),
        ("-j DROP !", "nothing after !"),
    ] {
        let problem = rule_problem(rule);
        assert!(problem.contains(complaint) && problem.contains(rule), "{rule}: {problem}");
    }
}

#[test]
fn text_that_is_no_ruleset_is_refused() {
    for (text, complaint) in [
        ("-A INPUT -j DROP\n", "outside of any table"),
        ("*filter\n-A INPUT -j DROP\n", "has no COMMIT"),
        ("*filter\n*nat\nCOMMIT\n", "has no COMMIT"),
        ("*broute\nCOMMIT\n", "unknown table broute"),
        ("*filter\n-A KUBE-X -j DROP\nCOMMIT\n", "no chain KUBE-X"),
        ("*filter\n-D INPUT -j DROP\nCOMMIT\n", "unknown command -D"),
        ("*filter\n:A - [0:0]\n-A INPUT -j A\n-X A\nCOMMIT\n", "no known target A"),
    ] {
        assert!(problem(text).contains(complaint), "{text}: {}", problem(text));
    }
}

#[test]
fn rules_that_the_kernel_refuses_are_errors_when_met() {
    let packet = packet("10.244.1.9", "10.0.0.1:80/tcp", on("cbr0"));
    for (text, complaint) in [
        ("*filter\n:A - [0:0]\n-A FORWARD -j A\n-A A -j A\nCOMMIT\n", "circle"),
        ("*nat\n-A PREROUTING -j MASQUERADE\nCOMMIT\n", "takes no such rule in nat PREROUTING"),
        ("*filter\n-A FORWARD -j DNAT --to-destination 1.2.3.4:5\nCOMMIT\n", "takes no such rule in filter FORWARD"),
    ] {
        let error = rules(text).trace(&packet, &node(), &RecentLists::new()).unwrap_err();
        assert!(error.contains(complaint), "{error}");
    }
}

#[test]
fn rules_with_more_ways_than_can_be_followed_are_refused() {
    let packet = packet("10.244.1.9", "10.0.0.1:80/tcp", on("cbr0"));
    let chains: String = (0..=60).map(|n| format!(":C{n} - [0:0]\n")).collect();
    let jumps: String = (0..60).flat_map(|n| vec![format!("-A C{n} -j C{}\n", n + 1); 2]).collect();
    let chance = "-A FORWARD -m statistic --mode random --probability 0.5 -j LOG\n".repeat(60);
    for text in [format!("*filter\n{chains}-A FORWARD -j C0\n{jumps}COMMIT\n"), format!("*filter\n{chance}COMMIT\n")] {
        let ruleset = rules(&text);
        let rules = NodeRules { iptables: &ruleset, other: None, nftables: None };
        let error = rules.trace_limited(1_000_000, &packet, &node(), &RecentLists::new()).unwrap_err();
        assert!(error.contains("more rules than can be followed"), "{error}");
    }
}

#[test]
fn counters_are_read_in_both_spellings() {
    let saved = "*nat\n:PREROUTING ACCEPT [5:300]\n:A - [0:0]\n[3:180] -A PREROUTING -j A\n\
        [2:9] -A A -m comment --comment \"x -c 1 2\" -j RETURN\nCOMMIT\n";
    let saved = rules(saved);
    let mut listed = Ruleset::new(IpFamily::V4);
    let text = "-P PREROUTING ACCEPT -c 5 300\n-N A\n-A PREROUTING -c 3 180 -j A\n\
        -A A -m comment --comment \"x -c 1 2\" -c 2 9 -j RETURN\n";
    assert_eq!(listed.read_chains("nat", text), []);
    for ruleset in [saved, listed] {
        let chain = ruleset.chain("nat", "PREROUTING").unwrap();
        let rule = &ruleset.chain("nat", "A").unwrap().rules[0];
        assert_eq!((chain.counters.packets, chain.rules[0].counters.bytes, rule.counters.packets), (5, 180, 2));
        assert_eq!(&*rule.text, "-A A -m comment --comment \"x -c 1 2\" -j RETURN");
        assert_eq!(rule.read(IpFamily::V4).comment.as_deref(), Some("x -c 1 2"));
    }
}

#[test]
fn foreign_rules_are_read_as_far_as_understood() {
    let text = "*nat\n:cali-PREROUTING - [0:0]\nnonsense\n-A PREROUTING -m set --match-set cali src -p tcp -j DROP\n\
        -A PREROUTING -p udp -m set --match-set cali src -j DROP\n-A PREROUTING -p tcp -j LOG --log-prefix \"a -j b\"\n\
        -A PREROUTING -p tcp -g cali-PREROUTING\n-A PREROUTING -j DROP\n\
        -A cali-PREROUTING -p tcp -m multiport --dports 80,8000:9000 -j DNAT --to-destination 10.0.0.1:1\nCOMMIT\n*bad\n";
    let mut ruleset = Ruleset::new(IpFamily::V4);
    let problems: Vec<String> = ruleset.read(text).iter().map(ToString::to_string).collect();
    assert_eq!(problems, ["line 3: unknown line: nonsense", "line 11: unknown table bad: *bad"].map(String::from));
    let traced =
        ruleset.trace(&packet("10.0.0.9", "10.9.9.9:8500/tcp", on("eth0")), &node(), &RecentLists::new()).unwrap();
    assert_eq!(ends(&traced), "10.0.0.1:1");
    let doubts = &traced.branches[0].doubts;
    assert_eq!((doubts.len(), &*doubts[0].why), (1, "set cali was not read"), "udp is not in question");
    let other =
        ruleset.trace(&packet("10.0.0.9", "10.9.9.9:81/tcp", on("eth0")), &node(), &RecentLists::new()).unwrap();
    assert_eq!(ends(&other), "untouched", "what returns from a goto returns to its caller's caller");
}
