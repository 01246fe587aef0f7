//! Faults of the iptables tools. nftables mode runs none.

use std::time::Duration;

use golden::flavour::Flavour;
use golden::tools::ToolFault;

use super::{Fault, PLAIN, When, last};
use crate::rig::Rig;

/// A sync that failed is tried again after the sync period, 30 s, unless a change comes.
const NEXT_SYNC: Duration = Duration::from_secs(45);

/// Has tools fail while a change comes.
fn with(rig: &mut Rig, part: &str, fault: ToolFault, seconds: u64) {
    rig.tools.fault(part, fault);
    rig.change();
    last(seconds);
    rig.tools.mend();
}

pub fn faults() -> Vec<Fault> {
    vec![
        Fault {
            name: "restore-hangs",
            injected: "iptables-restore hangs for 6 s, then goes on",
            inject: |rig| with(rig, "restore", ToolFault::Hang, 6),
            in_nftables: false,
            ..PLAIN
        },
        Fault {
            name: "restore-fails",
            injected: "iptables-restore exits with 1 for 4 s",
            when: When::WithAll,
            within: NEXT_SYNC,
            inject: |rig| with(rig, "restore", ToolFault::Fail, 4),
            in_nftables: false,
            ..PLAIN
        },
        Fault {
            name: "restore-lies",
            injected: "iptables-restore prints nonsense and exits with 0 without doing anything for 4 s",
            when: When::WithAll,
            within: NEXT_SYNC,
            inject: |rig| with(rig, "restore", ToolFault::Garbage, 4),
            in_nftables: false,
            ..PLAIN
        },
        Fault {
            name: "save-garbage",
            injected: "a restart while iptables-save prints nonsense and exits with 0, for 4 s",
            within: NEXT_SYNC,
            inject: |rig| restart_while_saving(rig, ToolFault::Garbage),
            in_nftables: false,
            ..PLAIN
        },
        Fault {
            name: "tools-missing",
            injected: "all iptables tools are gone after the start, for 4 s; a change meanwhile",
            within: NEXT_SYNC,
            inject: |rig| with(rig, "tables", ToolFault::Missing, 4),
            in_nftables: false,
            ..PLAIN
        },
        Fault {
            name: "xtables-lock",
            injected: "another program holds the xtables lock for 8 s (legacy iptables); a change meanwhile",
            when: When::WithAll,
            flavour: Flavour::Legacy,
            within: NEXT_SYNC,
            inject: |rig| {
                let [(_, lock)] = rig.cluster.environment();
                let mut holder = std::process::Command::new("flock")
                    .arg(lock)
                    .args(["sleep", "8"])
                    .spawn()
                    .expect("flock of util-linux");
                rig.change();
                let _ = holder.wait();
            },
            in_nftables: false,
            ..PLAIN
        },
        Fault {
            name: "restore-killed",
            injected: "iptables-restore is killed by SIGKILL at its start for 4 s",
            when: When::WithAll,
            within: NEXT_SYNC,
            inject: |rig| with(rig, "restore", ToolFault::Killed, 4),
            in_nftables: false,
            ..PLAIN
        },
        Fault {
            name: "tools-slow",
            injected: "every iptables tool takes a second longer for 6 s",
            when: When::WithAll,
            inject: |rig| with(rig, "tables", ToolFault::Slow, 6),
            in_nftables: false,
            ..PLAIN
        },
        Fault {
            name: "save-fails",
            injected: "a restart while iptables-save fails, for 4 s",
            when: When::WithAll,
            within: NEXT_SYNC,
            inject: |rig| restart_while_saving(rig, ToolFault::Fail),
            in_nftables: false,
            ..PLAIN
        },
    ]
}

/// Restarts the proxy while iptables-save has a fault, for 4 s.
fn restart_while_saving(rig: &mut Rig, fault: ToolFault) {
    rig.tools.fault("save", fault);
    rig.end(nix::sys::signal::Signal::SIGTERM);
    rig.spawn(&[]);
    last(4);
    rig.tools.mend();
}
