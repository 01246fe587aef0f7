//! Faults of the whole machine, injected in a kernel of its own.

use std::time::Duration;

use golden::cluster::becomes_true;

use super::{Fault, PLAIN, When, last};
use crate::rig::Rig;

/// How many conntrack entries the machine may have.
const MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
const COUNT: &str = "/proc/sys/net/netfilter/nf_conntrack_count";
/// Until a change is in the kernel during the fault.
const CHANGE: Duration = Duration::from_secs(20);
/// User-mode Linux has one CPU, and a system call costs several times a native one.
const SLOW: Duration = Duration::from_secs(40);
/// Fewer connections for the same reason.
const PAUSE: Duration = Duration::from_millis(200);

/// Makes a change during the fault and notes whether it is in the kernel before the fault ends.
fn change_meanwhile(rig: &mut Rig) {
    let pod = rig.change();
    let arrived = becomes_true(CHANGE, || rig.has(&pod));
    rig.notes
        .push(if arrived { "the change arrived meanwhile" } else { "**the change did not arrive meanwhile**" }.into());
}

/// Leaves no room in the node's conntrack table for 10 s.
fn fill_conntrack(rig: &mut Rig) {
    // The connection to the API server was opened before the first rule that needs conntrack: its next packet makes an
    // entry. On a node that has run for a while there is one.
    let pod = rig.change();
    let _ = becomes_true(CHANGE, || rig.has(&pod));
    let max = std::fs::read_to_string(MAX).expect("a sysctl");
    let count = || rig.cluster.node().enter(|| std::fs::read_to_string(COUNT)).expect("a sysctl");
    std::fs::write(MAX, count().trim()).expect("to set the sysctl");
    change_meanwhile(rig);
    last(10);
    std::fs::write(MAX, max.trim()).expect("to set the sysctl");
}

/// Sets the clock by so many seconds.
fn set_clock(rig: &mut Rig, by: i64) {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    let then = now.checked_add_signed(by).expect("after 1970");
    let status = std::process::Command::new("date").args(["--set", &format!("@{then}")]).output().expect("date");
    assert!(status.status.success(), "the clock cannot be set");
    change_meanwhile(rig);
    last(4);
}

pub fn faults() -> Vec<Fault> {
    let fault = Fault { when: When::WithAll, needs_own_kernel: true, within: SLOW, pause: PAUSE, ..PLAIN };
    vec![
        Fault {
            name: "conntrack-full",
            injected: "nf_conntrack_max is as many entries as there are, for 10 s: no new connection at all; a change meanwhile",
            may_lose: true,
            inject: fill_conntrack,
            ..fault
        },
        Fault {
            name: "clock-back",
            injected: "the clock is set back by an hour and stays so; a change then",
            inject: |rig| set_clock(rig, -3600),
            ..fault
        },
        Fault {
            name: "clock-forward",
            injected: "the clock is set forward by a day and stays so; a change then",
            inject: |rig| set_clock(rig, 86_400),
            ..fault
        },
    ]
}
