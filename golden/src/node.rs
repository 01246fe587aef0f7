//! A node as a network namespace, with a proxy that a test starts, queries, signals and kills.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::apiserver::ApiServer;
use crate::netns::Netns;
use crate::sample;
use crate::seccomp::{self, Denied};

/// The node's name, in `--hostname-override` and the Node object.
pub const NAME: &str = "node-a";

/// The port of the proxy's health checks.
pub const HEALTH: u16 = 10256;
/// The port of the proxy's metrics.
pub const METRICS: u16 = 10249;
/// The timeout of all waits, for a busy machine.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The polling interval.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A node with a proxy that may run on it.
#[derive(Debug)]
pub struct Node {
    child: Option<Child>,
    netns: Netns,
    dir: PathBuf,
    binary: PathBuf,
    /// System calls that fail in the proxy.
    denied: Vec<Denied>,
}

impl Node {
    /// A node without rules; does not start `binary`.
    ///
    /// # Panics
    /// If namespaces or folders cannot be created.
    #[must_use]
    pub fn new(binary: impl Into<PathBuf>) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("node-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&dir).expect("a temporary folder");
        Self { child: None, netns: Netns::new(), dir, binary: binary.into(), denied: Vec::new() }
    }

    /// Makes system calls fail in the proxy and its tools from its next start on.
    pub fn deny(&mut self, denied: &[Denied]) {
        self.denied = denied.to_vec();
    }

    /// The folder of the node, removed with it.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The namespace of the node.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// A sysctl by its path below `/proc/sys`.
    ///
    /// # Panics
    /// If it does not exist.
    #[must_use]
    pub fn sysctl(&self, name: &str) -> String {
        let read = || std::fs::read_to_string(format!("/proc/sys/{name}"));
        self.netns.enter(read).unwrap_or_else(|error| panic!("{name}: {error}")).trim().to_owned()
    }

    /// An API server on the node's loopback address.
    ///
    /// # Panics
    /// If no port is free.
    #[must_use]
    pub fn api_server(&self) -> ApiServer {
        ApiServer::start_on(self.netns.enter(|| TcpListener::bind("127.0.0.1:0").expect("a free port")))
    }

    /// An API server with this Node and the Service `default/web` at 10.96.0.10.
    ///
    /// Its endpoints are in the EndpointSlice `web-1`.
    ///
    /// # Panics
    /// If no port is free.
    #[must_use]
    pub fn api_server_with_web(&self, endpoints: &[&str]) -> ApiServer {
        let api = self.api_server();
        for object in [
            sample::node(NAME, "zone-a"),
            sample::service("web", "10.96.0.10"),
            sample::slice("web-1", "web", endpoints),
        ] {
            api.apply(object);
        }
        api
    }

    /// Starts the proxy without waiting; its log is appended.
    ///
    /// # Panics
    /// If it cannot be started, or one is running.
    pub fn start(&mut self, arguments: &[&str]) {
        self.start_by(&[], arguments);
    }

    /// Starts the proxy by another program, which gets the binary and arguments after its own.
    ///
    /// # Panics
    /// If it cannot be started, or one is running.
    pub fn start_by(&mut self, program: &[&str], arguments: &[&str]) {
        assert!(self.child.is_none(), "a proxy runs already");
        let log = File::options().create(true).append(true).open(self.log_path()).expect("a log file");
        // Tests in the background ignore SIGINT, and under nohup SIGHUP: reset both.
        let mut command = self.netns.command("/usr/bin/env");
        command
            .arg("--default-signal=INT,HUP")
            .args(program)
            .arg(&self.binary)
            .args(["--hostname-override", NAME])
            .args(arguments);
        command.env("XTABLES_LOCKFILE", self.dir.join("xtables.lock"));
        if !self.denied.is_empty() {
            seccomp::deny(&mut command, &self.denied);
        }
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a second handle")).stderr(log);
        self.child = Some(command.spawn().unwrap_or_else(|e| panic!("{}: {e}", self.binary.display())));
    }

    /// Sends a signal to the proxy and waits until it exits.
    ///
    /// # Panics
    /// If none is running, or it does not exit.
    pub fn end(&mut self, signal: Signal) -> ExitStatus {
        self.send(signal);
        self.wait()
    }

    /// Sends a signal to the proxy.
    ///
    /// # Panics
    /// If none is running.
    pub fn send(&self, signal: Signal) {
        let pid = i32::try_from(self.pid().expect("a proxy runs")).expect("a pid");
        kill(Pid::from_raw(pid), signal).expect("a signal");
    }

    /// The process ID of the proxy, if it is running.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Waits until the proxy exits.
    ///
    /// # Panics
    /// If none is running, or it does not exit.
    pub fn wait(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("a proxy runs");
        let mut status = None;
        self.until("the proxy ends", || {
            status = child.try_wait().expect("a child can be waited for");
            status.is_some()
        });
        status.expect("it has ended")
    }

    /// The IPv4 table of nftables mode, as listed by nft; empty if it does not exist.
    #[must_use]
    pub fn table(&self) -> String {
        String::from_utf8_lossy(&self.netns.try_run("nft list table ip kube-proxy").stdout).into_owned()
    }

