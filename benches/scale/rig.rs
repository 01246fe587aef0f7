//! One measurement: a namespace, an API server in it, a proxy, and changes.

use std::fmt;
use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use golden::apiserver::ApiServer;
use golden::flavour::Flavour;
use golden::netns::Netns;

use crate::Options;
use crate::load;
use crate::process::{self, Cpu};
use crate::traffic::Pods;

/// How long a change may take.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the proxy must be inactive to count as idle.
const IDLE: Duration = Duration::from_millis(1500);
/// The pause between connection attempts during a cold start, which leaves the CPU to the proxy.
const COLD_PAUSE: Duration = Duration::from_millis(10);
const CHANGE_PAUSE: Duration = Duration::from_micros(500);
/// The pause between two changes, so that each is a sync of its own.
const SYNC_PAUSE: Duration = Duration::from_millis(150);

/// A running proxy with its cluster.
#[derive(Debug)]
pub struct Rig {
    // dropped in this order: the proxy ends before its server and namespace
    proxy: ProxyProcess,
    api: ApiServer,
    pods: Pods,
    netns: Netns,
    started: Instant,
    limit: Duration,
    changes: u32,
    services: u32,
    label: String,
}

/// The results.
#[derive(Debug)]
pub struct RigFigures {
    services: u32,
    label: String,
    cold: Duration,
    cold_cpu: Cpu,
    loaded: (u64, u64),
    /// Sorted.
    latencies: Vec<Duration>,
    change_cpu: Cpu,
    changed: (u64, u64),
}

impl Rig {
    /// Creates the cluster and starts the proxy.
    pub fn start(options: &Options, flavour: Flavour, services: u32) -> Result<Self, String> {
        let netns = Netns::new();
        // The cluster IP too: without rules, connections to it are refused and leave no conntrack entries.
        for ip in [load::NODE_IP, load::CLUSTER_IP].into_iter().chain(load::ENDPOINTS).chain(load::others()) {
            netns.run(&format!("ip addr add {ip}/32 dev lo"));
        }
        let pods = netns.enter(Pods::listen);
        let api = ApiServer::start_on(netns.enter(|| TcpListener::bind("127.0.0.1:0")).map_err(|e| e.to_string())?);
        for object in [load::node(), load::service(), load::slice(0)] {
            api.apply(object);
        }
        api.load_synthetic(services, 10);
        // A real server caches encoded objects; the first response must not include encoding.
        api.encode_all();
        let dir = Folder::new(flavour)?;
        let started = Instant::now();
        let proxy = ProxyProcess::start(&netns, &api, dir, options)?;
        let (limit, changes) = (options.limit, options.changes);
        Ok(Self { proxy, api, pods, netns, started, limit, changes, services, label: options.label(flavour) })
    }

    /// The API server.
    pub fn api(&self) -> &ApiServer {
        &self.api
    }

    /// The proxy's namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The proxy's process.
    pub fn pid(&self) -> u32 {
        self.proxy.child.id()
    }

    /// Waits for the first traffic after the start.
    pub fn wait_for_traffic(&mut self) -> Result<Instant, String> {
        let reached = self.wait(0, self.started + self.limit, COLD_PAUSE);
        reached.ok_or_else(|| format!("no traffic within {:?}; {}", self.limit, self.proxy.last_words()))
    }

    /// Waits for traffic to the endpoint of a turn.
    pub fn wait_for_turn(&mut self, turn: usize, deadline: Instant) -> Result<Instant, String> {
        let reached = self.wait(turn, deadline, COLD_PAUSE);
        reached.ok_or_else(|| format!("no traffic to endpoint {turn} in time; {}", self.proxy.last_words()))
    }

    /// Runs all measurements once.
    pub fn measure(&mut self) -> Result<RigFigures, String> {
        let cold = self.wait_for_traffic()? - self.started;
        self.wait_idle();
        let pid = self.pid();
        let (cold_cpu, loaded) = (Cpu::of(pid), process::memory(pid));
        let mut latencies = Vec::new();
        for change in 1..=self.changes {
            let turn = change as usize % 2;
            self.api.apply(load::slice(turn));
            let written = Instant::now();
            let reached = self.wait(turn, written + CHANGE_TIMEOUT, CHANGE_PAUSE);
            let reached = reached.ok_or_else(|| format!("change {change} never came; {}", self.proxy.last_words()))?;
            latencies.push(reached - written);
            sleep(SYNC_PAUSE);
        }
        self.wait_idle();
        latencies.sort_unstable();
        let change_cpu = Cpu::of(pid).since(cold_cpu);
        let (services, label) = (self.services, self.label.clone());
        let changed = process::memory(pid);
        Ok(RigFigures { services, label, cold, cold_cpu, loaded, latencies, change_cpu, changed })
    }

