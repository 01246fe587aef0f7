//! Single system calls that fail in the running proxy and its tools.

use std::time::Duration;

use golden::cluster::becomes_true;
use golden::netlink_faults::Failing;
use golden::strace::FailingCalls;
use nix::sys::signal::Signal;

use super::{Fault, PLAIN, When, last};
use crate::rig::Rig;

/// How many changes there are while calls fail, one a second.
const CHANGES: u32 = 6;
/// How many starts there are, each with a later call that fails.
const STARTS: usize = 10;
/// Until a start has succeeded, or has not.
const START: Duration = Duration::from_secs(10);
/// A sync that failed is tried again after the sync period, 30 s, unless a change comes.
const NEXT_SYNC: Duration = Duration::from_secs(45);

/// What is below `/proc/sys` and of interest to a kube-proxy in these modes.
const SYSCTLS: [&str; 11] = [
    "/proc/sys/kernel/osrelease",
    "/proc/sys/net/core/somaxconn",
    "/proc/sys/net/ipv4/conf/all/route_localnet",
    "/proc/sys/net/ipv4/ip_local_port_range",
    "/proc/sys/net/ipv6/conf/all/disable_ipv6",
    "/proc/sys/net/netfilter/nf_conntrack_max",
    "/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal",
    "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait",
    "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established",
    "/proc/sys/net/netfilter/nf_conntrack_udp_timeout",
    "/proc/sys/net/netfilter/nf_conntrack_udp_timeout_stream",
];

/// Has each fifth netlink call fail while changes come.
fn fail_now_and_then(rig: &mut Rig, errno: i32) {
    rig.end(Signal::SIGTERM);
    let supervisor = rig.spawn_supervised(None);
    let pod = rig.change();
    let _ = becomes_true(START, || rig.has(&pod) && rig.is_healthy());
    supervisor.fail(Some(Failing { errno, protocol: None, first: 5, step: Some(5) }));
    for _ in 0..CHANGES {
        rig.change();
        // An address that comes and goes has addresses read and reported.
        let _ = rig.cluster.on_node("ip addr add 192.168.60.9/24 dev eth1");
        last(1);
        let _ = rig.cluster.on_node("ip addr del 192.168.60.9/24 dev eth1");
    }
    supervisor.fail(None);
    rig.notes.push(format!("{} calls failed", supervisor.failed()));
    rig.supervisor = Some(supervisor);
}

/// Starts the proxy again and again, with one more call that fails; then without. `start` says how many calls failed.
fn start_often(rig: &mut Rig, mut start: impl FnMut(&mut Rig, usize) -> usize) {
    let (mut failed, mut ended) = (0, 0);
    for nth in 1..=STARTS {
        rig.end(Signal::SIGTERM);
        failed += start(rig, nth);
        if rig.has_ended() {
            eprintln!("start {nth} ended by itself:\n{}", rig.log_tail());
            ended += 1;
        }
    }
    rig.end(Signal::SIGTERM);
    rig.supervisor = None;
    rig.spawn(&[]);
    rig.notes.push(format!("{failed} calls failed"));
    if ended > 0 {
        rig.notes.push(format!("{ended} of {STARTS} starts ended by themselves"));
    }
}

/// Waits until a start has succeeded or the proxy has ended by itself.
fn settle(rig: &mut Rig) {
    let pod = rig.change();
    let _ = becomes_true(START, || rig.has_ended() || (rig.has(&pod) && rig.is_healthy()));
}

/// In the n-th start the n-th opening of a file below `/proc/sys` by each thread fails.
fn fail_sysctls(rig: &mut Rig) {
    start_often(rig, |rig, nth| {
        let when = nth.to_string();
        rig.spawn_with_failing(&FailingCalls { syscalls: &["openat"], errno: "EIO", when: &when, paths: &SYSCTLS });
        settle(rig);
        rig.failed_calls()
    });
}

/// In the n-th start the n-th netlink call of a protocol fails.
fn fail_nth(rig: &mut Rig, protocol: i32, errno: i32) {
    start_often(rig, |rig, nth| {
        // The last one's supervisor goes only now, after its proxy.
        rig.supervisor =
            Some(rig.spawn_supervised(Some(Failing { errno, protocol: Some(protocol), first: nth, step: None })));
        settle(rig);
        rig.supervisor.as_ref().map_or(0, golden::netlink_faults::Supervisor::failed)
    });
}

pub fn faults() -> Vec<Fault> {
    let fault = Fault { when: When::WithAll, within: NEXT_SYNC, ..PLAIN };
    vec![
        Fault {
            name: "netlink-enobufs",
            injected: "each fifth netlink call, send or receive, in tools too, fails with ENOBUFS (seccomp notification) during 6 changes",
            when: When::InSample,
            inject: |rig| fail_now_and_then(rig, libc::ENOBUFS),
            ..fault
        },
        Fault {
            name: "netlink-enomem",
            injected: "the same with ENOMEM",
            inject: |rig| fail_now_and_then(rig, libc::ENOMEM),
            ..fault
        },
        Fault {
            name: "netlink-eintr",
            injected: "the same with EINTR",
            inject: |rig| fail_now_and_then(rig, libc::EINTR),
            ..fault
        },
        Fault {
            name: "netlink-enospc",
            injected: "the same with ENOSPC",
            inject: |rig| fail_now_and_then(rig, libc::ENOSPC),
            ..fault
        },
        Fault {
            name: "rtnetlink-nth",
            injected: "10 starts; in the n-th the n-th rtnetlink call (getifaddrs, address changes) fails with ENOMEM",
            inject: |rig| fail_nth(rig, libc::NETLINK_ROUTE, libc::ENOMEM),
            ..fault
        },
        Fault {
            name: "nfnetlink-nth",
            injected: "10 starts; in the n-th the n-th netfilter netlink call, in tools too, fails with ENOBUFS",
            inject: |rig| fail_nth(rig, libc::NETLINK_NETFILTER, libc::ENOBUFS),
            ..fault
        },
        Fault {
            name: "sysctl-unreadable",
            injected: "10 starts; in the n-th the n-th opening of a file in /proc/sys by each thread fails with EIO (strace)",
            inject: fail_sysctls,
            ..fault
        },
    ]
}
