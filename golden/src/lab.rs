//! The node the cases were recorded on, as network namespaces, with a proxy that may run on it.
//!
//! In: a flavour of iptables, a binary, a configuration, objects. Out: the canonical state of the node's kernel,
//! read when it has settled. It must not know what that state should be.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::case::{Kind, Mode, State};
use crate::flavour::{Flavour, HINT};
use crate::netns::{Netns, veth};
use crate::proxy::{Proxy, healthy};

/// How long a kernel state that is not the one waited for must stay to be taken for the proxy's last word.
const QUIET: Duration = Duration::from_millis(1500);
/// How long the proxy may take to become healthy, and then again to come to rest.
const LIMIT: Duration = Duration::from_secs(60);
/// How long nothing at all may happen before that is taken for the proxy's last word: the first sync of a thousand
/// endpoints by a build for tests, beside other tests, takes some seconds.
const FIRST_CHANGE: Duration = Duration::from_secs(20);
/// Pause between two reads: a read costs about as much.
const PAUSE: Duration = Duration::from_millis(20);

const SYSCTLS: [&str; 2] = ["net.ipv4.conf.all.route_localnet", "net.netfilter.nf_conntrack_tcp_be_liberal"];
/// Those of IPVS mode.
const IPVS_SYSCTLS: [&str; 6] = [
    "net.ipv4.conf.all.arp_ignore",
    "net.ipv4.conf.all.arp_announce",
    "net.ipv4.ip_forward",
    "net.ipv4.vs.conntrack",
    "net.ipv4.vs.expire_nodest_conn",
    "net.ipv4.vs.expire_quiescent_template",
];

/// A node with its neighbour, and a proxy once it is started.
#[derive(Debug)]
pub struct Lab {
    // the order is the order of dropping: the proxy ends before its namespace and its files go
    proxy: Option<Proxy>,
    node: Netns,
    _neighbour: Netns,
    mode: Mode,
    flavour: Flavour,
    dir: Scratch,
}

impl Lab {
    /// A fresh node for a proxy in `mode`, whose host says that `flavour` is in use.
    ///
    /// # Panics
    /// When namespaces or interfaces cannot be made here.
    #[must_use]
    pub fn new(mode: Mode, flavour: Flavour) -> Self {
        let (node, neighbour, dir) = (Netns::new(), Netns::new(), Scratch::new());
        // As in the recording, eth1 comes before eth0 in the kernel's order, in which rules for addresses stand.
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
        let lab = Self { proxy: None, node, _neighbour: neighbour, mode, flavour, dir };
        for family in ["iptables", "ip6tables"] {
            let mut hint = lab.node.command(&format!("{family}-{flavour}"));
            run(hint.args(["-w", "-t", "mangle", "-N", HINT]).envs(lab.env())).expect("the hint chain");
        }
        lab
    }

    /// The node's namespace.
    #[must_use]
    pub fn node(&self) -> &Netns {
        &self.node
    }

