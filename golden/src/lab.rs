//! The node on which the cases were recorded, as network namespaces, with a proxy.
//!
//! Reads the canonical state of the node's kernel once it has settled.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::case::{KernelState, Kind, Mode};
use crate::flavour::{Flavour, HINT};
use crate::netns::{Netns, veth};
use crate::pods::{LINK, LocalPods};
use crate::proxy::{Proxy, healthy};

/// The time that an unexpected state must stay unchanged to be final. Beside other tests a health check may be served
/// seconds after the rules are written.
const SETTLE_TIME: Duration = Duration::from_secs(6);
/// The timeout for the proxy to become healthy, and then to settle.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// The time without any change after which the initial state is final.
///
/// The first sync of a thousand endpoints by a debug build, beside other tests, takes some seconds.
const FIRST_CHANGE_TIMEOUT: Duration = Duration::from_secs(20);
/// The interval between two reads; a read takes about as long.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

const SYSCTLS: [&str; 2] = ["net.ipv4.conf.all.route_localnet", "net.netfilter.nf_conntrack_tcp_be_liberal"];
/// The sysctls of IPVS mode.
const IPVS_SYSCTLS: [&str; 6] = [
    "net.ipv4.conf.all.arp_ignore",
    "net.ipv4.conf.all.arp_announce",
    "net.ipv4.ip_forward",
    "net.ipv4.vs.conntrack",
    "net.ipv4.vs.expire_nodest_conn",
    "net.ipv4.vs.expire_quiescent_template",
];

/// All of a state but what the proxy sets up before its rules.
fn rules_of(state: &KernelState) -> KernelState {
    let mut rules = state.clone();
    rules.retain(|kind, _| !matches!(kind, Kind::Sysctl | Kind::Http));
    rules
}

/// A node with its neighbour, and a proxy once started.
#[derive(Debug)]
pub struct Lab {
    // Dropped in this order: the proxy before its namespace and its files.
    proxy: Option<Proxy>,
    node: Netns,
    _neighbour: Netns,
    pods: Option<LocalPods>,
    mode: Mode,
    flavour: Flavour,
    dir: Scratch,
}

impl Lab {
    /// A node for a proxy in `mode`, with a hint of `flavour`.
    ///
    /// # Panics
    /// If namespaces or interfaces cannot be created.
    #[must_use]
    pub fn new(mode: Mode, flavour: Flavour) -> Self {
        let (node, neighbour, dir) = (Netns::new(), Netns::new(), Scratch::new());
        // eth1 precedes eth0 in the kernel's order, as in the recording: rules for addresses follow that order.
        for line in ["ip link add eth1 type veth peer name eth1p", "ip addr add 192.168.60.2/24 dev eth1"] {
            node.run(line);
        }
        veth(&node, "eth0", &neighbour, "eth0");
        neighbour.run("ip addr add 192.168.50.1/24 dev eth0");
        for line in [
            "ip addr add 192.168.50.2/24 dev eth0",
            "ip addr add fd00:50::2/64 dev eth0 nodad",
            "ip route add default via 192.168.50.1",
            "ip addr add fd00:60::2/64 dev eth1 nodad",
            "ip link set eth1 up",
            "ip link set eth1p up",
        ] {
            node.run(line);
        }
        let lab = Self { proxy: None, node, _neighbour: neighbour, pods: None, mode, flavour, dir };
        for family in ["iptables", "ip6tables"] {
            let mut hint = lab.node.command(&format!("{family}-{flavour}"));
            run(hint.args(["-w", "-t", "mangle", "-N", HINT]).envs(lab.env())).expect("the hint chain");
        }
        lab
    }

    /// The namespace of the node.
    #[must_use]
    pub fn node(&self) -> &Netns {
        &self.node
    }

    /// Gives the node the pods that are endpoints in a file of objects.
    pub fn add_pods(&mut self, objects: &Path) {
        self.pods = Some(LocalPods::new(&self.node, objects));
    }

    /// The namespace of these pods.
    ///
    /// # Panics
    /// If there are none.
    #[must_use]
    pub fn pods(&self) -> &Netns {
        self.pods.as_ref().expect("pods").netns()
    }

    /// Takes these pods and their link away.
    pub fn remove_pods(&mut self) {
        if self.pods.is_some() {
            self.node.run(&format!("ip link del {LINK}"));
        }
        self.pods = None;
    }

