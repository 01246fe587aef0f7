//! A cluster in network namespaces, for tests with real packets.
//!
//! node-a runs the proxy under test; pods, node-b and a host outside are clients. Each test has its own cluster.
//!
//! ```text
//! outside 192.168.50.1 (and .11 to .22), routes the Service networks to node-a
//!    ├── node-a 192.168.50.2, eth1 192.168.60.2     the proxy under test
//!    │     ├── pod-5 10.244.1.5    each in a namespace of its own, on a routed link
//!    │     ├── pod-6 10.244.1.6
//!    │     ├── pod-9 10.244.1.9
//!    │     └── stranger            answers at Service addresses what node-a did not translate
//!    └── node-b 192.168.50.3     far-5 10.244.2.5, far-6 10.244.2.6
//! ```

mod address;
mod client;
mod objects;
pub(crate) mod sctp;
mod server;
mod tables;
mod wait;
mod wiring;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

pub use address::*;
pub use client::{Answer, Client, Failure, Flow, Protocol, Session};
pub use objects::{Endpoint, PORT, Service, ready, stopping, terminating, unready};
pub use sctp::SctpSink;
pub use tables::SavedRules;
pub use wait::{becomes_true, eventually};

use server::Servers;
use tables::Iptables;
use wiring::Wiring;

use crate::case::Mode;
use crate::flavour::{Flavour, HINT};
use crate::netns::Netns;
use crate::proxy::{Proxy, healthy};

/// The timeout for the proxy's start.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// A cluster, removed when dropped, except its folder when the test fails.
#[derive(Debug)]
pub struct Cluster {
    // Dropped in this order: the proxy before its namespace, the servers before theirs.
    proxy: Mutex<Option<Proxy>>,
    servers: Servers,
    wiring: Wiring,
    iptables: Iptables,
    binary: PathBuf,
    directory: PathBuf,
    config: Value,
}

