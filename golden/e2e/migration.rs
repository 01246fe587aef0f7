//! A live node changes from kube-proxy to this one and back, following deploy/MIGRATION.md.
//!
//! Starts from recorded rules. Open connections must survive and new ones succeed throughout, in both flavours and
//! families. Requires root.

mod nftables;
mod upstream;

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use golden::apiserver::ApiServer;
use golden::case::{Case, Kind, Mode, cases};
use golden::cluster::{Client, Cluster, FAR_5, Family, Flow, NODE, POD_5, POD_9, Protocol, Session, eventually};
use golden::flavour::Flavour;
use golden::node::{METRICS, get, sum};
use golden::proxy::{Proxy, config};
use netfilter::kernel::{Host, SystemHost};

const BINARY: &str = env!("CARGO_BIN_EXE_kube-proxy");
const LIMIT: Duration = Duration::from_secs(30);
/// A case whose Service `dns` has TCP and UDP in both families, and endpoints on this node and another.
const CASE: &str = "102-nodeport-protocols";
const CLUSTER_IPS: [&str; 2] = ["10.96.10.13", "fd00:10:96::a:13"];
const PORT: u16 = 53;
const NODE_PORT: u16 = 30053;
const TARGET: u16 = 5353;

/// A node that kube-proxy has programmed and left.
struct World {
    cluster: Cluster,
    case: Case,
}

impl World {
    fn new(flavour: Flavour) -> Self {
        let world = Self::untouched(flavour);
        for family in Family::BOTH {
            world.cluster.restore(family, &world.recorded(family));
        }
        world
    }

    /// Before any kube-proxy.
    fn untouched(flavour: Flavour) -> Self {
        let case = cases().into_iter().find(|case| case.name == CASE).expect("the case is there");
        let cluster = Cluster::new(flavour, Path::new(BINARY));
        for pod in [POD_5, FAR_5] {
            cluster.serve(pod, TARGET);
        }
        let world = Self { cluster, case };
        world.cluster.node().enter(|| {
            SystemHost.set_sysctl("net/ipv4/conf/all/route_localnet", 1).expect("a sysctl");
            for counter in ["ct_state_invalid_dropped_pkts", "localhost_nps_accepted_pkts"] {
                // Recorded rules count with them.
                SystemHost.ensure_counter(counter).expect("a kernel with nfacct");
            }
        });
        world
    }

    fn recorded(&self, family: Family) -> String {
        let kind = if family == Family::V4 { Kind::Iptables } else { Kind::Ip6tables };
        self.case.expected(Mode::Iptables, 0, kind)
    }

    /// What a full sync of the real kube-proxy feeds to iptables-restore: its own chains, whole. The jumps to them it
    /// checks one by one, and finds them.
    fn full_sync(&self, family: Family) -> String {
        let recorded = self.recorded(family);
        let own = recorded.lines().filter(|line| {
            let chain = line.strip_prefix(':').or_else(|| line.strip_prefix("-A "));
            let chain = chain.and_then(|rest| rest.split(' ').next());
            chain.is_none_or(|chain| chain.starts_with("KUBE-") && chain != "KUBE-PROXY-CANARY")
                && !line.starts_with('#')
        });
        own.flat_map(|line| [line, "\n"]).collect()
    }

    /// All rules, in the form in which recordings are compared: the real one's order of Services is chance.
    fn rules(&self) -> [String; 2] {
        Family::BOTH.map(|family| Kind::Iptables.canonical(&self.cluster.saved(family)))
    }

    /// Where clients go, and from where: pods and the node to the cluster IP, the outside to the node port.
    fn ways(&self) -> Vec<(Client<'_>, SocketAddr)> {
        let mut ways = Vec::new();
        for (family, ip) in Family::BOTH.into_iter().zip(CLUSTER_IPS) {
            let service = SocketAddr::new(ip.parse().expect("an address"), PORT);
            ways.push((self.cluster.pod(POD_9), service));
            ways.push((self.cluster.host(), service));
            ways.push((self.cluster.outside(), NODE.at(family, NODE_PORT)));
        }
        ways
    }

