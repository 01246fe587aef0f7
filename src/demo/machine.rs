//! Machines of the demo: threads in their own network namespaces, which end with the process.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::mpsc;

use netfilter::kernel::netns;

type Job = Box<dyn FnOnce() + Send>;

/// A thread that runs jobs in its network namespace.
#[derive(Debug)]
pub struct Machine {
    name: String,
    /// The thread ID by which `ip link` finds the namespace.
    pub thread: i32,
    jobs: mpsc::Sender<Job>,
}

impl Machine {
    /// A machine without interfaces.
    pub fn new(name: &str) -> Result<Self, String> {
        let failure = |error: &dyn std::fmt::Display| format!("cannot make the namespace of {name}: {error}");
        let (jobs, work) = mpsc::channel::<Job>();
        let (sender, thread_id) = mpsc::channel();
        let body = move || {
            let _ = sender.send(netns::unshare_network());
            work.into_iter().for_each(|job| job());
        };
        std::thread::Builder::new().name(name.to_owned()).spawn(body).map_err(|error| failure(&error))?;
        let thread = thread_id.recv().map_err(|error| failure(&error))?.map_err(|error| failure(&error))?;
        Ok(Self { name: name.to_owned(), thread, jobs })
    }

    /// Starts a job without waiting for it.
    pub fn start(&self, job: impl FnOnce() + Send + 'static) {
        // A caller that waits for the job's results notices that the machine has ended.
        let _ = self.jobs.send(Box::new(job));
    }

    /// Runs a job and returns its result.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
        let (sender, result) = mpsc::channel();
        self.start(move || {
            let _ = sender.send(job());
        });
        result.recv().map_err(|_| format!("{} died", self.name))
    }

    /// Runs `ip` commands, one per line, in the calling thread's namespace.
    pub fn ip(&self, commands: String) -> Result<(), String> {
        self.run(move || ip(&commands))?.map_err(|error| format!("{}: {error}", self.name))
    }
}

/// Runs `ip` commands, a line each, where the calling thread is.
pub fn ip(commands: &str) -> Result<(), String> {
    let start = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = start.map_err(|error| format!("cannot run ip, of the package iproute2: {error}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // If ip exits early, its status and standard error say why.
        let _ = stdin.write_all(commands.as_bytes());
    }
    let output = child.wait_with_output().map_err(|error| format!("ip: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("ip failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim()))
}
