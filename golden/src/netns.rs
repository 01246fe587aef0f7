//! Network namespaces of tests, removed with their test.
//!
//! A namespace lives as long as a holder process, which dies with the test. Requires root.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Output, Stdio};

use nix::sched::{CloneFlags, setns};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

/// A network namespace, removed when dropped.
#[derive(Debug)]
pub struct Netns {
    holder: Child,
}

impl Netns {
    /// A namespace with `lo` up.
    ///
    /// # Panics
    /// If namespaces cannot be created: a test that cannot run must fail.
    #[must_use]
    #[allow(unsafe_code)] // pre_exec: both calls are async-signal-safe system calls
    pub fn new() -> Self {
        let mut command = Command::new("sleep");
        command.arg("infinity").stdin(Stdio::null());
        // SAFETY: only prctl(2) and unshare(2) run between fork and exec.
        unsafe {
            command.pre_exec(|| {
                set_pdeathsig(Signal::SIGKILL)?;
                Ok(nix::sched::unshare(CloneFlags::CLONE_NEWNET)?)
            });
        }
        let holder = command.spawn().expect("cannot make a network namespace: run the tests as root");
        let netns = Self { holder };
        netns.run("ip link set lo up");
        netns
    }

    /// The process that holds the namespace: `/proc/PID/ns/net`, `ip link set X netns PID`.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.holder.id()
    }

    /// A command that runs inside and is killed when the test dies.
    #[must_use]
    #[allow(unsafe_code)] // pre_exec: both calls are async-signal-safe system calls
    pub fn command(&self, program: &str) -> Command {
        let ns = std::fs::File::open(self.path()).expect("the namespace is there");
        let mut command = Command::new(program);
        // SAFETY: only prctl(2) and setns(2) run between fork and exec.
        unsafe {
            command.pre_exec(move || {
                set_pdeathsig(Signal::SIGKILL)?;
                Ok(setns(&ns, CloneFlags::CLONE_NEWNET)?)
            });
        }
        command
    }

    /// Runs a command line, split at spaces, and returns its standard output.
    ///
    /// # Panics
    /// If it cannot be run or fails.
    #[allow(clippy::must_use_candidate)]
    pub fn run(&self, line: &str) -> String {
        let output = self.try_run(line);
        assert!(output.status.success(), "{line}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs a command line and returns its output and status.
    ///
    /// # Panics
    /// If the program cannot be started.
    #[must_use]
    pub fn try_run(&self, line: &str) -> Output {
        let mut words = line.split_whitespace();
        let program = words.next().expect("a command");
        self.command(program).args(words).stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{line}: {e}"))
    }

    /// Runs `f` on a thread inside the namespace; sockets that it creates stay there.
    ///
    /// # Panics
    /// If `f` panics, or the namespace cannot be joined.
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let ns = std::fs::File::open(self.path()).expect("the namespace is there");
        std::thread::scope(|scope| {
            scope
                .spawn(move || {
                    setns(&ns, CloneFlags::CLONE_NEWNET).expect("join the namespace");
                    f()
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.pid())
    }
}

impl Default for Netns {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// A veth pair with one end in each namespace, both up, without addresses.
///
/// # Panics
/// If `ip` fails.
pub fn veth(a: &Netns, a_name: &str, b: &Netns, b_name: &str) {
    a.run(&format!("ip link add {a_name} type veth peer name {b_name} netns {}", b.pid()));
    a.run(&format!("ip link set {a_name} up"));
    b.run(&format!("ip link set {b_name} up"));
}
