//! `trace` and `diagnose` held against connections where sysctls, policy rules, a used-up TTL, another program's rules or
//! leftovers of another kube-proxy decide.

use std::io::Write;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use golden::cluster::Protocol::Tcp;
use golden::cluster::{Client, Cluster, Endpoint, FAR_5, Family, NODE, OUTSIDE, POD_5, POD_6, Pod, Service, ready};
use golden::flavour::Flavour;
use serde_json::{Value, json};

use super::node::{diagnosis, json as parsed, printed};

const BINARY: &str = env!("CARGO_BIN_EXE_kube-proxy");
pub const NODE_PORT: u16 = 30080;

/// A cluster with the Service `default/web` with that endpoint, whose proxy does not run any more: what it would mend stays.
pub struct Obstructed {
    pub cluster: Cluster,
}

impl Obstructed {
    pub fn new(mode: &str, flavour: Flavour, endpoint: Endpoint) -> Self {
        Self::with(mode, flavour, Service::new("web", 20).node_port(NODE_PORT).endpoints([endpoint]))
    }

    pub fn with(mode: &str, flavour: Flavour, service: Service) -> Self {
        let cluster = Cluster::new(flavour, Path::new(BINARY)).configured("mode", json!(mode)).running(&[service]);
        cluster.kill();
        Self { cluster }
    }

    /// One for each mode and flavour that the cause exists in.
    fn each(endpoint: fn() -> Endpoint) -> impl Iterator<Item = (String, Self)> {
        let kinds = [("iptables", Flavour::Nft), ("iptables", Flavour::Legacy), ("nftables", Flavour::Nft)];
        kinds
            .into_iter()
            .map(move |(mode, flavour)| (format!("{mode}, {flavour}"), Self::new(mode, flavour, endpoint())))
    }

    pub fn on_node(&self, line: &str) {
        let _ = self.cluster.on_node(line);
    }

