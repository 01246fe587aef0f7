//! Sysctls set at the start, and kernels that refuse them.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use nix::sys::signal::Signal;

use super::{World, machine};

const ROUTE_LOCALNET: &str = "net/ipv4/conf/all/route_localnet";
const CLOSE_WAIT: &str = "net/netfilter/nf_conntrack_tcp_timeout_close_wait";
const ESTABLISHED: &str = "net/netfilter/nf_conntrack_tcp_timeout_established";
/// With `/proc/sys` as an ordinary container has it.
const READ_ONLY: &[&str] = &[
    "unshare",
    "--mount",
    "sh",
    "-c",
    "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec \"$@\"",
    "sh",
];

#[test]
fn init_only_sets_sysctls_without_an_api_server_and_makes_no_rules() {
    let mut node = machine();
    node.start(&["--init-only", "--conntrack-tcp-timeout-close-wait=59s", "--conntrack-udp-timeout=1500ms"]);
    assert_eq!(node.wait().code(), Some(0), "{}", node.log());
    for family in ["IPv4", "IPv6"] {
        node.until_logged(&[family, "System initialized and --init-only specified"]);
    }
    assert_eq!([node.sysctl(ROUTE_LOCALNET), node.sysctl(CLOSE_WAIT)], ["1", "59"]);
    assert_eq!(node.sysctl("net/netfilter/nf_conntrack_udp_timeout"), "2", "a part of a second counts as one");
    assert!(!node.rules().contains("KUBE-"), "{}", node.rules());
    assert!(!node.log().contains("Serving"), "{}", node.log());
}

#[test]
fn init_only_leaves_loopback_alone_unless_node_ports_are_to_work_there() {
    for without in ["--iptables-localhost-nodeports=false", "--nodeport-addresses=primary"] {
        let mut node = machine();
        node.start(&["--init-only", without, "--conntrack-tcp-timeout-established=0s"]);
        let established = node.sysctl(ESTABLISHED);
        assert_eq!(node.wait().code(), Some(0), "{}", node.log());
        assert_eq!((node.sysctl(ROUTE_LOCALNET), node.sysctl(ESTABLISHED)), ("0".to_owned(), established), "{without}");
    }
}

#[test]
fn init_only_exits_with_an_error_if_a_sysctl_cannot_be_set() {
    let mut node = machine();
    node.start_by(READ_ONLY, &["--init-only"]);
    assert_eq!(node.wait().code(), Some(1), "{}", node.log());
    node.until_logged(&[ROUTE_LOCALNET, "Read-only file system", "--iptables-localhost-nodeports=false"]);
}

#[test]
fn a_read_only_proc_sys_is_named_and_the_rules_are_synced() {
    let mut world = World::new();
    world.start_by(READ_ONLY, &[]);
    world.settled();
    for sysctl in [ROUTE_LOCALNET, CLOSE_WAIT] {
        world.node.until_logged(&[sysctl, "Read-only file system"]);
    }
    world.node.until_health("/healthz", 200);
    assert_eq!(world.node.end(Signal::SIGTERM).code(), Some(0));
    // Once another has set it, there is nothing to say.
    world.node.start(&["--init-only"]);
    assert_eq!(world.node.wait().code(), Some(0), "{}", world.node.log());
    let said = world.node.log().len();
    world.start_by(READ_ONLY, &["--conntrack-max-per-core=0"]);
    world.node.until_health("/healthz", 200);
    let log = world.node.log();
    assert!(!log[said..].contains("Read-only"), "{}", &log[said..]);
}

#[test]
fn oom_score_is_set() {
    let mut world = World::new();
    // A higher score requires no capability.
    world.start(&["--oom-score-adj=321"]);
    world.settled();
    let pid = world.node.pid().expect("it runs");
    let score = std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("it runs");
    assert_eq!(score.trim(), "321");
}

#[test]
fn inherited_ignored_signal_stays_ignored() {
    let mut world = World::new();
    world.start_by(&["sh", "-c", "trap '' HUP INT; exec \"$@\"", "sh"], &[]);
    world.settled();
    for signal in [Signal::SIGHUP, Signal::SIGINT] {
        world.node.send(signal);
    }
    world.api.apply(golden::sample::slice("web-1", "web", &["10.244.2.9"]));
    world.node.until_endpoints(super::WEB, &["10.244.2.9:8080"]);
    assert_eq!(world.node.end(Signal::SIGTERM).code(), Some(0));
}