    /// The whole log of the proxy.
    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    /// Waits for a log line that contains all of `parts`.
    ///
    /// # Panics
    /// At the timeout.
    #[track_caller]
    pub fn until_logged(&self, parts: &[&str]) {
        let has = |line: &str| parts.iter().all(|part| line.contains(part));
        self.until(&format!("a line with {parts:?} is logged"), || self.log().lines().any(has));
    }

    /// Waits until `done` returns true; `what` names the condition.
    ///
    /// # Panics
    /// At the timeout, with the log.
    #[track_caller]
    pub fn until(&self, what: &str, mut done: impl FnMut() -> bool) {
        let deadline = Instant::now() + TIMEOUT;
        while !done() {
            assert!(Instant::now() < deadline, "still waiting: {what}\n{}\n{}", self.log(), self.rules());
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// All iptables tables of both families, without comments and counters.
    ///
    /// # Panics
    /// If iptables fails.
    #[must_use]
    pub fn rules(&self) -> String {
        let mut rules = String::new();
        for program in ["iptables-save", "ip6tables-save"] {
            // The nf_tables flavour may fail while the rules change.
            let saved = (0..10).map(|_| self.netns.try_run(program)).find(|output| output.status.success());
            let saved = saved.unwrap_or_else(|| panic!("{program} fails")).stdout;
            for line in String::from_utf8_lossy(&saved).lines().filter(|line| !line.starts_with('#')) {
                let counters = if line.starts_with(':') { line.find(" [") } else { None };
                rules += &line[..counters.unwrap_or(line.len())];
                rules.push('\n');
            }
        }
        rules
    }

    /// The endpoint addresses in the chains of a Service port (`namespace/name:port`).
    #[must_use]
    pub fn endpoints(&self, service_port: &str) -> BTreeSet<String> {
        endpoints(&self.rules(), service_port)
    }

    /// Waits until a Service port has exactly these endpoints (`10.0.0.1:80`).
    ///
    /// # Panics
    /// At the timeout.
    #[track_caller]
    pub fn until_endpoints(&self, service_port: &str, wanted: &[&str]) {
        let wanted: BTreeSet<String> = wanted.iter().map(|&address| address.to_owned()).collect();
        self.until(&format!("{service_port} has endpoints {wanted:?}"), || self.endpoints(service_port) == wanted);
    }

    /// The status and body of `/healthz` or `/livez`; `None` without an answer.
    #[must_use]
    pub fn health(&self, path: &str) -> Option<(u16, String)> {
        self.get(HEALTH, path)
    }

    /// The status and body of a page at a port of the loopback address; `None` without an answer.
    #[must_use]
    pub fn get(&self, port: u16, path: &str) -> Option<(u16, String)> {
        self.netns.enter(|| get(port, path).ok())
    }

    /// Waits until a health check has this status.
    ///
    /// # Panics
    /// At the timeout.
    #[track_caller]
    pub fn until_health(&self, path: &str, status: u16) {
        self.until(&format!("{path} says {status}"), || self.health(path).is_some_and(|(code, _)| code == status));
    }

    /// The status and body of a page of the metrics server; `None` without an answer.
    #[must_use]
    pub fn page(&self, path: &str) -> Option<(u16, String)> {
        self.get(METRICS, path)
    }

    /// The sum of a metric over all labels, or over those with a prefix (`name{a="b"`); 0 if missing.
    ///
    /// # Panics
    /// If the proxy does not answer.
    #[must_use]
    pub fn metric(&self, name: &str) -> f64 {
        sum(&self.metrics(), name)
    }

    /// The number of label values of a metric.
    ///
    /// # Panics
    /// If the proxy does not answer.
    #[must_use]
    pub fn samples(&self, name: &str) -> usize {
        values(&self.metrics(), name).filter(|value| *value > 0.0).count()
    }

    /// All metrics at one moment.
    ///
    /// # Panics
    /// If the proxy does not answer.
    #[must_use]
    pub fn metrics(&self) -> String {
        let mut text = String::new();
        self.until("/metrics answers", || match self.get(METRICS, "/metrics") {
            Some((200, body)) => {
                text = body;
                true
            }
            _ => false,
        });
        text
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("proxy.log")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// The endpoints of a Service port in rules from [`Node::rules`].
#[must_use]
pub fn endpoints(rules: &str, service_port: &str) -> BTreeSet<String> {
    let comments = [format!(" --comment \"{service_port}\" "), format!(" --comment {service_port} ")];
    let of_it = rules.lines().filter(|line| comments.iter().any(|comment| line.contains(comment)));
    of_it.filter_map(|line| Some(line.split_once(" --to-destination ")?.1.to_owned())).collect()
}

/// The sum of a metric in Prometheus text over all labels, or over those with a prefix; 0 if missing.
#[must_use]
pub fn sum(text: &str, name: &str) -> f64 {
    values(text, name).sum()
}

fn values(text: &str, name: &str) -> impl Iterator<Item = f64> {
    let samples = text.lines().filter_map(move |line| line.strip_prefix(name));
    samples
        .filter(|rest| rest.starts_with(['{', ' ', ',', '}']))
        .filter_map(|rest| rest.rsplit(' ').next()?.parse().ok())
}

/// The status and body of a page of this namespace's loopback address.
///
/// # Errors
/// Without an answer before the timeout.
pub fn get(port: u16, path: &str) -> std::io::Result<(u16, String)> {
    let limit = Duration::from_secs(5);
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    code.zip(body).ok_or_else(|| std::io::Error::other(format!("no answer: {answer:?}")))
}
