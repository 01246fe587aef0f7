//! Machines: threads in network namespaces of their own, gone with the process.
//!
//! In: a name, `ip` commands, jobs. Out: what came of them, seen from that machine. Must not know: what they are for.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::mpsc;

use netfilter::kernel::netns;

type Job = Box<dyn FnOnce() + Send>;

/// A thread that waits for jobs in its network namespace.
#[derive(Debug)]
pub struct Machine {
    name: String,
    /// By which `ip link` finds the namespace.
    pub thread: i32,
    jobs: mpsc::Sender<Job>,
}

impl Machine {
    /// A machine without interfaces.
    pub fn new(name: &str) -> Result<Self, String> {
        let told = |error: &dyn std::fmt::Display| format!("cannot make the namespace of {name}: {error}");
        let (jobs, work) = mpsc::channel::<Job>();
        let (tell, told_id) = mpsc::channel();
        let body = move || {
            let _ = tell.send(netns::unshare_network());
            work.into_iter().for_each(|job| job());
        };
        std::thread::Builder::new().name(name.to_owned()).spawn(body).map_err(|error| told(&error))?;
        let thread = told_id.recv().map_err(|error| told(&error))?.map_err(|error| told(&error))?;
        Ok(Self { name: name.to_owned(), thread, jobs })
    }

    /// Begins a job and does not wait for it.
    pub fn start(&self, job: impl FnOnce() + Send + 'static) {
        // Whoever waits for the job's results notices that the machine is no more.
        let _ = self.jobs.send(Box::new(job));
    }

    /// Does a job.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
        let (tell, told) = mpsc::channel();
        self.start(move || {
            let _ = tell.send(job());
        });
        told.recv().map_err(|_| format!("{} died", self.name))
    }

    /// Runs `ip` commands on this machine.
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
        // An ip that ends before it has read everything says why by other means.
        let _ = stdin.write_all(commands.as_bytes());
    }
    let output = child.wait_with_output().map_err(|error| format!("ip: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("ip failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim()))
}
