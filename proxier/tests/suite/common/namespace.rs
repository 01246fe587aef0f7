//! Runs a test on a thread of its own in an empty network namespace. Needs root.

use std::process::Command;

use netfilter::kernel::{DeviceName, Links, SystemLinks};
use nix::sched::{CloneFlags, unshare};

/// Runs a test in a namespace of its own.
pub fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        enter_new();
        test();
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// Moves this thread to a new namespace.
pub fn enter_new() {
    unshare(CloneFlags::CLONE_NEWNET).expect("cannot make a network namespace: run the tests as root");
    let mut links = SystemLinks::open().expect("rtnetlink");
    // Without any address the kernel takes every address for a broadcast.
    links.set_up(DeviceName::new("lo"), true).expect("lo goes up");
}

/// Runs a command line, split at blanks; a thread's children are in its namespace.
pub fn run(line: &str) -> String {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().expect("a command")).args(words).output();
    let output = output.unwrap_or_else(|e| panic!("{line}: {e}"));
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}
