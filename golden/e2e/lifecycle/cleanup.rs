//! Leftover state that is removed, and state of other programs that stays.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Output, Stdio};

use golden::node::Node;
use golden::sample::{node, service, slice};

use super::{WEB, World, machine};

/// Cases whose recorded rules are loaded, in this order.
const RECORDED: &[(&str, &str)] = &[
    ("iptables", include_str!("../../cases/100-nodeport-cluster/expected/iptables/00.iptables")),
    ("iptables", include_str!("../../cases/210-lb-source-ranges/expected/iptables/00.iptables")),
    ("ip6tables", include_str!("../../cases/100-nodeport-cluster/expected/iptables/00.ip6tables")),
    ("ip6tables", include_str!("../../cases/601-ipv6-only-services/expected/iptables/00.ip6tables")),
];

/// Rules of other programs in the same tables: a network plugin, the kubelet, an administrator.
const FOREIGN: &str = "*nat\n:CNI-HOSTPORT-DNAT - [0:0]\n:KUBE-KUBELET-CANARY - [0:0]\n:KUBE-HOSTPORTS - [0:0]\n\
                       -A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT\n-A OUTPUT -j KUBE-HOSTPORTS\n\
                       -A CNI-HOSTPORT-DNAT -p tcp --dport 8080 -j RETURN\nCOMMIT\n\
                       *filter\n:CILIUM_INPUT - [0:0]\n-A INPUT -p tcp --dport 22 -j ACCEPT\n-A INPUT -j CILIUM_INPUT\n\
                       -A FORWARD -m comment --comment \"kubernetes service portals\" -j DROP\nCOMMIT\n\
                       *mangle\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n";

const NFT: &str = "table ip kube-proxy {\n  map m { type ipv4_addr : verdict; }\n  chain a { ip daddr vmap @m; }\n  chain b {\n    \
                   type nat hook prerouting priority dstnat;\n    jump a\n  }\n}\n\
                   table ip6 kube-proxy {\n  comment \"rules for kube-proxy\"\n}\n\
                   table ip other {\n  chain c {\n    counter\n  }\n}\ntable inet kube-proxy {\n}\n";

const OURS: &[&str] = &[
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-POSTROUTING",
    "KUBE-MARK-MASQ",
    "KUBE-PROXY-",
    "KUBE-FORWARD",
    "KUBE-SVC-",
    "KUBE-SVL-",
    "KUBE-SEP-",
    "KUBE-FW-",
    "KUBE-EXT-",
];

fn feed(node: &Node, program: &str, arguments: &[&str], text: &str) {
    let mut command = node.netns().command(program);
    command.args(arguments).env("XTABLES_LOCKFILE", node.dir().join("xtables.lock"));
    let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it can be run");
    child.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("it reads");
    let Output { status, stderr, .. } = child.wait_with_output().expect("it ends");
    assert!(status.success(), "{program}: {}\n{text}", String::from_utf8_lossy(&stderr));
}

/// Loads the recorded rules and those of other programs, in a flavour.
fn load(node: &Node, flavour: &str) {
    for (family, text) in RECORDED {
        // The kernel's counters do not matter here.
        let accounting = ["ct_state_invalid_dropped_pkts", "localhost_nps_accepted_pkts"];
        let text = accounting.iter().fold((*text).to_owned(), |text, name| {
            text.replace(&format!(" -m nfacct --nfacct-name {name}"), "")
                .replace(&format!(" -m nfacct --nfacct-name  {name}"), "")
        });
        feed(node, &format!("{family}-{flavour}-restore"), &["-w", "--noflush"], &text);
    }
    for family in ["iptables", "ip6tables"] {
        feed(node, &format!("{family}-{flavour}-restore"), &["-w", "--noflush"], FOREIGN);
    }
}

