//! A small cluster with an API server on its node and the proxy under test.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use golden::apiserver::ApiServer;
use golden::cluster::{Cluster, FAR_5, Family, NODE, POD_5, Pod, Protocol, VIP, becomes_true, eventually};
use golden::flavour::Flavour;
use golden::netlink_faults::{Failing, Supervisor};
use golden::node::{HEALTH, get};
use golden::sample::{service, slice};
use golden::seccomp::{self, Denied};
use golden::strace::{FailingCalls, failed_calls};
use golden::tools::Tools;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::traffic::ways;

/// The node port of the Service under traffic.
pub const NODE_PORT: u16 = 30080;
/// The timeout of waits that are not measured.
const LIMIT: Duration = Duration::from_secs(180);
/// The addresses of the proxy's servers.
const PORTS: [&str; 2] = ["--healthz-bind-address=0.0.0.0:10256", "--metrics-bind-address=127.0.0.1:10249"];

/// The cluster IP and port of the Service under traffic.
pub fn cluster_ip(family: Family) -> SocketAddr {
    let address = if family == Family::V4 { "10.96.0.50" } else { "fd00:10:96::50" };
    SocketAddr::new(address.parse().expect("an address"), golden::cluster::PORT)
}

/// The objects that faults are injected into.
pub struct Rig {
    // Dropped in this order: the proxy must end before its namespace.
    proxy: Option<Child>,
    /// Decides about the proxy's netlink calls, if it was spawned with one.
    pub supervisor: Option<Supervisor>,
    /// The API server, on the node's loopback address.
    pub api: ApiServer,
    /// The proxy's iptables tools.
    pub tools: Tools,
    /// The namespaces.
    pub cluster: Arc<Cluster>,
    /// What is to be said in the table beside the figures.
    pub notes: Vec<String>,
    binary: PathBuf,
    changes: u8,
}

impl Rig {
    /// The namespaces, the API server and its objects; no proxy yet.
    pub fn new(flavour: Flavour, binary: &Path) -> Self {
        let cluster = Arc::new(Cluster::new(flavour, binary));
        let api = ApiServer::start_on(cluster.node().enter(|| TcpListener::bind("127.0.0.1:0")).expect("a free port"));
        api.apply(node());
        for object in web() {
            api.apply(object);
        }
        api.apply(service("canary", "10.96.0.60"));
        let tools = Tools::of_flavour(cluster.directory(), flavour);
        Self {
            proxy: None,
            supervisor: None,
            api,
            tools,
            cluster,
            notes: Vec::new(),
            binary: binary.to_owned(),
            changes: 0,
        }
    }

    /// Starts the proxy and waits until it works.
    pub fn start(&mut self) {
        self.spawn(&[]);
        assert!(self.recovers(LIMIT), "it does not start:\n{}", self.log_tail());
    }

    /// Starts the proxy, with system calls that fail in it, without waiting.
    pub fn spawn(&mut self, denied: &[Denied]) {
        self.spawn_logging_to(self.log(), self.log(), denied);
    }

    /// The same, with its output going elsewhere.
    pub fn spawn_logging_to(&mut self, out: Stdio, err: Stdio, denied: &[Denied]) {
        assert!(self.proxy.is_none(), "a proxy runs");
        let mut command = self.command(&PORTS);
        if !denied.is_empty() {
            seccomp::deny(&mut command, denied);
        }
        self.proxy = Some(command.stdout(out).stderr(err).spawn().expect("the proxy starts"));
    }

    /// Starts the proxy with single system calls that fail in it and its tools, without waiting.
    pub fn spawn_with_failing(&mut self, calls: &FailingCalls<'_>) {
        assert!(self.proxy.is_none(), "a proxy runs");
        let _ = std::fs::remove_file(self.strace_log());
        let mut command = self.cluster.node().command("strace");
        command.args(calls.wrap(&self.binary, &self.strace_log()));
        self.configure(&mut command, &PORTS);
        self.proxy = Some(command.stdout(self.log()).stderr(self.log()).spawn().expect("strace starts"));
    }

    /// How many calls failed since [`Self::spawn_with_failing`].
    pub fn failed_calls(&self) -> usize {
        failed_calls(&self.strace_log())
    }

