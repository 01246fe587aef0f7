//! The cost of starting a kube-proxy, ours or upstream's, against a running API server, for both sides.
//!
//! Run it in the network namespace of the API server (`ip netns exec`), with the Services loaded. Environment:
//! `KUBECONFIG`;
//! `SERVER_PID`, whose CPU time is counted; `SERVER_PORT` (6443); `PROBE`, the cluster IP and port of one Service, as
//! `10.96.0.7:80`; `ENDPOINTS`, the addresses and ports of its endpoints, comma-separated; and `KUBE_PROXY`, `MODE` and
//! `ARGUMENTS` as
//! for the other measurements of this bench.

use std::fmt;
use std::fs::File;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use golden::node::{METRICS, get, sum};

use crate::Options;
use crate::process::{self, Cpu};

/// How long proxy and server must be idle for the start to be over.
const IDLE_TIME: Duration = Duration::from_secs(2);
/// The pause between two connection attempts.
const CONNECT_PAUSE: Duration = Duration::from_millis(5);
/// How long a connection may take before no rule handles it.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(50);
/// The nftables table that counts the server's bytes.
const TABLE: &str = "attached-bench";

/// The cost of one start.
#[derive(Debug)]
pub struct AttachFigures {
    cold: Duration,
    cpu: Cpu,
    /// Resident kilobytes: now, and at most.
    memory: (u64, u64),
    server_cpu: Duration,
    /// Bytes sent by the server, with TCP and IP headers.
    bytes: u64,
    requests: f64,
}

impl AttachFigures {
    /// The header of the table of rows.
    pub const HEADER: &str = "| cold start to traffic | CPU: proxy + tools | resident (peak) | server CPU | bytes from the server \
        | requests |\n|---|---|---|---|---|---|";
}

impl fmt::Display for AttachFigures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (now, peak) = (self.memory.0 as f64 / 1e3, self.memory.1 as f64 / 1e3);
        write!(f, "| {:.2} s ", self.cold.as_secs_f64())?;
        write!(f, "| {:.2} + {:.2} s ", self.cpu.own.as_secs_f64(), self.cpu.children.as_secs_f64())?;
        write!(f, "| {now:.1} MB ({peak:.1}) | {:.2} s ", self.server_cpu.as_secs_f64())?;
        write!(f, "| {:.1} MB | {} |", self.bytes as f64 / 1e6, self.requests)
    }
}

/// Starts the proxy and waits until proxy and server are idle.
///
/// # Errors
/// A missing variable, or no traffic in time.
pub fn measure(options: &Options) -> Result<AttachFigures, String> {
    let variable = |name: &str| std::env::var(name).map_err(|_| format!("{name} is not set"));
    let parse = |name: &str, text: &str| text.parse().map_err(|error| format!("{name}: {text}: {error}"));
    let server: u32 = variable("SERVER_PID")?.parse().map_err(|error| format!("SERVER_PID: {error}"))?;
    let probe: SocketAddr = parse("PROBE", &variable("PROBE")?)?;
    let endpoints = variable("ENDPOINTS")?;
    let endpoints: Vec<SocketAddr> =
        endpoints.split(',').map(|text| parse("ENDPOINTS", text)).collect::<Result<_, _>>()?;
    let pods = endpoints.iter().map(listen).collect::<Result<Vec<_>, _>>()?;
    // Until a rule translates it, the probed address is a local one at which nothing listens.
    ip(&["addr", "replace", &format!("{}/32", probe.ip()), "dev", "lo"])?;
    let counter = Counter::new(&std::env::var("SERVER_PORT").unwrap_or_else(|_| "6443".to_owned()))?;
    let (before, started) = (Cpu::of(server), Instant::now());
    let mut proxy = start(options, &variable("KUBECONFIG")?)?;
    let cold = wait_for_traffic(&mut proxy.0, probe, &pods, started + options.limit)? - started;
    let pid = proxy.0.id();
    wait_idle(&[pid, server], options.limit);
    let (_, metrics) = get(METRICS, "/metrics").map_err(|error| format!("{METRICS}: {error}"))?;
    Ok(AttachFigures {
        cold,
        cpu: Cpu::of(pid),
        memory: process::memory(pid),
        server_cpu: Cpu::of(server).since(before).own,
        bytes: counter.bytes()?,
        requests: sum(&metrics, "rest_client_requests_total"),
    })
}