    pub fn nft(&self, text: &str) {
        let mut tool = self.cluster.node().command("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().expect("nft");
        tool.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("it reads");
        assert!(tool.wait().expect("it ends").success(), "{text}");
    }

    pub fn run(&self, words: &str) -> Output {
        let mut command = self.cluster.node().command(BINARY);
        command.envs(self.cluster.environment()).args(words.split_whitespace());
        if words.starts_with("diagnose") {
            let folder = self.cluster.directory();
            command.arg("--config").arg(folder.join("config.yaml")).arg("--objects").arg(folder.join("objects"));
        }
        command.output().expect("it starts")
    }

    /// Whether a client gets an answer at the node port of that family.
    pub fn connects(&self, client: Client<'_>, family: Family) -> bool {
        client.attempt(Tcp, NODE.at(family, NODE_PORT)).is_ok()
    }

    /// Whether a client gets none soon.
    pub fn is_cut(&self, client: Client<'_>, family: Family) -> bool {
        !self.connects_within(client, family, 700)
    }

    /// Whether it gets one within so many milliseconds.
    pub fn connects_within(&self, client: Client<'_>, family: Family, limit: u64) -> bool {
        client.try_within(Tcp, NODE.at(family, NODE_PORT), Duration::from_millis(limit)).is_ok()
    }

    pub fn trace(&self, from: &str, family: Family) -> Value {
        parsed(&self.run(&format!("trace -o json --from {from} --to {}", NODE.at(family, NODE_PORT))))
    }

    /// The causes of failures of that sender, and the exit status.
    pub fn causes(&self, from: &str, family: Family) -> (Vec<String>, i32) {
        let (causes, status) =
            diagnosis(&self.run(&format!("diagnose -o json --from {from} {}", NODE.at(family, NODE_PORT))));
        (causes.into_iter().filter(|cause| cause != "reverse-path-filter?").collect(), status)
    }

    pub fn said(&self, from: &str, family: Family) -> String {
        printed(&self.run(&format!("diagnose -o wide --from {from} {}", NODE.at(family, NODE_PORT))))
    }

    /// Holds the commands against a connection from outside that works.
    #[track_caller]
    pub fn works(&self, what: &str, family: Family) {
        assert!(self.connects(self.cluster.outside(), family), "{what}: no connection");
        let from = OUTSIDE.of(family).to_string();
        let traced = self.trace(&from, family);
        let found = (&traced["certain"], &traced["branches"][0]["verdict"]);
        assert_eq!(found, (&json!(true), &json!("delivered")), "{what}: {traced:#}");
        assert_eq!(self.causes(&from, family), (vec![], 0), "{what}: {}", self.said(&from, family));
    }

    /// Holds them against one that fails: the verdict, the first cause and words of the answer.
    #[track_caller]
    pub fn fails(&self, what: &str, family: Family, verdict: &str, cause: &str, words: &[&str]) {
        assert!(self.is_cut(self.cluster.outside(), family), "{what}: it connects");
        let from = OUTSIDE.of(family).to_string();
        let traced = self.trace(&from, family);
        assert_eq!(traced["branches"][0]["verdict"], verdict, "{what}: {traced:#}");
        let (causes, status) = self.causes(&from, family);
        let said = self.said(&from, family);
        assert_eq!(causes.first().map(String::as_str), Some(cause), "{what}: {causes:?}: {said}");
        assert_eq!(status, if cause.ends_with('?') { 2 } else { 1 }, "{what}: {said}");
        assert!(words.iter().all(|word| said.contains(word)), "{what}: {words:?}: {said}");
    }
}

pub fn near() -> Endpoint {
    ready(POD_5)
}

fn far() -> Endpoint {
    ready(FAR_5)
}

#[test]
fn a_rule_that_keeps_packets_from_being_masqueraded_is_named() {
    for flavour in Flavour::ALL {
        let node = Obstructed::new("iptables", flavour, far());
        node.works("no other rule", Family::V4);
        let rule = |words: &str| node.cluster.iptables(Family::V4, words);
        for (on, off, words) in [
            (
                "-t nat -I POSTROUTING -d 10.244.2.0/24 -j ACCEPT",
                "-t nat -D POSTROUTING 1",
                "nat POSTROUTING: -A POSTROUTING -d 10.244.2.0/24 -j ACCEPT",
            ),
            (
                "-t mangle -I FORWARD -p tcp -j MARK --set-mark 0",
                "-t mangle -D FORWARD 1",
                "-A FORWARD -p tcp -j MARK --set-xmark",
            ),
        ] {
            rule(on);
            node.fails(
                on,
                Family::V4,
                "delivered",
                "masquerade-skipped",
                &["10.244.2.5:8080 sees 192.168.50.1", words],
            );
            rule(off);
        }
        node.works("the rules are gone", Family::V4);
    }
}

#[test]
fn a_rule_that_gives_packets_a_source_of_no_machine_is_named() {
    for (kind, node) in Obstructed::each(far) {
        if kind.starts_with("iptables") {
            node.cluster
                .iptables(Family::V4, "-t nat -I POSTROUTING -d 10.244.2.0/24 -j SNAT --to-source 192.168.50.77");
        } else {
            node.nft("table ip other {\nchain post { type nat hook postrouting priority 90\nip daddr 10.244.2.0/24 snat to 192.168.50.77\n}\n}\n");
        }
        node.fails(
            &kind,
            Family::V4,
            "delivered",
            "masquerade-skipped?",
            &["192.168.50.77, which is no address of this node"],
        );
        let said = printed(&node.run("trace --from outside --to 192.168.50.2:30080"));
        assert!(said.contains("with source address 192.168.50.77, which is none of this node's"), "{said}");
    }
}

#[test]
fn endpoints_of_this_node_answer_through_it_whatever_source_packets_have() {
    let node = Obstructed::new("iptables", Flavour::Nft, near());
    let rule = |words: &str| node.cluster.iptables(Family::V4, words);
    rule("-t nat -I POSTROUTING -d 10.244.1.0/24 -j ACCEPT");
    node.works("ACCEPT", Family::V4);
    // A pod that is sent to itself is another matter.
    let pod = |pod: Pod| node.cluster.pod(pod);
    assert!(node.connects(pod(POD_6), Family::V4) && node.is_cut(pod(POD_5), Family::V4));
    assert_eq!(node.causes("10.244.1.6", Family::V4), (vec![], 0));
    assert_eq!(node.causes("10.244.1.5", Family::V4), (vec!["masquerade-skipped".to_owned()], 1));
    rule("-t nat -R POSTROUTING 1 -d 10.244.1.0/24 -j SNAT --to-source 192.168.50.77");
    node.works("SNAT", Family::V4);
    assert!(node.connects(pod(POD_5), Family::V4));
}

#[test]
fn forwarding_is_that_of_the_interface_in_ipv4_and_of_the_node_in_ipv6() {
    for (kind, node) in Obstructed::each(near) {
        let set = |name: &str, value: i32| node.on_node(&format!("sysctl -q -w {name}={value}"));
        set("net.ipv4.conf.eth0.forwarding", 0);
        node.fails(&kind, Family::V4, "dropped", "ip-forward-off", &["net/ipv4/conf/eth0/forwarding is 0"]);
        set("net.ipv4.ip_forward", 0);
        node.fails(&kind, Family::V4, "dropped", "ip-forward-off", &["net/ipv4/ip_forward is 0"]);
        ["eth0", "pod-5"].iter().for_each(|link| set(&format!("net.ipv4.conf.{link}.forwarding"), 1));
        node.works(&format!("{kind}: the interfaces forward, and ip_forward is 0"), Family::V4);

        node.works(&kind, Family::V6);
        set("net.ipv6.conf.eth0.forwarding", 0);
        node.works(&format!("{kind}: forwarding of an interface is for router advertisements"), Family::V6);
        set("net.ipv6.conf.all.forwarding", 0);
        set("net.ipv6.conf.eth0.forwarding", 1);
        node.fails(&kind, Family::V6, "dropped", "ip-forward-off", &["net/ipv6/conf/all/forwarding is 0"]);
        // As of Linux 6.17.
        if node.cluster.on_node("sysctl -a -N").contains("net.ipv6.conf.eth0.force_forwarding") {
            ["eth0", "pod-5"].iter().for_each(|link| set(&format!("net.ipv6.conf.{link}.force_forwarding"), 1));
            node.works(&format!("{kind}: interfaces that forward all the same"), Family::V6);
        }
    }
}

#[test]
fn ipv6_that_is_off_on_an_interface_drops_what_comes_in_there() {
    let node = Obstructed::new("iptables", Flavour::Nft, near());
    node.works("on", Family::V6);
    // Not on that with the node port's address: without it the packet would not get here.
    let to = "--to [fd00:50::2]:30080 --from fd00:10:244:1::6";
    let verdict = || {
        let traced = parsed(&node.run(&format!("trace -o json {to} --in-interface pod-6")));
        (traced["branches"][0]["verdict"].as_str().map(str::to_owned), traced["certain"] == true)
    };
    assert!(node.connects(node.cluster.pod(POD_6), Family::V6));
    assert_eq!(verdict(), (Some("delivered".to_owned()), true));
    node.on_node("sysctl -q -w net.ipv6.conf.pod-6.disable_ipv6=1");
    assert!(node.is_cut(node.cluster.pod(POD_6), Family::V6));
    assert_eq!(verdict(), (Some("dropped".to_owned()), true));
    let said = printed(&node.run(&format!("diagnose {} --in-interface pod-6", to.trim_start_matches("--to "))));
    assert!(said.contains("IPv6 is off on the interface (disable_ipv6)"), "{said}");
}

#[test]
fn policy_rules_get_protocol_ports_and_type_of_service_of_the_packet() {
    for (kind, node) in Obstructed::each(near) {
        let policy = |action: &str, words: &str| {
            for family in ["-4", "-6"] {
                node.on_node(&format!("ip {family} rule {action} pref 10 {words} blackhole"));
            }
        };
        for family in Family::BOTH {
            for other in ["ipproto udp dport 8080", "ipproto tcp dport 30080", "ipproto tcp dport 9000-9999"] {
                policy("add", other);
                node.works(&format!("{kind}: {other}"), family);
                policy("del", other);
            }
            for hit in ["ipproto tcp", "dport 8080", "ipproto tcp dport 8000-8100"] {
                policy("add", hit);
                node.fails(&format!("{kind}: {hit}"), family, "dropped", "no-route", &["blackhole"]);
                policy("del", hit);
            }
        }
        // The client's port is known only if it is given.
        policy("add", "ipproto tcp sport 40000-40009");
        let to = NODE.at(Family::V4, NODE_PORT);
        for (port, arrives) in [(40001, false), (41001, true)] {
            let outside = node.cluster.outside().from_port(port);
            let is_cut = if arrives { !node.connects(outside, Family::V4) } else { node.is_cut(outside, Family::V4) };
            assert_eq!(is_cut, !arrives, "{kind}: {port}");
            let traced = node.trace(&format!("192.168.50.1:{port}"), Family::V4);
            let verdict = if arrives { "delivered" } else { "dropped" };
            let found = (&traced["certain"], &traced["branches"][0]["verdict"]);
            assert_eq!(found, (&json!(true), &json!(verdict)), "{kind}: {traced:#}");
        }
        let unknown = node.run(&format!("trace --from outside --to {to}"));
        assert_eq!(unknown.status.code(), Some(2), "{kind}: {}", printed(&unknown));
        policy("del", "ipproto tcp sport 40000-40009");
    }
}

#[test]
fn policy_rules_get_the_mark_the_type_of_service_and_the_user() {
    let node = Obstructed::new("iptables", Flavour::Nft, near());
    let policy = |action: &str, words: &str| node.on_node(&format!("ip rule {action} pref 10 {words} blackhole"));
    node.cluster.iptables(Family::V4, "-t mangle -A PREROUTING -p tcp -m tcp --dport 30080 -j TOS --set-tos 0x10");
    node.cluster.iptables(Family::V4, "-t mangle -A PREROUTING -p tcp -m tcp --dport 30080 -j MARK --set-mark 0x7");
    for (hit, other) in [("tos 0x10", "tos 0x08"), ("fwmark 0x7/0xff", "fwmark 0x8/0xff"), ("iif eth0", "iif eth1")] {
        policy("add", other);
        node.works(other, Family::V4);
        policy("del", other);
        policy("add", hit);
        node.fails(hit, Family::V4, "dropped", "no-route", &["blackhole"]);
        policy("del", hit);
    }
    // A process of root is assumed, and the answer says so.
    policy("add", "uidrange 0-0 to 10.244.1.5");
    assert!(node.is_cut(node.cluster.host(), Family::V4));
    let traced = node.trace("host", Family::V4);
    assert_ne!(traced["branches"][0]["verdict"], "delivered", "{traced:#}");
    assert!(traced["branches"][0]["assumed"].to_string().contains("a process of root"), "{traced:#}");
}

#[test]
fn a_ttl_that_a_rule_uses_up_ends_a_packet() {
    for flavour in Flavour::ALL {
        let node = Obstructed::new("iptables", flavour, near());
        for (family, target, option) in [(Family::V4, "TTL", "ttl"), (Family::V6, "HL", "hl")] {
            for (change, arrives) in [("set 1", false), ("set 2", true), ("dec 255", false), ("inc 3", true)] {
                let what = format!("{family:?} {change} ({flavour})");
                node.cluster.iptables(
                    family,
                    &format!("-t mangle -A PREROUTING -p tcp --dport 30080 -j {target} --{option}-{change}"),
                );
                match arrives {
                    true => node.works(&what, family),
                    false => node.fails(&what, family, "rejected", "no-route", &["TTL (hop limit) of 1"]),
                }
                node.cluster.iptables(family, "-t mangle -F PREROUTING");
            }
        }
    }
}

/// What nftables mode leaves of a Service without endpoints: upstream's chain for packets of this node, before they are
/// translated.
const LEFT_TABLE: &str = "table ip kube-proxy {\n\
    map no-endpoint-services {\ntype ipv4_addr . inet_proto . inet_service : verdict\n\
    elements = { 10.96.0.20 . tcp . 80 comment \"default/web:http\" : goto reject-chain }\n}\n\
    chain reject-chain {\nreject\n}\n\
    chain service-endpoints-check {\nip daddr . meta l4proto . th dport vmap @no-endpoint-services\n}\n\
    chain filter-output {\ntype filter hook output priority -110\nct state new jump service-endpoints-check\n}\n}\n";

#[test]
fn rules_that_another_mode_left_are_a_cause_where_they_decide() {
    let node = Obstructed::new("iptables", Flavour::Nft, near());
    let address = Service::new("web", 20).address(Family::V4);
    let host = || node.cluster.host().attempt(Tcp, address).is_ok();
    assert!(host());
    node.nft(&LEFT_TABLE.replace("10.96.0.20 . tcp . 80", &format!("{} . tcp . {}", address.ip(), address.port())));
    assert!(!host());
    let diagnose = || node.run(&format!("diagnose {address} --from host -o json"));
    assert_eq!(diagnosis(&diagnose()), (vec!["two-proxies".to_owned()], 1));
    let said = printed(&node.run(&format!("diagnose {address} --from host")));
    assert!(said.contains("left in nftables mode, and these decide: they refuse it"), "{said}");
}

#[test]
fn rules_of_a_kube_proxy_in_the_other_flavour_are_a_cause_where_they_decide() {
    for flavour in Flavour::ALL {
        let other = if flavour == Flavour::Nft { Flavour::Legacy } else { Flavour::Nft };
        let node = Obstructed::new("iptables", flavour, near());
        for words in [
            "-N KUBE-PROXY-FIREWALL",
            "-A KUBE-PROXY-FIREWALL -p tcp --dport 8080 -j DROP",
            "-A FORWARD -j KUBE-PROXY-FIREWALL",
        ] {
            node.on_node(&format!("iptables-{other} -w 5 {words}"));
        }
        let words = ["flavour of iptables, and these decide: they refuse it"];
        node.fails(&format!("{flavour}"), Family::V4, "dropped", "wrong-flavour", &words);
        node.works("nothing of IPv6", Family::V6);
    }
}

#[test]
fn iptables_chains_beside_nftables_mode_are_not_taken_for_the_rules_in_use() {
    let node = Obstructed::new("nftables", Flavour::Nft, near());
    let left = "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-NODEPORTS - [0:0]\n:KUBE-SVC-LEFT - [0:0]\n:KUBE-SEP-LEFT - [0:0]\n\
        -A PREROUTING -j KUBE-SERVICES\n-A OUTPUT -j KUBE-SERVICES\n\
        -A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n\
        -A KUBE-NODEPORTS -p tcp -m comment --comment \"default/web:http\" -m tcp --dport 30080 -j KUBE-SVC-LEFT\n\
        -A KUBE-SVC-LEFT -j KUBE-SEP-LEFT\n\
        -A KUBE-SEP-LEFT -p tcp -m tcp -j DNAT --to-destination 10.244.1.99:8080\nCOMMIT\n";
    node.cluster.restore(Family::V4, left);
    let reached = node.connects(node.cluster.outside(), Family::V4);
    let traced = node.trace("192.168.50.1", Family::V4);
    let output = node.run("diagnose -o json --from 192.168.50.1 192.168.50.2:30080");
    let (causes, status) = diagnosis(&output);
    let said = node.said("192.168.50.1", Family::V4);
    // Of NAT chains with one priority the newest runs first, which most kernels do not list.
    match traced["certain"] == true {
        true if reached => assert_ne!(status, 1, "{said}"),
        true => assert!(
            status == 1 && causes[0] == "two-proxies" && said.contains("10.244.1.99:8080, which is no endpoint"),
            "{said}"
        ),
        false => assert!(
            said.contains("10.244.1.99:8080") && causes.iter().any(|cause| cause.starts_with("two-proxies")),
            "{said}"
        ),
    }
    assert!(said.contains("rules of nftables mode, and chains KUBE-SVC-… of iptables mode"), "{said}");
}