/// The lines of all tables of a flavour, with the family, without counters.
fn saved(node: &Node, flavour: &str) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    for family in ["iptables", "ip6tables"] {
        let mut table = String::new();
        for line in node.netns().run(&format!("{family}-{flavour}-save")).lines().filter(|line| !line.starts_with('#'))
        {
            if line.starts_with('*') {
                line.clone_into(&mut table);
            }
            lines.insert(format!("{family} {table} {}", line.split(" [").next().unwrap_or(line)));
        }
    }
    lines
}

fn is_ours(line: &str) -> bool {
    OURS.iter().any(|name| line.contains(name))
}

/// The lines of other programs.
fn foreign(lines: &BTreeSet<String>) -> BTreeSet<String> {
    lines.iter().filter(|line| !is_ours(line)).cloned().collect()
}

fn nft_tables(node: &Node) -> Vec<String> {
    node.netns().run("nft list tables").lines().map(str::to_owned).collect()
}

#[test]
fn cleanup_removes_every_mode_and_flavour_and_keeps_foreign_rules() {
    let mut node = machine();
    feed(&node, "nft", &["-f", "-"], NFT);
    let before: Vec<_> = ["nft", "legacy"]
        .map(|flavour| {
            load(&node, flavour);
            saved(&node, flavour)
        })
        .into();
    assert!(before.iter().all(|lines| lines.iter().filter(|line| is_ours(line)).count() > 100));
    // Twice: the second time there is nothing to do.
    for _ in 0..2 {
        node.start(&["--cleanup"]);
        let status = node.wait();
        assert_eq!(status.code(), Some(0), "{}", node.log());
        for (flavour, before) in ["nft", "legacy"].into_iter().zip(&before) {
            let after = saved(&node, flavour);
            // The kubelet's chain stays, and the jumps to it.
            assert!(after.iter().any(|line| line.ends_with("-A INPUT -j KUBE-FIREWALL")), "{flavour}: {after:#?}");
            assert_eq!(after, foreign(before), "{flavour}");
        }
        let tables = nft_tables(&node);
        let left = |name: &str| tables.iter().any(|table| table == name);
        assert!(!left("table ip kube-proxy") && !left("table ip6 kube-proxy"), "{tables:?}");
        assert!(left("table ip other") && left("table inet kube-proxy"), "{tables:?}");
    }
}

#[test]
fn cleanup_creates_no_tables() {
    let mut node = machine();
    node.start(&["--cleanup"]);
    assert_eq!(node.wait().code(), Some(0), "{}", node.log());
    assert_eq!(nft_tables(&node), [""; 0]);
    let legacy = node.netns().enter(|| std::fs::read_to_string("/proc/thread-self/net/ip_tables_names"));
    assert_eq!(legacy.unwrap_or_default(), "", "to look at a table of the legacy flavour would make it");
    assert!(!node.log().contains("nodePortAddresses"), "what does not matter now: {}", node.log());
}

#[test]
fn cleanup_names_state_left_for_want_of_tools() {
    let mut node = machine();
    load(&node, "legacy");
    let before = saved(&node, "legacy");
    node.start_by(&["/usr/bin/env", "PATH=/nowhere"], &["--cleanup"]);
    assert_eq!(node.wait().code(), Some(0), "{}", node.log());
    for family in ["IPv4", "IPv6"] {
        node.until_logged(&[family, "flavour legacy", "no programs in PATH", "stays"]);
    }
    assert_eq!(saved(&node, "legacy"), before);
}

#[test]
fn invalid_configuration_cleans_nothing_up() {
    let mut node = machine();
    load(&node, "nft");
    let before = saved(&node, "nft");
    node.start(&["--cleanup", "--iptables-masquerade-bit=40"]);
    assert_eq!(node.wait().code(), Some(1), "{}", node.log());
    node.until_logged(&["MasqueradeBit", "40"]);
    assert_eq!(saved(&node, "nft"), before);
}