    fn wait(&mut self, turn: usize, deadline: Instant, pause: Duration) -> Option<Instant> {
        let (pods, child) = (&self.pods, &mut self.proxy.child);
        self.netns.enter(|| pods.wait(turn, deadline, pause, || !matches!(child.try_wait(), Ok(None))))
    }

    /// Waits until the proxy is idle, within the limit.
    pub fn wait_idle(&self) {
        let pid = self.proxy.child.id();
        let (mut last, mut since, begun) = (Cpu::of(pid), Instant::now(), Instant::now());
        while since.elapsed() < IDLE && begun.elapsed() < self.limit {
            sleep(Duration::from_millis(100));
            let now = Cpu::of(pid);
            // Handling bookmarks of watches does not count.
            if now.since(last).own > Duration::from_millis(20) || process::children(pid) > 0 {
                (last, since) = (now, Instant::now());
            }
        }
    }
}

/// The proxy's process, killed when dropped.
#[derive(Debug)]
struct ProxyProcess {
    child: Child,
    dir: Folder,
}

impl ProxyProcess {
    fn start(netns: &Netns, api: &ApiServer, dir: Folder, options: &Options) -> Result<Self, String> {
        let log = File::create(dir.0.join("log")).map_err(|error| error.to_string())?;
        let path = format!("{}:{}", dir.0.display(), std::env::var("PATH").unwrap_or_default());
        let mut command = netns.command(&options.binary);
        command.arg("--kubeconfig").arg(api.kubeconfig(&dir.0)).args(["--proxy-mode", &options.mode]);
        command.args(["--hostname-override", load::NODE, "--iptables-min-sync-period", "1ms"]);
        command.args(&options.arguments).env("PATH", path).env("XTABLES_LOCKFILE", dir.0.join("lock"));
        command.stdin(Stdio::null()).stderr(log.try_clone().map_err(|error| error.to_string())?).stdout(log);
        let child = command.spawn().map_err(|error| format!("{}: {error}", options.binary))?;
        Ok(Self { child, dir })
    }

    fn last_words(&self) -> String {
        let log = fs::read_to_string(self.dir.0.join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(5)..].join(" / ")
    }
}

impl Drop for ProxyProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A folder with the kubeconfig, the log, and the tools of one flavour under names without a flavour, for a proxy that
/// looks for `iptables` in PATH.
#[derive(Debug)]
struct Folder(PathBuf);

impl Folder {
    fn new(flavour: Flavour) -> Result<Self, String> {
        let path = std::env::temp_dir().join(format!("scale-{}-{flavour}", std::process::id()));
        fs::create_dir_all(&path).map_err(|error| error.to_string())?;
        let folder = Self(path);
        for (family, suffix) in
            ["iptables", "ip6tables"].into_iter().flat_map(|f| ["", "-save", "-restore"].map(|s| (f, s)))
        {
            let tool = PathBuf::from(format!("/usr/sbin/{family}-{flavour}{suffix}"));
            let _ = fs::remove_file(folder.0.join(format!("{family}{suffix}")));
            symlink(&tool, folder.0.join(format!("{family}{suffix}"))).map_err(|error| error.to_string())?;
        }
        Ok(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl RigFigures {
    /// The header of the table of rows.
    pub const HEADER: &str = "| services x 10 | rules | cold start to traffic | CPU: proxy + tools | resident (peak) \
        | one change p50, p99 (max) | CPU per change: proxy + tools | resident after (peak) |\n\
        |---|---|---|---|---|---|---|---|";
}

impl fmt::Display for RigFigures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let count = u32::try_from(self.latencies.len()).unwrap_or(u32::MAX).max(1);
        let median = self.latencies.get(self.latencies.len() / 2).copied().unwrap_or_default();
        let late = self
            .latencies
            .get((self.latencies.len() * 99).div_ceil(100).saturating_sub(1))
            .copied()
            .unwrap_or_default();
        let worst = self.latencies.last().copied().unwrap_or_default();
        let mb = |(now, peak): (u64, u64)| format!("{:.1} MB ({:.1})", now as f64 / 1e3, peak as f64 / 1e3);
        write!(f, "| {} | {} | {:.2} s ", self.services, self.label, self.cold.as_secs_f64())?;
        write!(f, "| {:.2} + {:.2} s ", self.cold_cpu.own.as_secs_f64(), self.cold_cpu.children.as_secs_f64())?;
        write!(f, "| {} | {:.1}, {:.1} ms ({:.1}) ", mb(self.loaded), ms(median), ms(late), ms(worst))?;
        write!(f, "| {:.1} + {:.1} ms ", ms(self.change_cpu.own / count), ms(self.change_cpu.children / count))?;
        write!(f, "| {} |", mb(self.changed))
    }
}
