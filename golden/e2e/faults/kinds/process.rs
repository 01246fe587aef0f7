//! Faults of the proxy's own process.

use std::process::Command;
use std::time::Duration;

use golden::seccomp::Denied;
use nix::sys::signal::Signal;

use super::{Fault, PLAIN, When, last};
use crate::rig::Rig;

/// How long the proxy runs without some system call.
const DENIED: u64 = 4;

/// Runs the proxy without a system call for a while, then with all.
fn without(rig: &mut Rig, denied: Denied) {
    rig.end(Signal::SIGKILL);
    rig.spawn(&[denied]);
    rig.change();
    last(DENIED);
    // It may have ended by itself.
    rig.end(Signal::SIGKILL);
    rig.spawn(&[]);
}

/// Kills the proxy at moments spread over a sync; `KILLS` times.
fn kill_often(rig: &mut Rig) {
    let kills = std::env::var("KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(5);
    for kill in 0..kills {
        rig.change();
        // Not random, so that a failure can be repeated: spread evenly, in another order than the moments'.
        std::thread::sleep(Duration::from_millis(kill * 97 % 400));
        rig.end(Signal::SIGKILL);
        rig.spawn(&[]);
    }
}

fn limit_descriptors(rig: &Rig, limits: &str) {
    let (pid, limits) = (format!("--pid={}", rig.pid()), format!("--nofile={limits}"));
    let status = Command::new("prlimit").args([pid, limits]).status().expect("prlimit of util-linux");
    assert!(status.success());
}

pub fn faults() -> Vec<Fault> {
    vec![
        Fault {
            name: "kill-9",
            injected: "SIGKILL up to 0.4 s after a change and a start, `KILLS` times (5 if not set)",
            inject: kill_often,
            ..PLAIN
        },
        Fault {
            name: "restart",
            injected: "SIGTERM and a new start, as by an update of the image",
            when: When::WithAll,
            inject: |rig| {
                rig.end(Signal::SIGTERM);
                rig.spawn(&[]);
            },
            ..PLAIN
        },
        Fault {
            name: "stopped",
            injected: "SIGSTOP for 5 s, a change meanwhile",
            when: When::WithAll,
            inject: |rig| {
                rig.signal(Signal::SIGSTOP);
                rig.change();
                last(5);
                rig.signal(Signal::SIGCONT);
            },
            ..PLAIN
        },
        Fault {
            name: "two-proxies",
            injected: "a second proxy on the same node for 5 s, changes meanwhile",
            inject: |rig| {
                let ports = ["--healthz-bind-address=127.0.0.1:20256", "--metrics-bind-address=127.0.0.1:20249"];
                let mut command = rig.command(&ports);
                let mut other = command
                    .stdout(std::process::Stdio::null())
                    .stderr(std::process::Stdio::null())
                    .spawn()
                    .expect("it starts");
                for _ in 0..5 {
                    rig.change();
                    last(1);
                }
                let _ = other.kill();
                let _ = other.wait();
            },
            ..PLAIN
        },
        Fault {
            name: "no-descriptors",
            injected: "RLIMIT_NOFILE below what is open for 4 s: no file, pipe or socket can be opened; a change meanwhile",
            within: Duration::from_secs(60),
            inject: |rig| {
                limit_descriptors(rig, "10:20000");
                rig.change();
                last(4);
                limit_descriptors(rig, "1024:20000");
            },
            ..PLAIN
        },
        Fault {
            name: "no-netlink",
            injected: "a start without netlink sockets: socket(AF_NETLINK) fails with ENOMEM for 4 s (seccomp), in tools too",
            inject: |rig| {
                let family = Some(libc::AF_NETLINK.cast_unsigned());
                without(rig, Denied { syscall: libc::SYS_socket, errno: libc::ENOMEM, first_argument: family });
            },
            ..PLAIN
        },
        Fault {
            name: "no-inotify",
            injected: "a start without inotify: inotify_init1 fails with EMFILE (seccomp)",
            when: When::WithAll,
            inject: |rig| {
                without(rig, Denied { syscall: libc::SYS_inotify_init1, errno: libc::EMFILE, first_argument: None });
            },
            ..PLAIN
        },
        Fault {
            name: "no-pipes",
            injected: "a start without pipes: pipe2 fails with ENFILE for 4 s (seccomp)",
            when: When::WithAll,
            inject: |rig| {
                without(rig, Denied { syscall: libc::SYS_pipe2, errno: libc::ENFILE, first_argument: None });
            },
            ..PLAIN
        },
        Fault {
            name: "no-threads",
            injected: "a start without threads and processes: clone3 fails with EAGAIN for 4 s (seccomp), as at a limit on tasks",
            when: When::WithAll,
            inject: |rig| {
                without(rig, Denied { syscall: libc::SYS_clone3, errno: libc::EAGAIN, first_argument: None });
            },
            ..PLAIN
        },
        Fault {
            name: "log-full",
            injected: "a restart with a log on a full disk (/dev/full)",
            when: When::WithAll,
            inject: |rig| {
                let full = || std::fs::File::options().write(true).open("/dev/full").expect("a device").into();
                rig.end(Signal::SIGTERM);
                rig.spawn_logging_to(full(), full(), &[]);
            },
            ..PLAIN
        },
        Fault {
            name: "log-closed",
            injected: "a restart with a log that has no reader: a closed pipe",
            when: When::WithAll,
            inject: |rig| {
                let closed = || std::io::pipe().expect("a pipe").1.into();
                rig.end(Signal::SIGTERM);
                rig.spawn_logging_to(closed(), closed(), &[]);
            },
            ..PLAIN
        },
        Fault {
            name: "metrics-port-taken",
            injected: "a restart while another program has the metrics port",
            when: When::WithAll,
            inject: |rig| {
                rig.end(Signal::SIGTERM);
                let taken = rig.cluster.node().enter(|| std::net::TcpListener::bind("127.0.0.1:10249"));
                rig.spawn(&[]);
                last(3);
                drop(taken);
            },
            ..PLAIN
        },
    ]
}