    /// Starts the proxy with a supervisor of its netlink calls, without waiting. The proxy must end before it.
    pub fn spawn_supervised(&mut self, failing: Option<Failing>) -> Supervisor {
        assert!(self.proxy.is_none(), "a proxy runs");
        let mut command = self.command(&PORTS);
        command.stdout(self.log()).stderr(self.log());
        let (proxy, supervisor) = Supervisor::spawn(command, failing);
        self.proxy = Some(proxy);
        supervisor
    }

    /// What starts a proxy on the node.
    pub fn command(&self, ports: &[&str]) -> Command {
        let mut command = self.cluster.node().command(&self.binary.to_string_lossy());
        self.configure(&mut command, ports);
        command
    }

    fn configure(&self, command: &mut Command, ports: &[&str]) {
        let mode = if is_nftables() { "nftables" } else { "iptables" };
        command.args([
            "--master",
            &self.api.url(),
            "--hostname-override=node-a",
            "--cluster-cidr=10.244.0.0/16,fd00:10:244::/56",
        ]);
        command.args([&format!("--proxy-mode={mode}"), "--iptables-min-sync-period=0s", "-v=2"]).args(ports);
        command.args(["--conntrack-max-per-core=0", "--conntrack-min=0"]);
        // Many faults are those of the programs. The real kube-proxy has no such flag.
        if std::env::var_os("BESIDE").is_none_or(|beside| beside != *self.binary.as_os_str()) {
            let backend = std::env::var("IPTABLES_BACKEND").unwrap_or_else(|_| "programs".to_owned());
            command.arg(format!("--iptables-backend={backend}"));
        }
        command.env("PATH", self.tools.path()).envs(self.cluster.environment());
        command.stdin(Stdio::null());
    }