    /// Has connections open, keeps making new ones, and has `moves` done meanwhile: nothing fails.
    fn under_traffic(&self, moves: impl FnOnce(&Watch)) {
        let failures = self.failures_under_traffic(moves);
        assert!(failures.is_empty(), "{} new connections failed: {failures:#?}", failures.len());
    }

    /// The same; which new connections failed, and when. All that was open still works.
    fn failures_under_traffic(&self, moves: impl FnOnce(&Watch)) -> Vec<(Instant, String)> {
        // Several each, so that both endpoints are in use.
        let ways = self.ways();
        let mut sessions: Vec<Session> = Vec::new();
        let mut flows: Vec<Flow> = Vec::new();
        for (client, to) in ways.iter().flat_map(|way| [way; 4]) {
            sessions.push(client.session(*to));
            let flow = client.flow(*to);
            flow.attempt().unwrap_or_else(|failure| panic!("UDP to {to}: {failure:?}"));
            flows.push(flow);
        }
        let pods: BTreeSet<&str> = sessions.iter().map(|s| s.answer().pod.as_str()).collect();
        assert_eq!(pods, [FAR_5.name, POD_5.name].into(), "both endpoints are in use");

        let watch = Watch { stop: AtomicBool::new(false), rounds: ways.iter().map(|_| AtomicUsize::new(0)).collect() };
        let failures = std::thread::scope(|scope| {
            let probes: Vec<_> = ways
                .iter()
                .zip(&watch.rounds)
                .map(|((client, to), rounds)| scope.spawn(|| probe(client, *to, &watch.stop, rounds)))
                .collect();
            // However the moves end, the probes have to.
            let stop = StopWhenDropped(&watch.stop);
            moves(&watch);
            drop(stop);
            probes.into_iter().flat_map(|probe| probe.join().expect("a probe")).collect()
        });
        for session in &mut sessions {
            session.still_works();
        }
        for flow in &flows {
            let answer = flow.attempt();
            assert!(answer.is_ok(), "an open UDP flow: {answer:?}");
        }
        failures
    }

    /// The proxy's configuration for the case; without objects, those of an API server.
    fn configure(&self) {
        self.configure_mode(Mode::Iptables);
    }

    fn configure_mode(&self, mode: Mode) {
        let config = config(mode, &self.case.config);
        let objects = self.cluster.directory().join("objects");
        std::fs::write(self.cluster.directory().join("config.yaml"), config.to_string()).expect("a configuration");
        std::fs::copy(&self.case.stored[0], objects.join("case.yaml")).expect("objects");
    }

    fn metrics(&self) -> String {
        self.cluster.node().enter(|| get(METRICS, "/metrics")).map(|(_, text)| text).unwrap_or_default()
    }

    /// Waits until the proxy has synced both families. Returns the number of rules it wrote.
    fn until_taken_over(&self) -> f64 {
        self.until_synced();
        sum(&self.metrics(), "kubeproxy_sync_proxy_rules_iptables_last")
    }

    fn until_synced(&self) {
        eventually("both families are synced", LIMIT, || {
            sum(&self.metrics(), "kubeproxy_sync_proxy_rules_duration_seconds_count") >= 2.0
        });
    }

    /// The rules by which Services are found: the real one leaves their order to chance, ours sorts them.
    fn dispatching(&self) -> usize {
        let chains = ["-A KUBE-SERVICES ", "-A KUBE-NODEPORTS "];
        let rules = Family::BOTH.map(|family| self.recorded(family));
        rules.iter().flat_map(|rules| rules.lines()).filter(|line| chains.iter().any(|c| line.starts_with(c))).count()
    }
}

/// Probes at work: how often each has come through all it tries.
struct Watch {
    stop: AtomicBool,
    rounds: Vec<AtomicUsize>,
}