#[test]
fn a_start_removes_what_other_modes_left_once_its_own_rules_are_there() {
    let mut world = World::new();
    feed(&world.node, "nft", &["-f", "-"], NFT);
    load(&world.node, "legacy");
    let before = saved(&world.node, "legacy");
    // Nothing goes before its own rules are in place.
    world.api.fail_next_of("EndpointSlice", usize::MAX, 500);
    feed(&world.node, "iptables-nft-restore", &["--noflush"], "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n");
    world.start(&[]);
    world.node.until_logged(&["Failed to watch EndpointSlices", ": 500 "]);
    assert_eq!(saved(&world.node, "legacy"), before);
    assert!(nft_tables(&world.node).contains(&"table ip kube-proxy".to_owned()));
    world.api.fail_no_more();
    world
        .node
        .until("its rules are there", || saved(&world.node, "nft").iter().any(|line| line.contains("10.96.0.10/32")));
    world.node.until("the others' are gone", || {
        let tables = nft_tables(&world.node);
        saved(&world.node, "legacy") == foreign(&before)
            && !tables.iter().any(|table| ["table ip kube-proxy", "table ip6 kube-proxy"].contains(&&**table))
    });
    assert!(nft_tables(&world.node).contains(&"table ip other".to_owned()));
    assert!(saved(&world.node, "nft").iter().any(|line| line.contains(WEB)), "ours stay");
}

#[test]
fn cleanup_removes_the_state_of_a_killed_proxy() {
    let mut world = World::new();
    let without = [saved(&world.node, "nft"), saved(&world.node, "legacy")];
    for flavour in ["nft", "legacy"] {
        let hint = "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n";
        feed(&world.node, &format!("iptables-{flavour}-restore"), &["--noflush"], hint);
        for name in ["a", "b"] {
            world.api.apply(service(name, "10.96.0.11"));
            world.api.apply(slice(&format!("{name}-1"), name, &["10.244.2.6"]));
        }
        world.api.apply(node("node-a", ""));
        world.start(&[]);
        world.node.until(&format!("{flavour} rules are there"), || {
            saved(&world.node, flavour).iter().any(|line| line.contains("KUBE-SEP-"))
        });
        world.node.end(nix::sys::signal::Signal::SIGTERM);
        world.node.start(&["--cleanup"]);
        assert_eq!(world.node.wait().code(), Some(0), "{}", world.node.log());
        let left: Vec<String> = saved(&world.node, flavour).into_iter().filter(|line| is_ours(line)).collect();
        assert_eq!(left, [""; 0]);
        feed(
            &world.node,
            &format!("iptables-{flavour}-restore"),
            &["--noflush"],
            "*mangle\n-X KUBE-IPTABLES-HINT\nCOMMIT\n",
        );
    }
    assert!(without.iter().all(BTreeSet::is_empty), "the node was bare: {without:?}");
}

#[test]
fn cleanup_removes_the_table_of_a_killed_proxy() {
    let mut world = World::new();
    feed(
        &world.node,
        "nft",
        &["-f", "-"],
        "table ip other {\n  chain c {\n    counter\n  }\n}\ntable inet kube-proxy {\n}\n",
    );
    world.start(&["--proxy-mode=nftables"]);
    let lists = |node: &Node, table: &str| nft_tables(node).contains(&format!("table {table} kube-proxy"));
    world.node.until("its table is there", || {
        lists(&world.node, "ip") && world.node.netns().run("nft list table ip kube-proxy").contains(WEB)
    });
    world.node.end(nix::sys::signal::Signal::SIGTERM);
    assert!(lists(&world.node, "ip"), "its rules outlive it");
    for _ in 0..2 {
        world.node.start(&["--cleanup"]);
        assert_eq!(world.node.wait().code(), Some(0), "{}", world.node.log());
        assert!(!lists(&world.node, "ip") && !lists(&world.node, "ip6"), "{:?}", nft_tables(&world.node));
        assert!(lists(&world.node, "inet") && nft_tables(&world.node).contains(&"table ip other".to_owned()));
    }
}
