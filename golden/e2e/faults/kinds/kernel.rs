//! What others do to the kernel's state.

use std::time::Duration;

use super::{Fault, PLAIN, When, last};
use crate::rig::Rig;

/// Until rules that others removed are back: what carries connections is gone meanwhile.
const REPAIR: Duration = Duration::from_secs(10);

fn on_node(rig: &Rig, line: &str) {
    let _ = rig.cluster.on_node(line);
}

/// The chain of a Service port in table nat.
fn service_chain(rig: &Rig, comment: &str) -> String {
    let rules = rig.cluster.on_node("iptables-nft-save -t nat");
    let rule = rules.lines().find(|line| line.starts_with("-A KUBE-SERVICES ") && line.contains(comment));
    rule.and_then(|rule| rule.rsplit("-j ").next()).expect("the Service has a chain").to_owned()
}

pub fn faults() -> Vec<Fault> {
    vec![
        Fault {
            name: "nft-flush-ruleset",
            injected: "`nft flush ruleset`, as by a reload of nftables.service",
            may_lose: true,
            within: REPAIR,
            inject: |rig| on_node(rig, "nft flush ruleset"),
            ..PLAIN
        },
        Fault {
            name: "iptables-flush",
            injected: "`iptables -F` and `-t nat -F`",
            may_lose: true,
            within: REPAIR,
            when: When::WithAll,
            in_nftables: false,
            inject: |rig| {
                on_node(rig, "iptables-nft -w -F");
                on_node(rig, "iptables-nft -w -t nat -F");
            },
            ..PLAIN
        },
        Fault {
            name: "jump-deleted",
            injected: "`iptables -t nat -D PREROUTING 1`: the jump to KUBE-SERVICES is gone",
            may_lose: true,
            within: REPAIR,
            in_nftables: false,
            inject: |rig| on_node(rig, "iptables-nft -w -t nat -D PREROUTING 1"),
            ..PLAIN
        },
        Fault {
            name: "foreign-jump",
            injected: "a foreign rule jumps to a Service's chain, then the Service is deleted",
            in_nftables: false,
            inject: |rig| {
                rig.api.apply(golden::sample::service("victim", "10.96.0.70"));
                rig.api.apply(golden::sample::slice("victim-1", "victim", &["10.244.2.5"]));
                let known = || rig.cluster.on_node("iptables-nft-save -t nat").contains("victim");
                golden::cluster::eventually("the Service is programmed", Duration::from_secs(20), known);
                let chain = service_chain(rig, "default/victim:http");
                on_node(rig, "iptables-nft -w -t nat -N FOREIGN");
                on_node(rig, &format!("iptables-nft -w -t nat -A FOREIGN -j {chain}"));
                rig.api.delete("EndpointSlice", "default", "victim-1");
                rig.api.delete("Service", "default", "victim");
                last(2);
            },
            ..PLAIN
        },
        Fault {
            name: "address-comes-and-goes",
            injected: "an address of the node comes and goes 5 times in 5 s (keepalived)",
            inject: |rig| {
                for _ in 0..5 {
                    on_node(rig, "ip addr add 192.168.60.9/24 dev eth1");
                    std::thread::sleep(Duration::from_millis(500));
                    on_node(rig, "ip addr del 192.168.60.9/24 dev eth1");
                    std::thread::sleep(Duration::from_millis(500));
                }
            },
            ..PLAIN
        },
        Fault {
            name: "link-down",
            injected: "another interface of the node is down for 2 s",
            when: When::WithAll,
            inject: |rig| {
                on_node(rig, "ip link set eth1 down");
                last(2);
                on_node(rig, "ip link set eth1 up");
            },
            ..PLAIN
        },
        Fault {
            name: "foreign-reload",
            injected: "a foreign `iptables-restore` replaces its own table as a whole, 10 times",
            when: When::WithAll,
            inject: |rig| {
                for _ in 0..10 {
                    on_node(rig, "iptables-nft -w -t raw -F");
                    on_node(rig, "iptables-nft -w -t raw -A PREROUTING -p udp --dport 1 -j ACCEPT");
                }
            },
            ..PLAIN
        },
        Fault {
            name: "services-flushed",
            injected: "`iptables -t nat -F KUBE-SERVICES`",
            when: When::WithAll,
            may_lose: true,
            within: REPAIR,
            in_nftables: false,
            inject: |rig| on_node(rig, "iptables-nft -w -t nat -F KUBE-SERVICES"),
            ..PLAIN
        },
        Fault {
            name: "foreign-return",
            injected: "a foreign `-j RETURN` as first rule of KUBE-SERVICES",
            when: When::WithAll,
            may_lose: true,
            within: REPAIR,
            in_nftables: false,
            inject: |rig| on_node(rig, "iptables-nft -w -t nat -I KUBE-SERVICES 1 -j RETURN"),
            ..PLAIN
        },
        Fault {
            name: "postrouting-flushed",
            injected: "`iptables -t nat -F KUBE-POSTROUTING`: nothing is masqueraded",
            when: When::WithAll,
            may_lose: true,
            within: REPAIR,
            in_nftables: false,
            inject: |rig| on_node(rig, "iptables-nft -w -t nat -F KUBE-POSTROUTING"),
            ..PLAIN
        },
        Fault {
            name: "table-deleted",
            injected: "`nft delete table ip nat`",
            when: When::WithAll,
            may_lose: true,
            within: REPAIR,
            in_nftables: false,
            inject: |rig| on_node(rig, "nft delete table ip nat"),
            ..PLAIN
        },
        Fault {
            name: "ipv6-flushed",
            injected: "`ip6tables -t nat -F`",
            when: When::WithAll,
            may_lose: true,
            within: REPAIR,
            in_nftables: false,
            inject: |rig| on_node(rig, "ip6tables-nft -w -t nat -F"),
            ..PLAIN
        },
        Fault {
            name: "canary-deleted",
            injected: "the canary chain KUBE-PROXY-CANARY is deleted, all else stays",
            when: When::WithAll,
            within: REPAIR,
            in_nftables: false,
            inject: |rig| on_node(rig, "iptables-nft -w -t mangle -X KUBE-PROXY-CANARY"),
            ..PLAIN
        },
    ]
}