impl Watch {
    /// Waits until every probe has begun and finished some further rounds.
    fn some_rounds(&self) {
        let counts = || -> Vec<usize> { self.rounds.iter().map(|rounds| rounds.load(Ordering::Relaxed)).collect() };
        let before = counts();
        eventually("all probes go on", LIMIT, || counts().iter().zip(&before).all(|(now, before)| *now > before + 2));
    }
}

struct StopWhenDropped<'a>(&'a AtomicBool);

impl Drop for StopWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Makes new connections until it is stopped; returns what failed, and when it was tried.
fn probe(client: &Client<'_>, to: SocketAddr, stop: &AtomicBool, rounds: &AtomicUsize) -> Vec<(Instant, String)> {
    let mut failures = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let tried = Instant::now();
            let outcome = client.attempt(protocol, to);
            failures.extend(outcome.err().map(|failure| (tried, format!("{protocol:?} to {to}: {failure:?}"))));
        }
        rounds.fetch_add(1, Ordering::Relaxed);
    }
    failures
}

/// From the real one to ours, ours restarted as by an update of its image, and back.
fn there_and_back(flavour: Flavour) {
    let world = World::new(flavour);
    let before = world.rules();
    world.configure();
    let (cluster, environment) = (&world.cluster, world.cluster.environment());
    world.under_traffic(|watch| {
        watch.some_rounds();
        for rewritten in [world.dispatching(), 0] {
            let proxy = Proxy::start(cluster.node(), Path::new(BINARY), cluster.directory(), &environment);
            let written = world.until_taken_over();
            assert!(written <= rewritten as f64, "{written} rules were written, not {rewritten}");
            watch.some_rounds();
            proxy.stop().expect("an orderly end");
            assert_eq!(world.rules(), before);
        }
        watch.some_rounds();
        for family in Family::BOTH {
            cluster.restore(family, &world.full_sync(family));
        }
        watch.some_rounds();
    });
    assert_eq!(world.rules(), before);
}

#[test]
fn there_and_back_with_the_nf_tables_flavour() {
    there_and_back(Flavour::Nft);
}

#[test]
fn there_and_back_with_the_legacy_flavour() {
    there_and_back(Flavour::Legacy);
}

/// The image is swapped while the API server is away: what the real one left serves on until it is back.
fn without_an_api_server(flavour: Flavour) {
    let world = World::new(flavour);
    let before = world.rules();
    let cluster = &world.cluster;
    let listener = cluster.node().enter(|| TcpListener::bind("127.0.0.1:0")).expect("a free port");
    let api = ApiServer::start_on(listener);
    api.load_yaml(&world.case.stored[0]);
    api.down();
    world.configure();
    let config = cluster.directory().join("config.yaml").to_string_lossy().into_owned();
    let arguments = ["--config", &config, "--master", &api.url()];
    let start = || {
        let environment = cluster.environment();
        Proxy::start_with(cluster.node(), Path::new(BINARY), &arguments, cluster.directory(), &environment)
    };
    world.under_traffic(|watch| {
        let mut proxy = start();
        for _ in 0..2 {
            eventually("it cannot reach the API server", LIMIT, || cluster.log().contains("connection refused"));
            watch.some_rounds();
            assert_eq!(world.rules(), before);
            // The kubelet restarts it, or an administrator goes back: no connection is lost either way.
            proxy.stop().expect("an orderly end");
            assert_eq!(world.rules(), before);
            proxy = start();
        }
        api.up();
        world.until_taken_over();
        watch.some_rounds();
        assert_eq!(world.rules(), before);
        proxy.stop().expect("an orderly end");
    });
    assert_eq!(world.rules(), before);
}

#[test]
fn without_an_api_server_with_the_nf_tables_flavour() {
    without_an_api_server(Flavour::Nft);
}

#[test]
fn without_an_api_server_with_the_legacy_flavour() {
    without_an_api_server(Flavour::Legacy);
}
