//! A node that lacks something, or clients that misbehave: a clear log line, and rules are synced.
//!
//! Each test has a node (a network namespace) and an API server. Requires root.

mod descriptors;
mod hanging_tools;

use std::io::Write;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use golden::apiserver::ApiServer;
use golden::cluster::eventually;
use golden::node::{HEALTH, METRICS, NAME, Node};
use golden::sample::{node, service, slice};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::json;

const WEB: &str = "default/web:http";

struct World {
    node: Node,
    api: ApiServer,
    /// What starts the proxy, with its own arguments.
    starter: &'static [&'static str],
}

impl World {
    /// The Node and the Service `web` at 10.244.2.5; no proxy yet.
    fn new() -> Self {
        let node = Node::new(env!("CARGO_BIN_EXE_kube-proxy"));
        let api = node.api_server_with_web(&["10.244.2.5"]);
        Self { node, api, starter: &[] }
    }

    fn start(&mut self) {
        self.node.start_by(self.starter, &["--master", &self.api.url(), "--iptables-min-sync-period=0s"]);
        self.node.until_endpoints(WEB, &["10.244.2.5:8080"]);
    }

    /// Proves that changes are synced: another pod appears behind `web`.
    fn works(&self, pod: &str) {
        self.api.apply(slice("web-1", "web", &[pod]));
        self.node.until_endpoints(WEB, &[&format!("{pod}:8080")]);
    }

    /// Takes a port on all addresses of the node.
    fn take(&self, port: u16) -> TcpListener {
        self.node.netns().enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))).expect("it is free")
    }

    fn connect(&self, port: u16) -> TcpStream {
        self.node.netns().enter(|| TcpStream::connect((Ipv4Addr::LOCALHOST, port))).expect("a connection")
    }
}

#[test]
fn port_in_use_is_named_and_served_when_it_is_free() {
    let mut world = World::new();
    let taken = [HEALTH, METRICS].map(|port| world.take(port));
    world.start();
    for (name, address) in [("health", "0.0.0.0:10256"), ("metrics", "127.0.0.1:10249")] {
        world.node.until_logged(&["Failed to serve", name, address, "in use", "retrying"]);
    }
    world.works("10.244.2.6");
    drop(taken);
    world.node.until_health("/healthz", 200);
    assert!(world.node.metric("kubeproxy_sync_proxy_rules_duration_seconds_count") > 0.0);
}

#[test]
fn health_check_port_in_use_is_named_with_its_service() {
    const PORT: u16 = 30900;
    let mut world = World::new();
    let mut balanced = service("balanced", "10.96.0.20");
    balanced["spec"]["type"] = json!("LoadBalancer");
    balanced["spec"]["externalTrafficPolicy"] = json!("Local");
    balanced["spec"]["healthCheckNodePort"] = json!(PORT);
    balanced["spec"]["ports"][0]["nodePort"] = json!(30901);
    let mut local = slice("balanced-1", "balanced", &["10.244.1.20"]);
    local["endpoints"][0]["nodeName"] = json!(NAME);
    world.api.apply(balanced);
    world.api.apply(local);
    let taken = world.take(PORT);
    world.start();
    world.node.until_logged(&["Failed to serve health checks of Service default/balanced", ":30900", "in use"]);
    world.works("10.244.2.6");
    world.node.until_health("/healthz", 200);
    drop(taken);
    world.works("10.244.2.7");
    world.node.until("health checks are answered", || {
        world.node.get(PORT, "/").is_some_and(|(code, body)| code == 200 && body.contains("\"localEndpoints\": 1"))
    });
}

#[test]
fn slow_http_clients_do_not_delay_others() {
    let mut world = World::new();
    world.start();
    let slow: Vec<TcpStream> = (0..10)
        .map(|number| {
            let mut slow = world.connect(METRICS);
            setsockopt(&slow, sockopt::RcvBuf, &1).expect("a small buffer");
            let asked = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
            // So many answers fit in no buffer; or not even one question is complete.
            let asked = if number % 2 == 0 { asked.repeat(200) } else { asked[..20].to_owned() };
            slow.set_nonblocking(true).expect("not to wait");
            // As much as the server takes.
            let _ = slow.write(asked.as_bytes());
            slow
        })
        .collect();
    world.works("10.244.2.6");
    for path in ["/healthz", "/livez"] {
        world.node.until_health(path, 200);
    }
    assert!(world.node.metric("kubeproxy_sync_proxy_rules_duration_seconds_count") > 0.0);
    world.works("10.244.2.7");
    drop(slow);
}

#[test]
fn ten_thousand_connections_to_the_health_port_do_not_delay_syncs() {
    const CROWD: u16 = 10_000;
    // For the crowd, which is in this process; the proxy has what systems usually give.
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    let wanted = u64::from(CROWD) + 2000;
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(wanted), hard.max(wanted)).expect("root may");
    let mut world = World::new();
    world.starter = &["sh", "-c", "ulimit -n 1024; exec \"$0\" \"$@\""];
    world.start();
    world.node.until_health("/healthz", 200);
    let mut crowd = Vec::new();
    for thousand in 0..CROWD / 1000 {
        world.node.netns().enter(|| {
            for _ in 0..1000 {
                let mut one = TcpStream::connect((Ipv4Addr::LOCALHOST, HEALTH)).expect("a connection");
                // It may be the turn of another one already.
                let _ = one.write_all(b"GET /healthz HTTP/1.1\r\n");
                crowd.push(one);
            }
        });
        world.node.until_health("/livez", 200);
        if thousand % 3 == 0 {
            world.works(&format!("10.244.2.{}", 10 + thousand));
        }
    }
    world.node.until_logged(&["Reached the limit of 200 HTTP connections", "127.0.0.1"]);
    let lines = world.node.log().matches("HTTP connections").count();
    assert!(lines < 100, "{lines} lines about it");
    assert!(!world.node.log().contains("Failed to accept a connection"), "{}", world.node.log());
    let open = world.node.metric("process_open_fds");
    assert!(open < 500.0, "{open} files are open");
    let ended = crowd.iter().filter(|one| peer_is_gone(one)).count();
    assert!(ended >= usize::from(CROWD) - 1000, "only {ended} connections were ended");
}

fn peer_is_gone(stream: &TcpStream) -> bool {
    let error = nix::sys::socket::recv(stream.as_raw_fd(), &mut [0; 16], nix::sys::socket::MsgFlags::MSG_DONTWAIT);
    matches!(error, Ok(0) | Err(nix::Error::ECONNRESET | nix::Error::EPIPE))
}

#[test]
fn without_its_node_the_proxy_syncs_after_30_seconds_and_healthz_fails() {
    let mut world = World::new();
    world.api.delete("Node", "", NAME);
    world.node.start(&["--master", &world.api.url(), "--iptables-min-sync-period=0s"]);
    // As long as kube-proxy waits for it, and more on a busy machine.
    eventually("it goes on without a Node", Duration::from_secs(90), || {
        world.node.log().contains("No Node \"node-a\" after 30s, continuing without it: check --hostname-override")
    });
    world.works("10.244.2.6");
    world.node.until_health("/healthz", 503);
    world.node.until_health("/livez", 200);
    world.api.apply(node(NAME, "zone-a"));
    world.node.until_health("/healthz", 200);
    world.works("10.244.2.7");
}