    /// Sends the proxy a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("a signal");
    }

    /// Sends the proxy a signal and waits for its end.
    pub fn end(&mut self, signal: Signal) {
        let mut proxy = self.proxy.take().expect("a proxy runs");
        // Unless it is waited for, its number is its own.
        if proxy.try_wait().expect("a child").is_none() {
            kill(Pid::from_raw(proxy.id().cast_signed()), signal).expect("a signal");
        }
        eventually("the proxy ends", LIMIT, || proxy.try_wait().expect("a child").is_some());
    }

    /// Whether the proxy has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.proxy.as_mut().is_some_and(|proxy| proxy.try_wait().expect("a child").is_some())
    }

    /// Notes it if the proxy has ended by itself: a kubelet would start it again, the harness does not.
    pub fn note_end(&mut self) {
        if self.has_ended() {
            self.notes.push("**it has ended by itself**".to_owned());
        }
    }

    /// The proxy's process.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.proxy.as_ref().expect("a proxy runs").id().cast_signed())
    }

    /// Makes a change that can be seen in the kernel: another endpoint of a Service without traffic. Returns its address.
    pub fn change(&mut self) -> String {
        self.changes = self.changes % 200 + 1;
        let pod = format!("10.244.3.{}", self.changes);
        self.api.apply(slice("canary-1", "canary", &[&pod]));
        pod
    }

    /// Whether that endpoint is in the kernel.
    pub fn has(&self, pod: &str) -> bool {
        let command = if is_nftables() {
            "nft list table ip kube-proxy".to_owned()
        } else {
            format!("iptables-{}-save -t nat", self.cluster.flavour())
        };
        let listed = self.cluster.node().try_run(&command).stdout;
        let listed = String::from_utf8_lossy(&listed);
        [format!("{pod}:8080"), format!("{pod} . 8080")].iter().any(|endpoint| listed.contains(endpoint))
    }

    /// Makes a change, and waits until it is in the kernel, health is well and every address answers.
    pub fn recovers(&mut self, within: Duration) -> bool {
        let pod = self.change();
        let healthy = || self.is_healthy();
        let answers = || {
            let mut attempts =
                ways(&self.cluster).into_iter().flat_map(|way| [(way, Protocol::Tcp), (way, Protocol::Udp)]);
            attempts.all(|((client, to), protocol)| client.try_within(protocol, to, Duration::from_millis(500)).is_ok())
        };
        becomes_true(within, || self.has(&pod) && healthy() && answers())
    }

    /// Whether `/healthz` answers 200.
    pub fn is_healthy(&self) -> bool {
        self.cluster.node().enter(|| get(HEALTH, "/healthz")).is_ok_and(|(code, _)| code == 200)
    }

    /// Asks `/healthz` again and again.
    pub fn watch_health(&self) -> HealthWatch {
        let (stop, seen) = (Arc::<AtomicBool>::default(), Arc::<Mutex<BTreeSet<Option<u16>>>>::default());
        let (cluster, stopped, codes) = (self.cluster.clone(), stop.clone(), seen.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let code = cluster.node().enter(|| get(HEALTH, "/healthz")).ok().map(|(code, _)| code);
                codes.lock().expect("no panic").insert(code);
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        HealthWatch { stop, seen, thread }
    }

    /// The last lines of the proxy's log.
    pub fn log_tail(&self) -> String {
        let log = std::fs::read_to_string(self.log_path()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    fn log(&self) -> Stdio {
        File::options().create(true).append(true).open(self.log_path()).expect("a log file").into()
    }

    fn log_path(&self) -> PathBuf {
        self.cluster.directory().join("proxy.log")
    }

    fn strace_log(&self) -> PathBuf {
        self.cluster.directory().join("strace.log")
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.tools.mend();
        if let Some(proxy) = &mut self.proxy {
            let _ = proxy.kill();
            let _ = proxy.wait();
        }
    }
}

/// A thread that asks for health.
pub struct HealthWatch {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<BTreeSet<Option<u16>>>>,
    thread: std::thread::JoinHandle<()>,
}

impl HealthWatch {
    /// Stops; every answer that came, `None` for no answer.
    pub fn stop(self) -> BTreeSet<Option<u16>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("it does not panic");
        self.seen.lock().expect("no panic").clone()
    }
}

/// Whether the proxy runs in nftables mode.
pub fn is_nftables() -> bool {
    std::env::var("MODE").is_ok_and(|mode| mode == "nftables")
}

/// The Node object of the node.
pub fn node() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node-a" },
        "spec": { "podCIDRs": ["10.244.1.0/24", "fd00:10:244:1::/64"] },
        "status": { "addresses": [
            { "type": "InternalIP", "address": NODE.0 }, { "type": "InternalIP", "address": NODE.1 },
        ] },
    })
}

/// A dual-stack Service with TCP and UDP at all kinds of addresses, and an endpoint on each node.
fn web() -> Vec<Value> {
    let ips = Family::BOTH.map(|family| cluster_ip(family).ip().to_string());
    let ports: Vec<Value> = ["TCP", "UDP"]
        .map(|protocol| {
            let name = protocol.to_lowercase();
            json!({ "name": name, "port": 80, "protocol": protocol, "targetPort": 8080, "nodePort": NODE_PORT })
        })
        .into();
    let mut objects = vec![json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web", "namespace": "default" },
        "spec": {
            "type": "LoadBalancer", "clusterIP": ips[0], "clusterIPs": ips, "ipFamilies": ["IPv4", "IPv6"],
            "ipFamilyPolicy": "RequireDualStack", "ports": ports,
        },
        "status": { "loadBalancer": { "ingress": [{ "ip": VIP.0 }, { "ip": VIP.1 }] } },
    })];
    for (family, kind) in Family::BOTH.into_iter().zip(["IPv4", "IPv6"]) {
        let endpoint = |pod: Pod| json!({ "addresses": [pod.address.text(family)], "conditions": { "ready": true }, "nodeName": pod.node });
        let ports: Vec<Value> = ["TCP", "UDP"]
            .map(|protocol| json!({ "name": protocol.to_lowercase(), "port": 8080, "protocol": protocol }))
            .into();
        objects.push(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": kind,
            "metadata": {
                "name": format!("web-{}", kind.to_lowercase()), "namespace": "default",
                "labels": { "kubernetes.io/service-name": "web" },
            },
            "ports": ports, "endpoints": [endpoint(POD_5), endpoint(FAR_5)],
        }));
    }
    objects
}
