//! `trace` and `diagnose` held against connections that limits, quotas, lost ICMP errors, IPsec policies or ARP rules decide:
//! what is assumed or not known is said.

use golden::cluster::Protocol::Tcp;
use golden::cluster::{Failure, Family, NODE, Service};
use golden::flavour::Flavour;
use serde_json::json;

use super::node::printed;
use super::obstructed::{NODE_PORT, Obstructed, near};

const TRACE: &str = "trace --from 192.168.50.1 --to 192.168.50.2:30080";

/// What the trace of a connection from outside says, with single spaces.
fn traced(node: &Obstructed) -> String {
    printed(&node.run(TRACE))
}

#[test]
fn limits_of_connections_are_decided_where_they_are_none_and_assumed_otherwise() {
    for flavour in Flavour::ALL {
        let node = Obstructed::new("iptables", flavour, near());
        let rule = |words: &str| node.cluster.iptables(Family::V4, words);
        let drop = "-A FORWARD -p tcp --dport 8080 -j DROP";
        for (above, upto) in
            [("--connlimit-above 0", "--connlimit-upto 0"), ("! --connlimit-upto 0", "! --connlimit-above 0")]
        {
            rule(&format!("-I FORWARD -p tcp -m connlimit {above} -j DROP"));
            node.fails(above, Family::V4, "dropped", "refused-by-others", &["connlimit"]);
            rule("-D FORWARD 1");
            rule(&format!("-I FORWARD -p tcp -m connlimit {upto} -j ACCEPT"));
            node.works(upto, Family::V4);
            rule(&drop.replace("-A FORWARD", "-I FORWARD 2"));
            node.fails(upto, Family::V4, "dropped", "refused-by-others", &["--dport 8080 -j DROP"]);
            rule("-D FORWARD 2");
            rule("-D FORWARD 1");
        }
        rule("-I FORWARD -p tcp -m connlimit --connlimit-above 5 -j DROP");
        node.works("a limit that is not reached", Family::V4);
        let said = traced(&node);
        assert!(said.contains("Assumed: its limit of connections is not reached in"), "{said}");
        assert!(said.contains("(otherwise: dropped)"), "{said}");
    }
}

#[test]
fn a_limit_in_front_of_drop_is_an_assumption_with_the_other_outcome() {
    for flavour in Flavour::ALL {
        let node = Obstructed::new("iptables", flavour, near());
        node.cluster
            .iptables(Family::V4, "-I FORWARD -p tcp --dport 8080 -m limit --limit 1/hour --limit-burst 1 -j DROP");
        let fate = |node: &Obstructed| {
            let traced = node.trace("192.168.50.1", Family::V4);
            assert_eq!(traced["branches"][0]["assumed"][0]["otherwise"][0]["to"], "10.244.1.5:8080", "{traced:#}");
            traced["branches"][0]["verdict"].clone()
        };
        assert_eq!(fate(&node), "dropped");
        assert!(node.is_cut(node.cluster.outside(), Family::V4), "the first packet is dropped");
        assert!(node.connects(node.cluster.outside(), Family::V4), "the limit is used up");
        assert_eq!(fate(&node), "dropped");
        let said = traced(&node);
        assert!(said.contains("Assumed: its limit is not used up in"), "{said}");
        assert!(said.contains("(otherwise: to 10.244.1.5:8080"), "{said}");
        // What one packet in an hour meets is no certain cause.
        assert_eq!(node.causes("192.168.50.1", Family::V4), (vec!["refused-by-others?".to_owned()], 2));
    }
}

#[test]
fn a_quota_is_used_up_by_what_its_rule_counted() {
    for flavour in Flavour::ALL {
        let node = Obstructed::new("iptables", flavour, near());
        let rule = |words: &str| node.cluster.iptables(Family::V4, words);
        rule("-I FORWARD -p tcp --dport 8080 -j DROP");
        rule("-I FORWARD -p tcp --dport 8080 -m quota --quota 3000 -j ACCEPT");
        node.works("all of it is left", Family::V4);
        let mut connections = 0;
        while node.connects_within(node.cluster.outside(), Family::V4, 700) {
            connections += 1;
            assert!(connections < 100, "3,000 bytes are enough for all");
        }
        assert!(connections > 1, "{connections}");
        let traced = node.trace("192.168.50.1", Family::V4);
        let branch = &traced["branches"][0];
        let told = (branch["verdict"] == "dropped")
            || (traced["certain"] == false && branch["doubts"].to_string().contains("quota"));
        assert!(told, "packets are dropped: {traced:#}");
        assert_ne!(node.causes("192.168.50.1", Family::V4).1, 0);
        rule("-R FORWARD 1 -p tcp --dport 8080 -m quota --quota 10 -j ACCEPT");
        node.fails(
            "a quota that no packet fits in",
            Family::V4,
            "dropped",
            "refused-by-others",
            &["--dport 8080 -j DROP"],
        );
    }
}

#[test]
fn realm_0_is_that_of_routes_without_one_by_number_and_name() {
    for flavour in Flavour::ALL {
        let node = Obstructed::new("iptables", flavour, near());
        for (realm, matches) in [("0", true), ("0x0/0xff", true), ("cosmos", true), ("5", false)] {
            let rule = format!("-I FORWARD -p tcp --dport 8080 -m realm --realm {realm} -j DROP");
            // Without iproute2's list of realms, iptables knows no names.
            let words = format!("iptables-{flavour} -w 5 {rule}");
            if !node.cluster.node().try_run(&words).status.success() {
                assert_eq!(realm, "cosmos");
                continue;
            }
            match matches {
                true => node.fails(realm, Family::V4, "dropped", "refused-by-others", &["realm"]),
                false => node.works(realm, Family::V4),
            }
            node.cluster.iptables(Family::V4, "-D FORWARD 1");
        }
    }
}