impl Cluster {
    /// Creates hosts and pods and a hint of the iptables flavour; does not start the proxy.
    ///
    /// # Panics
    /// If namespaces, addresses or sockets cannot be created.
    #[must_use]
    pub fn new(flavour: Flavour, binary: &Path) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("packets-{}-{number}", std::process::id()));
        std::fs::create_dir_all(directory.join("objects")).expect("a folder for the cluster");

        let wiring = Wiring::new();
        let servers = Servers::new();
        for pod in LOCAL_PODS.iter().chain(&FAR_PODS) {
            servers.start(pod, wiring.home(pod), TARGET_PORT);
        }
        servers.start_stranger(&wiring.stranger);
        let iptables = Iptables { flavour, lock: directory.join("xtables.lock") };
        for family in Family::BOTH {
            iptables.run(&wiring.node, family, &format!("-t mangle -N {HINT}"));
        }
        let config = json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
            "mode": "iptables", "hostnameOverride": "node-a", "clusterCIDR": "10.244.0.0/16,fd00:10:244::/56",
            // Limits of the whole machine, which a test must not change.
            "conntrack": { "maxPerCore": 0, "min": 0 }, "oomScoreAdj": 0,
            // A long period, so that early changes come from events.
            "iptables": { "syncPeriod": "5m", "minSyncPeriod": "100ms" },
            "nftables": { "syncPeriod": "5m", "minSyncPeriod": "100ms" },
            "ipvs": { "syncPeriod": "5m", "minSyncPeriod": "100ms" },
        });
        Self { proxy: Mutex::new(None), servers, wiring, iptables, binary: binary.to_owned(), directory, config }
    }

    /// Sets a field of the proxy's configuration, before it starts.
    #[must_use]
    pub fn configured(mut self, field: &str, value: Value) -> Self {
        self.config[field] = value;
        self
    }

    /// Sets the mode of the proxy from its next start on.
    ///
    /// # Panics
    /// If the configuration cannot be written.
    pub fn set_mode(&mut self, mode: Mode) {
        self.config["mode"] = json!(mode.to_string());
        let config = self.directory.join("config.yaml");
        std::fs::write(&config, self.config.to_string()).expect("write the configuration");
    }

    /// Writes the Services and starts the proxy.
    ///
    /// # Panics
    /// If the proxy does not start.
    #[must_use]
    pub fn running(self, services: &[Service]) -> Self {
        self.write(services);
        self.start();
        self
    }

    /// Replaces all Services and endpoints atomically.
    ///
    /// # Panics
    /// If the file cannot be written.
    pub fn write(&self, services: &[Service]) {
        // Outside the watched folder, where the proxy would read an incomplete file.
        let draft = self.directory.join("draft.yaml");
        std::fs::write(&draft, objects::file(services)).expect("write the objects");
        std::fs::rename(draft, self.directory.join("objects/cluster.yaml")).expect("replace the objects");
    }

    /// Starts the proxy, also after a kill, and waits until it has synced, which older rules may simulate.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start(&self) {
        let config = self.directory.join("config.yaml");
        if !config.exists() {
            std::fs::write(&config, self.config.to_string()).expect("write the configuration");
        }
        let mut proxy = Proxy::start(&self.wiring.node, &self.binary, &self.directory, &self.environment());
        let markers = objects::markers();
        let [in_nat, in_filter] = [&markers[0], &markers[1]].map(Service::full_name);
        eventually("the proxy is healthy and has synced", START_TIMEOUT, || {
            if let Some(end) = proxy.exited() {
                panic!("{end}");
            }
            let synced = |family: &Family| {
                if self.config["mode"] == "nftables" {
                    let table = self.table(*family);
                    return table.contains(&in_nat) && table.contains(&in_filter);
                }
                if self.config["mode"] == "ipvs" {
                    let servers = self.servers();
                    let address = |service: &Service| format!("-A -t {} ", service.address(*family));
                    // Rules that refer to sets are written last.
                    let rules = self.rules(*family, "nat").text().contains("CLUSTER-IP dst,dst -j ACCEPT");
                    return rules && markers.iter().all(|service| servers.contains(&address(service)));
                }
                self.rules(*family, "nat").mention(&in_nat) && self.rules(*family, "filter").mention(&in_filter)
            };
            healthy(&self.wiring.node) && Family::BOTH.iter().all(synced)
        });
        *self.proxy.lock().expect("no thread panicked with the proxy in hand") = Some(proxy);
    }

    /// The table of nftables mode, as listed by nft; empty if it does not exist.
    #[must_use]
    pub fn table(&self, family: Family) -> String {
        let name = match family {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        };
        let listed = self.wiring.node.try_run(&format!("nft list table {name} kube-proxy"));
        String::from_utf8_lossy(&listed.stdout).into_owned()
    }

    /// The parts of the table, sorted.
    #[must_use]
    pub fn table_parts(&self, family: Family) -> Vec<String> {
        let text = self.table(family);
        let mut parts: Vec<String> = text.split([',', '\n']).map(|part| part.trim().to_owned()).collect();
        parts.sort_unstable();
        parts
    }

    /// Kills the proxy with SIGKILL.
    ///
    /// # Panics
    /// If another thread panicked while starting or killing one.
    pub fn kill(&self) {
        *self.proxy.lock().expect("no thread panicked with the proxy in hand") = None;
    }

    /// The proxy's log since its start.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("proxy.log")).unwrap_or_default()
    }

    /// A client in a pod.
    #[must_use]
    pub fn pod(&self, pod: Pod) -> Client<'_> {
        Client { netns: self.wiring.home(&pod), name: pod.name, source: Some(pod.address), port: 0 }
    }

    /// A client on node-a.
    #[must_use]
    pub fn host(&self) -> Client<'_> {
        Client { netns: &self.wiring.node, name: "node-a", source: None, port: 0 }
    }

    /// A client on the host outside.
    #[must_use]
    pub fn outside(&self) -> Client<'_> {
        self.outside_as(OUTSIDE)
    }

    /// A client on the host outside, with another of its addresses.
    #[must_use]
    pub fn outside_as(&self, source: Dual) -> Client<'_> {
        Client { netns: &self.wiring.outside, name: "outside", source: Some(source), port: 0 }
    }

    /// Receives the SCTP packets to a pod.
    ///
    /// # Panics
    /// If raw sockets are not available.
    #[must_use]
    pub fn sctp_sink(&self, pod: Pod, family: Family) -> SctpSink {
        SctpSink::new(self.wiring.home(&pod), pod.address.of(family))
    }

    /// Takes the link of a pod on node-a down, at the pod's end, so that it answers nothing any more.
    ///
    /// At the node's end the kernel would delete the masqueraded entries of the link from conntrack.
    ///
    /// # Panics
    /// If the pod is not on node-a.
    pub fn unplug(&self, pod: Pod) {
        self.wiring.home(&pod).run("ip link set eth0 down");
    }

    /// Makes a pod serve another port.
    ///
    /// # Panics
    /// If the port is in use.
    pub fn serve(&self, pod: Pod, port: u16) {
        self.servers.start(&pod, self.wiring.home(&pod), port);
    }

    /// The iptables flavour of the node's hint.
    #[must_use]
    pub fn flavour(&self) -> Flavour {
        self.iptables.flavour
    }

    /// The namespace of node-a.
    #[must_use]
    pub fn node(&self) -> &Netns {
        &self.wiring.node
    }

    /// The folder of the cluster, removed with it unless the test fails.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The environment of programs that use iptables on node-a: the cluster has its own lock file.
    #[must_use]
    pub fn environment(&self) -> [(&'static str, PathBuf); 1] {
        [("XTABLES_LOCKFILE", self.iptables.lock.clone())]
    }

    /// Runs `iptables-restore --noflush --counters` on node-a, as another kube-proxy would.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn restore(&self, family: Family, input: &str) {
        self.iptables.restore(&self.wiring.node, family, input);
    }

    /// Runs `iptables ARGUMENTS`, split at spaces, on node-a, as an administrator would.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn iptables(&self, family: Family, arguments: &str) {
        self.iptables.run(&self.wiring.node, family, arguments);
    }

    /// The rules of a table on node-a.
    ///
    /// # Panics
    /// If they cannot be read.
    #[must_use]
    #[track_caller]
    pub fn rules(&self, family: Family, table: &str) -> SavedRules {
        self.iptables.rules(&self.wiring.node, family, table)
    }

    /// The virtual servers of node-a, as printed by `ipvsadm -S -n`; empty without IPVS.
    ///
    /// # Panics
    /// If ipvsadm is missing.
    #[must_use]
    pub fn servers(&self) -> String {
        String::from_utf8_lossy(&self.wiring.node.try_run("ipvsadm -S -n").stdout).into_owned()
    }

    /// Runs a command line, split at spaces, on node-a and returns its output.
    ///
    /// # Panics
    /// If it fails.
    #[must_use]
    pub fn on_node(&self, line: &str) -> String {
        self.wiring.node.run(line)
    }

    /// Runs a command line, split at spaces, in the namespace of a pod.
    ///
    /// # Panics
    /// If it fails.
    pub fn in_pod(&self, pod: Pod, line: &str) {
        self.wiring.home(&pod).run(line);
    }

    /// Runs `f` on a thread in the namespace of a pod; sockets that it creates stay there.
    pub fn enter_pod<T: Send>(&self, pod: Pod, f: impl FnOnce() -> T + Send) -> T {
        self.wiring.home(&pod).enter(f)
    }

    /// All tables of a family on node-a, in the format of the nf_tables flavour.
    ///
    /// # Panics
    /// If they cannot be read.
    #[must_use]
    #[track_caller]
    pub fn saved(&self, family: Family) -> String {
        self.iptables.saved(&self.wiring.node, family)
    }

    /// Keeps the state of a failed test for inspection.
    fn keep_evidence(&self) {
        for (family, name) in [(Family::V4, "iptables"), (Family::V6, "ip6tables")] {
            let text =
                ["filter", "nat"].map(|table| format!("*{table}\n{}", self.rules(family, table).text())).concat();
            let _ = std::fs::write(self.directory.join(name), text);
        }
        let _ = std::fs::write(self.directory.join("ipvs"), self.servers());
        let log = self.log();
        let tail: Vec<&str> = log.lines().rev().take(30).collect();
        eprintln!("the cluster's files and rules are in {}; the end of the proxy's log:", self.directory.display());
        for line in tail.iter().rev() {
            eprintln!("  {line}");
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.keep_evidence();
        } else {
            let _ = std::fs::remove_dir_all(&self.directory);
        }
    }
}
