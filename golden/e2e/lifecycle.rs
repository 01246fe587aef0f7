//! The binary from start to end: `--init-only`, `--cleanup`, signals, its Node, events.
//!
//! Each test has a node (a network namespace). Requires root.

mod cleanup;
mod events;
mod facts;
mod kernel;
mod own_node;

use golden::apiserver::ApiServer;
use golden::node::Node;

/// The Service port that tests begin with.
const WEB: &str = "default/web:http";

fn machine() -> Node {
    Node::new(env!("CARGO_BIN_EXE_kube-proxy"))
}

/// A node with an API server that has the Service `web`.
struct World {
    node: Node,
    api: ApiServer,
}

impl World {
    fn new() -> Self {
        let node = machine();
        let api = node.api_server_with_web(&["10.244.2.5"]);
        Self { node, api }
    }

    fn start(&mut self, arguments: &[&str]) {
        self.start_by(&[], arguments);
    }

    fn start_by(&mut self, program: &[&str], arguments: &[&str]) {
        let url = self.api.url();
        let common = ["--master", &url, "--iptables-min-sync-period=0s", "-v=2"];
        self.node.start_by(program, &[&common, arguments].concat());
    }

    /// Waits until the Service is programmed and each working family has finished a sync.
    fn settled(&self) {
        self.node.until_endpoints(WEB, &["10.244.2.5:8080"]);
        self.node.until("all families were synced", || {
            self.node.metric("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds") > 0.0
                && self.node.samples("kubeproxy_sync_proxy_rules_last_timestamp_seconds")
                    == self.node.samples("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds")
        });
    }
}