#[test]
fn a_refusal_whose_error_does_not_get_out_is_a_drop() {
    for (mode, flavour) in [("iptables", Flavour::Nft), ("iptables", Flavour::Legacy), ("nftables", Flavour::Nft)] {
        let node = Obstructed::with(mode, flavour, Service::new("web", 20).node_port(NODE_PORT));
        let attempt = || node.cluster.outside().attempt(Tcp, NODE.at(Family::V4, NODE_PORT)).err();
        let verdict = |node: &Obstructed| {
            let traced = node.trace("192.168.50.1", Family::V4);
            (traced["branches"][0]["verdict"].clone(), traced["certain"] == true)
        };
        let rule = |words: &str| node.cluster.iptables(Family::V4, words);
        let refused = |what: &str| {
            assert_eq!(attempt(), Some(Failure::Refused), "{mode}, {flavour}: {what}");
            assert_eq!(verdict(&node), (json!("rejected"), true), "{mode}, {flavour}: {what}");
        };
        let dropped = |what: &str| {
            assert_eq!(attempt(), Some(Failure::Dropped), "{mode}, {flavour}: {what}");
            assert_eq!(verdict(&node), (json!("dropped"), true), "{mode}, {flavour}: {what}");
        };
        refused("no rule stops the error");
        let said = traced(&node);
        assert!(said.contains("assuming that the kernel's limits of ICMP errors"), "{said}");
        for (stops, words) in [
            (true, "-p icmp -j DROP"),
            (true, "-p icmp -m icmp --icmp-type 3 -j DROP"),
            (true, "-m conntrack --ctstate RELATED -j DROP"),
            (true, "-d 192.168.50.1 -o eth0 -j DROP"),
            (false, "-p icmp -m icmp --icmp-type 8 -j DROP"),
            (false, "-p tcp -j DROP"),
            (false, "-m conntrack --ctstate INVALID,NEW,ESTABLISHED -j DROP"),
        ] {
            rule(&format!("-I OUTPUT {words}"));
            if stops {
                dropped(words)
            } else {
                refused(words)
            }
            if stops {
                let said = traced(&node);
                assert!(said.contains("drops the error that tells the client"), "{said}");
            }
            rule("-D OUTPUT 1");
        }
        rule("-P OUTPUT DROP");
        dropped("the policy of OUTPUT");
        rule("-I OUTPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT");
        refused("related packets are accepted");
        rule("-P OUTPUT ACCEPT");
        node.nft("table ip quiet {\nchain out { type filter hook output priority 5\nip protocol icmp icmp type destination-unreachable drop\n}\n}\n");
        dropped("a table of nf_tables");
    }
}

#[test]
fn ipsec_policies_block_by_addresses_before_nat_when_packets_come_and_after_it_when_they_leave() {
    let node = Obstructed::new("iptables", Flavour::Nft, near());
    let policy = |words: &str| node.on_node(&format!("ip xfrm policy {words}"));
    for (blocks, words) in [
        (true, "dir fwd src 192.168.50.1 dst 192.168.50.2 action block"),
        (false, "dir fwd dst 10.244.1.5/32 action block"),
        (true, "dir out dst 10.244.1.5/32 action block"),
        (true, "dir out dst 10.244.1.5/32 proto tcp dport 8080 action block"),
        (false, "dir out dst 10.244.1.5/32 proto udp action block"),
        (false, "dir out dst 10.244.1.6/32 action block"),
        (false, "dir in dst 10.244.1.5/32 action block"),
    ] {
        policy(&format!("add {words}"));
        match blocks {
            true => node.fails(words, Family::V4, "dropped", "no-route", &["an IPsec policy", "xfrm"]),
            false => node.works(words, Family::V4),
        }
        policy("flush");
    }
    policy("add dir out dst 10.244.1.5/32 priority 2 action block");
    policy("add dir out dst 10.244.1.0/24 priority 1");
    node.works("one with a lower number allows it", Family::V4);
    policy("flush");
    policy("add dir out dst 10.244.1.5/32 tmpl proto esp mode transport");
    assert!(node.is_cut(node.cluster.outside(), Family::V4), "there is no key");
    let traced = node.trace("192.168.50.1", Family::V4);
    assert_eq!(traced["certain"], false, "{traced:#}");
    assert!(traced["branches"][0]["doubts"].to_string().contains("dst 10.244.1.5/32 dir out"), "{traced:#}");
    assert_eq!(node.causes("192.168.50.1", Family::V4).1, 2);
    policy("flush");
    policy("add dir out dst 10.244.1.5/32 action block");
    assert!(node.is_cut(node.cluster.host(), Family::V4));
    assert_eq!(node.trace("host", Family::V4)["branches"][0]["verdict"], "dropped");
}

#[test]
fn rules_that_arp_meets_are_a_doubt() {
    let node = Obstructed::new("nftables", Flavour::Nft, near());
    node.works("none", Family::V4);
    node.nft(
        "table arp guard {\nchain out {\ntype filter hook output priority 0\narp daddr ip 10.244.1.5 drop\n}\n}\n",
    );
    node.on_node("ip neigh flush dev pod-5");
    assert!(node.is_cut(node.cluster.outside(), Family::V4), "the neighbour is not found");
    assert_eq!(node.trace("192.168.50.1", Family::V4)["certain"], false);
    let said = node.said("192.168.50.1", Family::V4);
    // The neighbour that is not found is a cause, and the rules may be its reason.
    assert!(said.contains("arp guard out") && said.contains("neighbour-unreachable"), "{said}");
    node.works("IPv6 has no ARP", Family::V6);
}