/// Listens on an endpoint's address, which is added to this host.
fn listen(endpoint: &SocketAddr) -> Result<TcpListener, String> {
    ip(&["addr", "replace", &format!("{}/32", endpoint.ip()), "dev", "lo"])?;
    let listener = TcpListener::bind(endpoint).map_err(|error| format!("{endpoint}: {error}"))?;
    listener.set_nonblocking(true).map_err(|error| format!("{endpoint}: {error}"))?;
    Ok(listener)
}

/// A proxy that is killed when dropped.
struct Proxy(Child);

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(options: &Options, kubeconfig: &str) -> Result<Proxy, String> {
    let log = File::create(std::env::temp_dir().join("attached-bench.log")).map_err(|error| error.to_string())?;
    let mut command = Command::new(&options.binary);
    command.args(["--kubeconfig", kubeconfig, "--proxy-mode", &options.mode, "--conntrack-max-per-core", "0"]);
    command.args(&options.arguments).stdin(Stdio::null());
    command.stderr(log.try_clone().map_err(|error| error.to_string())?).stdout(log);
    command.spawn().map(Proxy).map_err(|error| format!("{}: {error}", options.binary))
}

fn wait_for_traffic(
    proxy: &mut Child,
    probe: SocketAddr,
    pods: &[TcpListener],
    deadline: Instant,
) -> Result<Instant, String> {
    while Instant::now() < deadline {
        if TcpStream::connect_timeout(&probe, CONNECT_TIMEOUT).is_ok() && pods.iter().any(|pod| pod.accept().is_ok()) {
            return Ok(Instant::now());
        }
        if !matches!(proxy.try_wait(), Ok(None)) {
            return Err("the proxy ended; its log is in attached-bench.log".to_owned());
        }
        sleep(CONNECT_PAUSE);
    }
    Err("no traffic in time; the proxy's log is in attached-bench.log".to_owned())
}

fn wait_idle(pids: &[u32], limit: Duration) {
    let used = || pids.iter().map(|pid| Cpu::of(*pid).own).sum::<Duration>();
    let (mut last, mut since, begun) = (used(), Instant::now(), Instant::now());
    while since.elapsed() < IDLE_TIME && begun.elapsed() < limit {
        sleep(Duration::from_millis(100));
        let now = used();
        // An idle API server uses a little.
        if now - last > Duration::from_millis(30) {
            since = Instant::now();
        }
        last = now;
    }
}

/// Counts the bytes that a TCP port of this namespace sends.
struct Counter;

impl Counter {
    fn new(port: &str) -> Result<Self, String> {
        let rules = format!(
            "table inet {TABLE} {{\nchain input {{\ntype filter hook input priority 0; tcp sport {port} counter\n}}\n}}"
        );
        output(Command::new("nft").arg(rules))?;
        Ok(Self)
    }

    fn bytes(&self) -> Result<u64, String> {
        let table = output(Command::new("nft").args(["list", "table", "inet", TABLE]))?;
        let bytes = table.split_whitespace().skip_while(|word| *word != "bytes").nth(1);
        bytes.and_then(|bytes| bytes.parse().ok()).ok_or_else(|| format!("no counter in {table:?}"))
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        let _ = output(Command::new("nft").args(["delete", "table", "inet", TABLE]));
    }
}

fn ip(arguments: &[&str]) -> Result<String, String> {
    output(Command::new("ip").args(arguments))
}

fn output(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}