    /// The folder of the lab, removed with it.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir.0
    }

    /// Starts a proxy with a configuration and a file of objects.
    ///
    /// # Panics
    /// If its files cannot be written or it cannot be started.
    pub fn start(&mut self, binary: &Path, config: &Value, objects: &Path) {
        self.start_with(binary, config, objects, &[]);
    }

    /// As [`Lab::start`], with additional flags.
    ///
    /// # Panics
    /// If its files cannot be written or it cannot be started.
    pub fn start_with(&mut self, binary: &Path, config: &Value, objects: &Path, flags: &[&str]) {
        let json = serde_json::to_string_pretty(config).expect("a configuration"); // which is YAML too
        fs::write(self.dir().join("config.yaml"), json).expect("write the configuration");
        fs::create_dir_all(self.dir().join("objects")).expect("make the objects folder");
        self.replace(objects);
        let path = |name| self.dir().join(name).to_string_lossy().into_owned();
        let (config, objects) = (path("config.yaml"), path("objects"));
        let arguments = [&["--config", &*config, "--objects", &*objects, "-v=2"], flags].concat();
        self.proxy = Some(Proxy::start_with(&self.node, binary, &arguments, self.dir(), &self.env()));
    }

    /// Replaces all objects atomically, by a rename.
    ///
    /// # Panics
    /// If they cannot be read or written.
    pub fn replace(&self, objects: &Path) {
        let next = self.dir().join("next.yaml");
        fs::copy(objects, &next).unwrap_or_else(|e| panic!("{}: {e}", objects.display()));
        fs::rename(next, self.dir().join("objects/objects.yaml")).expect("replace the objects");
    }

    /// Waits until `/healthz` returns 200.
    ///
    /// # Errors
    /// If the proxy exits, or at the timeout.
    pub fn wait_healthy(&mut self) -> Result<(), String> {
        let started = Instant::now();
        while !healthy(&self.node) {
            self.alive()?;
            if started.elapsed() > START_TIMEOUT {
                return Err(format!("not healthy after {START_TIMEOUT:?}; {}", self.log()));
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }

    /// Waits for a state that `wanted` accepts for `hold`, or for one that no longer changes.
    ///
    /// # Errors
    /// If the proxy exits, is unhealthy then, or its rules keep changing.
    pub fn settle(&mut self, hold: Duration, wanted: impl Fn(&KernelState) -> bool) -> Result<KernelState, String> {
        let started = Instant::now();
        let (mut last, mut since) = (Err("nothing read".to_owned()), started);
        let (mut rules, mut changes) = (None, 0);
        loop {
            self.alive()?;
            let asked = Instant::now();
            let state = self.read();
            let cost = asked.elapsed();
            // On a busy machine rules come seconds after sysctls and listeners.
            if let Ok(state) = &state
                && let read = Some(rules_of(state))
                && read != rules
            {
                (rules, changes) = (read, changes + 1);
            }
            if state != last {
                (last, since) = (state, Instant::now());
            }
            // With many rules or other tests on the machine, the proxy needs longer.
            let settle_time = if changes > 1 { SETTLE_TIME.max(cost * 10) } else { FIRST_CHANGE_TIMEOUT };
            if let Ok(state) = &last
                && (since.elapsed() >= settle_time || (since.elapsed() >= hold && wanted(state)))
            {
                let state = state.clone();
                return if healthy(&self.node) { Ok(state) } else { Err(format!("not healthy; {}", self.log())) };
            }
            if started.elapsed() > START_TIMEOUT {
                let why = last.err().map(|e| format!(" ({e})")).unwrap_or_default();
                return Err(format!("not settled after {START_TIMEOUT:?}{why}; {}", self.log()));
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// The current state of the node's kernel.
    ///
    /// # Errors
    /// If a tool fails, as nft tools may while the rules change.
    pub fn read(&self) -> Result<KernelState, String> {
        let mut keys = SYSCTLS.to_vec();
        if self.mode == Mode::Ipvs {
            keys.extend(IPVS_SYSCTLS);
        }
        let mut sysctl = self.node.enter(|| {
            // Sysctls are per namespace, so a thread inside reads them.
            let value = |key: &str| fs::read_to_string(format!("/proc/sys/{}", key.replace('.', "/")));
            let line = |key: &&str| format!("{key} = {}\n", value(key).unwrap_or_default().trim());
            keys.iter().map(line).collect::<String>()
        });
        let mut state = KernelState::new();
        if self.mode == Mode::Ipvs {
            sysctl += &run(self.node.command("ipvsadm").args(["-l", "--timeout"]))?;
            for (kind, tool, words) in [(Kind::Ipvs, "ipvsadm", &["-S", "-n"][..]), (Kind::Ipset, "ipset", &["save"])] {
                state.insert(kind, kind.canonical(&run(self.node.command(tool).args(words))?));
            }
            state.insert(Kind::Addr, Kind::Addr.canonical(&self.bound_addresses()));
        }
        state.insert(Kind::Sysctl, Kind::Sysctl.canonical(&sysctl));
        for kind in [Kind::Iptables, Kind::Ip6tables] {
            let saved = self.flavour.normalise(&self.save(kind, self.flavour)?);
            state.insert(kind, kind.canonical(&saved));
        }
        state.insert(Kind::Http, Kind::Http.canonical(&self.health_checks()));
        Ok(state)
    }

    /// The addresses of IPVS mode's device, in the format of the recording; empty without a device.
    fn bound_addresses(&self) -> String {
        let shown = self.node.try_run("ip addr show kube-ipvs0");
        let shown = String::from_utf8_lossy(&shown.stdout);
        let mut words = shown.split_whitespace().peekable();
        let mut addresses = String::new();
        while let Some(word) = words.next() {
            if let Some(address) = words.peek().filter(|a| word.starts_with("inet") && !a.starts_with("fe80")) {
                addresses += &format!("{address}\n");
            }
        }
        addresses
    }

    /// The listeners at ports from 30000 on and their answers at the node's address, in the format of the recording.
    fn health_checks(&self) -> String {
        let answer = |port: &str| {
            let answer = self.node.try_run(&format!("curl -s -m 2 -i http://192.168.50.2:{port}/"));
            String::from_utf8_lossy(&answer.stdout).replace('\r', "")
        };
        let sockets = self.node.run("ss -Hltn");
        let sockets: BTreeSet<(&str, &str)> = sockets
            .lines()
            .filter_map(|line| line.split_whitespace().nth(3)?.rsplit_once(':'))
            .filter(|(_, port)| port.len() == 5 && port.starts_with('3'))
            // A dual-stack socket counts as the two sockets of kube-proxy. Without the kernel's inet_diag, `ss` does not
            // know which sockets are: those that answer in IPv4.
            .flat_map(|(address, port)| {
                let addresses: &[&str] = match address {
                    "*" if answer(port).is_empty() => &["[::]"],
                    "*" => &["0.0.0.0", "[::]"],
                    _ => &[address],
                };
                addresses.iter().map(move |address| (*address, port)).collect::<Vec<_>>()
            })
            .collect();
        let names: Vec<String> = sockets.iter().map(|(address, port)| format!("{address}:{port}")).collect();
        let mut text = format!("listen {}\n", names.join(" "));
        for (_, port) in sockets {
            text += &format!("--- {port}\n{}\n", answer(port));
        }
        text
    }

    /// Stops the proxy with SIGTERM.
    ///
    /// # Errors
    /// If it has exited before, or does not exit.
    pub fn stop(&mut self) -> Result<(), String> {
        self.proxy.take().map_or(Err("no proxy runs".to_owned()), Proxy::stop)
    }

    /// The rules in the tables of the other flavour, which should be empty.
    ///
    /// # Errors
    /// If a tool fails.
    pub fn strays(&self) -> Result<String, String> {
        let mut strays = String::new();
        for kind in [Kind::Iptables, Kind::Ip6tables] {
            strays += kind.canonical(&self.save(kind, self.flavour.other())?).trim();
        }
        Ok(strays)
    }

    fn save(&self, kind: Kind, flavour: Flavour) -> Result<String, String> {
        run(self.node.command(&format!("{}-{flavour}-save", kind.name())).envs(self.env()))
    }

    /// Each lab has its own lock file, so that the legacy tools of parallel labs do not wait for each other.
    fn env(&self) -> [(&'static str, PathBuf); 1] {
        [("XTABLES_LOCKFILE", self.dir().join("xtables.lock"))]
    }

    fn alive(&mut self) -> Result<(), String> {
        self.proxy.as_mut().and_then(Proxy::exited).map_or(Ok(()), Err)
    }

    fn log(&self) -> String {
        self.proxy.as_ref().map_or("no proxy".to_owned(), |proxy| format!("its log:\n{}", proxy.log_tail(20)))
    }
}

fn run(command: &mut Command) -> Result<String, String> {
    let output = command.stdin(Stdio::null()).output().map_err(|e| format!("{command:?}: {e}"))?;
    if !output.status.success() {
        return Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A temporary folder, removed when dropped.
#[derive(Debug)]
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("lab-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(name);
        fs::create_dir_all(&dir).expect("a temporary folder");
        Self(dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