#[test]
fn hangup_of_the_terminal_ends_the_proxy_gracefully() {
    let mut world = World::new();
    world.start(&[]);
    world.settled();
    let rules = world.node.rules();
    assert_eq!(world.node.end(Signal::SIGHUP).code(), Some(0));
    world.node.until_logged(&["SIGHUP", "rules left in place"]);
    assert_eq!(world.node.rules(), rules);
}

#[test]
fn hanging_tools_do_not_block_health_checks_or_shutdown() {
    let mut world = World::new();
    let tools = world.node.dir().join("tools");
    std::fs::create_dir(&tools).expect("a folder");
    // It hangs as long as the proxy is there.
    let hang = "#!/bin/sh\nwhile kill -0 $PPID; do sleep 0.1; done\n";
    for tool in ["iptables", "ip6tables", "iptables-nft-save"] {
        let path = tools.join(tool);
        std::fs::write(&path, hang).expect("a program");
        std::fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("it can be run");
    }
    let path = std::env::var("PATH").expect("a PATH");
    let path = format!("PATH={}:{path}", tools.display());
    world.start_by(&["/usr/bin/env", &path], &[]);
    world.node.until("pages are answered", || world.node.page("/metrics").is_some_and(|(status, _)| status == 200));
    let pid = world.node.pid().expect("it runs");
    let children = format!("/proc/{pid}/task");
    world.node.until("a tool hangs", || {
        let tasks = std::fs::read_dir(&children).expect("it runs").flatten();
        tasks.flat_map(|task| std::fs::read_to_string(task.path().join("children"))).any(|list| !list.is_empty())
    });
    assert!(world.node.page("/metrics").is_some(), "{}", world.node.log());
    assert_eq!(world.node.end(Signal::SIGTERM).code(), Some(0), "{}", world.node.log());
}

#[test]
fn a_family_without_tools_is_left_out_beside_one_that_has_them() {
    let mut world = World::new();
    let tools = world.node.dir().join("tools");
    std::fs::create_dir(&tools).expect("a folder");
    let path = format!("PATH={}", tools.display());
    for tool in ["iptables", "iptables-save", "iptables-restore"] {
        let path = world.node.netns().run(&format!("which {tool}"));
        std::os::unix::fs::symlink(path.trim(), tools.join(tool)).expect("a link");
    }
    world.start_by(&["/usr/bin/env", &path], &["--iptables-backend=programs"]);
    world.settled();
    world.node.until_logged(&["single-stack", "ip6tables"]);
    world.node.until_health("/healthz", 200);
}

/// An environment without any iptables program.
const NO_PROGRAMS: [&str; 2] = ["/usr/bin/env", "PATH=/nowhere"];

#[test]
fn without_programs_the_kernels_rules_decide_the_flavour_and_nf_tables_is_written_natively() {
    let mut world = World::new();
    world.start_by(&NO_PROGRAMS, &[]);
    world.settled();
    world.node.until_logged(&["flavour nf_tables", "no iptables in PATH", "the kernel has no legacy iptables rule"]);
    world.node.until_logged(&["Writing iptables rules natively"]);
    world.node.until_logged(&["Running in dual-stack mode"]);
    assert_eq!(world.node.end(Signal::SIGTERM).code(), Some(0), "{}", world.node.log());

    // The kubelet's hint counts more than rules of others.
    world.node.netns().run("iptables-legacy -A INPUT -s 192.0.2.1 -j ACCEPT");
    world.node.netns().run("ip6tables-nft -t mangle -N KUBE-IPTABLES-HINT");
    world.start_by(&NO_PROGRAMS, &[]);
    world.settled();
    world.node.until_logged(&["flavour nf_tables", "chain KUBE-IPTABLES-HINT is in the mangle table of ip6tables-nft"]);
    assert_eq!(world.node.end(Signal::SIGTERM).code(), Some(0), "{}", world.node.log());
}

#[test]
fn without_programs_a_host_of_legacy_rules_is_refused_with_what_to_do() {
    let mut world = World::new();
    // Empty tables are no sign.
    world.node.netns().run("iptables-legacy -t nat -S");
    world.start_by(&NO_PROGRAMS, &["--init-only"]);
    assert_eq!(world.node.wait().code(), Some(0), "{}", world.node.log());
    world.node.netns().run("iptables-legacy -A INPUT -s 192.0.2.1 -j ACCEPT");
    world.start_by(&NO_PROGRAMS, &[]);
    assert_eq!(world.node.wait().code(), Some(1), "{}", world.node.log());
    world.node.until_logged(&["legacy needs the iptables programs", "have 1 entries", "nftables mode"]);
    assert_eq!(world.node.netns().run("nft list ruleset"), "", "nothing was written");
}
