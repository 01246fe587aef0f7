//! The binary against an API server that behaves like real ones, and that misbehaves.
//!
//! Each test has a node (a network namespace) and an API server. `KUBE_PROXY` selects another binary: with upstream's,
//! the tests show that they demand nothing that kube-proxy does not do.

mod backoff;
mod changes;
mod fallback;
mod faults;
mod lifecycle;
mod lists;
mod metrics;
mod requests;

use std::time::{Duration, Instant};

use golden::apiserver::{ApiServer, MediaTypes, Request};
use golden::node::Node;
use golden::sample::{service, slice};

/// The Service port of the Service that every test begins with.
const WEB: &str = "default/web:http";
/// Its endpoints.
const PODS: [&str; 2] = ["10.244.2.5:8080", "10.244.2.6:8080"];

const NODES: &str = "/api/v1/nodes";
const SERVICES: &str = "/api/v1/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";

/// A query parameter; empty if it is not there.
fn param(request: &Request, name: &str) -> String {
    request.param(name).unwrap_or_default()
}

/// A node and an API server on it.
struct World {
    node: Node,
    api: ApiServer,
}

impl World {
    /// The Node, the Service `web` and its slice `web-1`; no proxy yet.
    fn new() -> Self {
        let ours = env!("CARGO_BIN_EXE_kube-proxy").to_owned();
        let node = Node::new(std::env::var("KUBE_PROXY").unwrap_or(ours));
        let api = node.api_server_with_web(&["10.244.2.5", "10.244.2.6"]);
        Self { node, api }
    }

    /// Whether the binary is upstream's, for which intended differences of ours are not asserted.
    fn is_upstreams() -> bool {
        std::env::var_os("KUBE_PROXY").is_some()
    }

    /// Starts the proxy.
    fn start(&mut self) {
        let url = self.api.url();
        // Limits of the whole machine stay as they are.
        self.node.start(&[
            "--master",
            &url,
            "--iptables-min-sync-period=1ms",
            "--conntrack-max-per-core=0",
            "--conntrack-min=0",
            "-v=5",
        ]);
    }

    /// The same, and the proxy has programmed `web`, in both families.
    fn running() -> Self {
        Self::running_with(MediaTypes::default())
    }

    /// The same from a server that offers these encodings.
    fn running_with(offered: MediaTypes) -> Self {
        let mut world = Self::new();
        world.api.offer(offered);
        world.start();
        world.settled();
        world
    }

    /// Waits until the rules send `web` to its first endpoints and both families were synced.
    fn settled(&self) {
        self.node.until_endpoints(WEB, &PODS);
        self.node.until_health("/healthz", 200);
        self.node.until("both families were synced", || self.syncs() >= 2.0);
    }

    /// The requests for a collection so far, in the order in which they came.
    fn requests(&self, path: &str) -> Vec<Request> {
        self.api.requests().into_iter().filter(|request| request.method == "GET" && request.path == path).collect()
    }

    /// Waits until `done`, for as long as `limit`.
    #[track_caller]
    fn within(&self, limit: Duration, what: &str, mut done: impl FnMut() -> bool) {
        let deadline = Instant::now() + limit;
        while !done() {
            let requests = self.api.requests();
            assert!(Instant::now() < deadline, "not within {limit:?}: {what}\n{}\n{requests:#?}", self.node.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// How often rules were synced.
    fn syncs(&self) -> f64 {
        self.node.metric("kubeproxy_sync_proxy_rules_duration_seconds_count")
    }

    /// Proves that changes still arrive: a new Service is programmed.
    fn works(&self, name: &str) {
        self.api.apply(service(name, "10.96.0.99"));
        self.api.apply(slice(&format!("{name}-1"), name, &["10.244.2.99"]));
        self.node.until_endpoints(&format!("default/{name}:http"), &["10.244.2.99:8080"]);
    }
}