    /// The lab's own files; gone with it.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir.0
    }

    /// Starts a proxy with a configuration and a file of objects.
    ///
    /// # Panics
    /// When its files cannot be written or it cannot be started.
    pub fn start(&mut self, binary: &Path, config: &Value, objects: &Path) {
        self.start_with(binary, config, objects, &[]);
    }

    /// The same, with more flags.
    ///
    /// # Panics
    /// When its files cannot be written or it cannot be started.
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

    /// Replaces all objects at once, by a rename.
    ///
    /// # Panics
    /// When they cannot be read or written.
    pub fn replace(&self, objects: &Path) {
        let next = self.dir().join("next.yaml");
        fs::copy(objects, &next).unwrap_or_else(|e| panic!("{}: {e}", objects.display()));
        fs::rename(next, self.dir().join("objects/objects.yaml")).expect("replace the objects");
    }

    /// Waits until `/healthz` says 200.
    ///
    /// # Errors
    /// When the proxy ends or takes too long.
    pub fn wait_healthy(&mut self) -> Result<(), String> {
        let started = Instant::now();
        while !healthy(&self.node) {
            self.alive()?;
            if started.elapsed() > LIMIT {
                return Err(format!("not healthy after {LIMIT:?}; {}", self.log()));
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Waits for a state that `wanted` accepts and that stays for `hold`, else for one that no longer changes.
    ///
    /// # Errors
    /// When the proxy ends, is unhealthy then, or its rules keep changing.
    pub fn settle(&mut self, hold: Duration, wanted: impl Fn(&State) -> bool) -> Result<State, String> {
        let started = Instant::now();
        let (mut last, mut since, mut changes) = (Err("nothing read".to_owned()), started, 0);
        loop {
            self.alive()?;
            let asked = Instant::now();
            let state = self.read();
            let cost = asked.elapsed();
            if state != last {
                (last, since, changes) = (state, Instant::now(), changes + 1);
            }
            // many rules, or other tests on the machine: the proxy needs longer too
            let patience = if changes > 1 { QUIET.max(cost * 10) } else { FIRST_CHANGE };
            if let Ok(state) = &last
                && (since.elapsed() >= patience || (since.elapsed() >= hold && wanted(state)))
            {
                let state = state.clone();
                return if healthy(&self.node) { Ok(state) } else { Err(format!("not healthy; {}", self.log())) };
            }
            if started.elapsed() > LIMIT {
                let why = last.err().map(|e| format!(" ({e})")).unwrap_or_default();
                return Err(format!("not settled after {LIMIT:?}{why}; {}", self.log()));
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// The state of the node's kernel now.
    ///
    /// # Errors
    /// When a tool fails, which nft tools may do while the rules change.
    pub fn read(&self) -> Result<State, String> {
        let mut keys = SYSCTLS.to_vec();
        if self.mode == Mode::Ipvs {
            keys.extend(IPVS_SYSCTLS);
        }
        let mut sysctl = self.node.enter(|| {
            // a thread of the namespace sees its sysctls
            let value = |key: &str| fs::read_to_string(format!("/proc/sys/{}", key.replace('.', "/")));
            let line = |key: &&str| format!("{key} = {}\n", value(key).unwrap_or_default().trim());
            keys.iter().map(line).collect::<String>()
        });
        let mut state = State::new();
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

    /// The addresses of the device of IPVS mode, as the recording wrote them; none without a device.
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

    /// Who listens at ports from 30000 on, and what each answers at the node's address: as the recording asked.
    fn health_checks(&self) -> String {
        let sockets = self.node.run("ss -Hltn");
        let sockets: BTreeSet<(&str, &str)> = sockets
            .lines()
            .filter_map(|line| line.split_whitespace().nth(3)?.rsplit_once(':'))
            .filter(|(_, port)| port.len() == 5 && port.starts_with('3'))
            // A dual-stack socket counts as the two that upstream has.
            .flat_map(|(address, port)| {
                let addresses: &[&str] = if address == "*" { &["0.0.0.0", "[::]"] } else { &[address] };
                addresses.iter().map(move |address| (*address, port)).collect::<Vec<_>>()
            })
            .collect();
        let names: Vec<String> = sockets.iter().map(|(address, port)| format!("{address}:{port}")).collect();
        let mut text = format!("listen {}\n", names.join(" "));
        for (_, port) in sockets {
            let answer = self.node.try_run(&format!("curl -s -m 2 -i http://192.168.50.2:{port}/"));
            let answer = String::from_utf8_lossy(&answer.stdout).replace('\r', "");
            text += &format!("--- {port}\n{answer}\n");
        }
        text
    }

    /// Ends the proxy by SIGTERM.
    ///
    /// # Errors
    /// When it has ended before or does not end.
    pub fn stop(&mut self) -> Result<(), String> {
        self.proxy.take().map_or(Err("no proxy runs".to_owned()), Proxy::stop)
    }

    /// What is in the tables of the other flavour, where nothing should be.
    ///
    /// # Errors
    /// When a tool fails.
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

    /// Each lab has its own lock, or the legacy tools of parallel labs would wait for each other.
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

/// A folder of its own under the system's temporary one, gone when dropped.
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
