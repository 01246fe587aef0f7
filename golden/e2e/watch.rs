//! The real binary against an API server that behaves as real ones do, and as they should not.
//!
//! In: the `kube-proxy` binary, root. Out: what it asks for, what rules follow, what it says when things go wrong.
//! Each test has a node (a network namespace) and an API server of its own.

#[path = "watch/changes.rs"]
mod changes;
#[path = "watch/faults.rs"]
mod faults;
#[path = "watch/lifecycle.rs"]
mod lifecycle;
#[path = "watch/metrics.rs"]
mod metrics;
#[path = "watch/requests.rs"]
mod requests;

use golden::apiserver::ApiServer;
use golden::node::{NAME, Node};
use golden::sample::{node, service, slice};

/// The Service port of the Service that every test begins with.
const WEB: &str = "default/web:http";
/// Its endpoints.
const PODS: [&str; 2] = ["10.244.2.5:8080", "10.244.2.6:8080"];

/// A node and an API server on it.
struct World {
    node: Node,
    api: ApiServer,
}

impl World {
    /// The Node, the Service `web` and its slice `web-1`; no proxy yet.
    fn new() -> Self {
        let node = Node::new(env!("CARGO_BIN_EXE_kube-proxy"));
        let api = node.api_server();
        api.apply(self::node(NAME, "zone-a"));
        api.apply(service("web", "10.96.0.10"));
        api.apply(slice("web-1", "web", &["10.244.2.5", "10.244.2.6"]));
        Self { node, api }
    }

    /// Starts the proxy.
    fn start(&mut self) {
        self.node.start(&["--master", &self.api.url(), "--iptables-min-sync-period=0s", "-v=5"]);
    }

    /// The same, and the proxy has programmed `web`, in both families.
    fn running() -> Self {
        let mut world = Self::new();
        world.start();
        world.settled();
        world
    }

    /// Waits until `web` leads to its first endpoints and both families were synced.
    fn settled(&self) {
        self.node.until_leads(WEB, &PODS);
        self.node.until_health("/healthz", 200);
        self.node.until("both families were synced", || self.syncs() >= 2.0);
    }

    /// How often rules were synced.
    fn syncs(&self) -> f64 {
        self.node.metric("kubeproxy_sync_proxy_rules_duration_seconds_count")
    }

    /// Proves that changes still arrive: a new Service is programmed.
    fn works(&self, name: &str) {
        self.api.apply(service(name, "10.96.0.99"));
        self.api.apply(slice(&format!("{name}-1"), name, &["10.244.2.99"]));
        self.node.until_leads(&format!("default/{name}:http"), &["10.244.2.99:8080"]);
    }
}
