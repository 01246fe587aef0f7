//! Builds the graph from a Service's addresses to its endpoints.
//!
//! Boxes stand in columns; arrows carry probabilities and counters. `dot` and `svg` draw it.

use proxier_inspect::services::{
    Address, AddressKind, AddressVerdict, EndpointView, Policy, RealView, ServicePortView,
};

use super::text::{self, of_address};
use crate::inspect::report::Report;

/// The kind of a box, which decides its style.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A destination of packets.
    Address,
    /// A chain that chooses.
    Choice,
    /// Where packets end up.
    Endpoint,
    /// An endpoint that gets nothing.
    Unused,
    /// Rejected or dropped packets.
    Refused,
}

/// A box.
#[derive(Clone, Debug)]
pub struct Node {
    /// The kind.
    pub kind: Kind,
    /// Lines of text.
    pub lines: Vec<String>,
}

/// An arrow from one box to another, by index.
#[derive(Clone, Debug)]
pub struct Edge {
    /// From.
    pub from: usize,
    /// To.
    pub to: usize,
    /// The label.
    pub label: String,
    /// The share of the traffic, 0 to 1.
    pub share: f64,
}

/// One Service port.
#[derive(Clone, Debug)]
pub struct Graph {
    /// Its name.
    pub title: String,
    /// Further lines under the title.
    pub subtitle: String,
    /// The boxes.
    pub nodes: Vec<Node>,
    /// The arrows.
    pub edges: Vec<Edge>,
}

/// Prefixes of chains that choose from all endpoints, in iptables mode and in both layouts of nftables mode.
const CHOOSE_FROM_ALL: [&str; 4] = ["KUBE-SVC-", "endpoints-", "nodeport-endpoints-", "service-"];
/// Prefixes of chains that choose from local endpoints.
const CHOOSE_LOCAL: [&str; 4] = ["KUBE-SVL-", "local-endpoints-", "nodeport-local-endpoints-", "local-"];

/// The graphs of the Service's ports.
///
/// # Errors
/// If the report is about several Services.
pub fn of(report: &Report) -> Result<Vec<Graph>, String> {
    let service = |view: &ServicePortView| view.name.split(':').next().unwrap_or_default().to_owned();
    let first = report.services.first().map(service);
    if report.services.iter().any(|view| Some(service(view)) != first) {
        return Err("a picture shows one Service: give --service namespace/name".to_owned());
    }
    Ok(report.services.iter().map(graph).collect())
}

/// The graph of one Service port.
#[must_use]
pub fn graph(view: &ServicePortView) -> Graph {
    let mut graph = Graph { title: view.name.clone(), subtitle: subtitle(view), nodes: Vec::new(), edges: Vec::new() };
    let addresses: Vec<(usize, &Address)> = view
        .addresses
        .iter()
        // Health checks go to the proxy itself.
        .filter(|address| address.verdict != AddressVerdict::Accepted)
        .map(|address| (graph.add(Kind::Address, lines(view, address)), address))
        .collect();
    let all = any(view, |endpoint| endpoint.share)
        .then(|| graph.add(Kind::Choice, chain(view, &CHOOSE_FROM_ALL, all_endpoints(view))));
    let local = any(view, |endpoint| endpoint.local_share)
        .then(|| graph.add(Kind::Choice, chain(view, &CHOOSE_LOCAL, "endpoints of this node")));
    for endpoint in &view.endpoints {
        let kind = if endpoint.used() { Kind::Endpoint } else { Kind::Unused };
        let node = graph.add(kind, of_endpoint(endpoint));
        for (from, share) in [(all, endpoint.share), (local, endpoint.local_share)] {
            if let (Some(from), Some(share)) = (from, share) {
                graph.edge(from, node, format!("{:.1} %", share * 100.0), share);
            }
        }
    }
    let mut refused = [None, None];
    for (node, address) in addresses {
        let count = of_address(address);
        let label = if count.is_empty() { count } else { format!("{count} connections") };
        match address.verdict {
            AddressVerdict::Rejected | AddressVerdict::Dropped => {
                let rejected = address.verdict == AddressVerdict::Rejected;
                let text = if rejected { "rejected" } else { "dropped: no local endpoint" };
                let end = *refused[usize::from(rejected)]
                    .get_or_insert_with(|| graph.add(Kind::Refused, vec![text.to_owned()]));
                graph.edge(node, end, label, 1.0);
            }
            AddressVerdict::Endpoints => {
                let internal = match &address.chain {
                    Some(chain) if chain.starts_with("KUBE-") => chain.starts_with("KUBE-SV"),
                    _ => address.kind == AddressKind::ClusterIp,
                };
                let policy = if internal { view.internal_policy } else { view.external_policy };
                let to = if policy == Some(Policy::Local) { local.or(all) } else { all.or(local) };
                to.into_iter().for_each(|to| graph.edge(node, to, label.clone(), 1.0));
            }
            AddressVerdict::Accepted => {}
        }
    }
    graph
}

impl Graph {
    fn add(&mut self, kind: Kind, lines: Vec<String>) -> usize {
        self.nodes.push(Node { kind, lines });
        self.nodes.len() - 1
    }

    fn edge(&mut self, from: usize, to: usize, label: String, share: f64) {
        self.edges.push(Edge { from, to, label, share });
    }
}

fn any(view: &ServicePortView, share: fn(&EndpointView) -> Option<f64>) -> bool {
    view.endpoints.iter().any(|endpoint| share(endpoint).is_some())
}

fn subtitle(view: &ServicePortView) -> String {
    let policy = |name: &str, policy: Option<Policy>| policy.map(|policy| format!("{name} traffic {policy:?}"));
    let mut parts = vec![format!("{} {}", view.protocol, view.family)];
    parts.extend(policy("internal", view.internal_policy));
    parts.extend(policy("external", view.external_policy));
    parts.extend(view.affinity_seconds.map(|seconds| format!("affinity {seconds} s")));
    if !view.source_ranges.is_empty() {
        parts.push(format!("load balancer restricted to {} networks", view.source_ranges.len()));
    }
    parts.join(", ")
}

fn lines(view: &ServicePortView, address: &Address) -> Vec<String> {
    let ip = address.ip.map_or_else(
        || format!("any node address:{}", address.port),
        |ip| std::net::SocketAddr::new(ip, address.port).to_string(),
    );
    let scheduler = address.server.as_ref().map(|server| format!(", scheduler {}", server.scheduler));
    // In nftables mode the way begins with an element of a map.
    let of_map = view.parts.iter().any(|part| part.element.is_some());
    let map = if address.ip.is_some() { "service-ips" } else { "service-nodeports" };
    let verdict = address.chain.as_ref().filter(|_| of_map).map(|chain| format!("{map}: goto {chain}"));
    let kind = format!("{}{}", address.kind.name(), scheduler.unwrap_or_default());
    [ip, kind].into_iter().chain(verdict).collect()
}

/// Under policy Local nothing from outside comes here.
fn all_endpoints(view: &ServicePortView) -> &'static str {
    let local = |policy: Option<Policy>| policy == Some(Policy::Local);
    let inside = local(view.external_policy) && local(view.internal_policy);
    if inside { "all endpoints: pods and this node, to external addresses" } else { "all endpoints" }
}

fn chain(view: &ServicePortView, beginnings: &[&str], meaning: &str) -> Vec<String> {
    let chooses = |name: &str| beginnings.iter().any(|beginning| name.starts_with(beginning));
    let chains = view.parts.iter().filter(|part| part.element.is_none() && chooses(&part.chain));
    let mut lines = vec![meaning.to_owned()];
    lines.extend(chains.map(|part| part.chain.clone()));
    lines
}

fn of_endpoint(endpoint: &EndpointView) -> Vec<String> {
    let mut lines = vec![endpoint.address.map_or_else(|| "unknown".to_owned(), |address| address.to_string())];
    let state = endpoint.state.map(|state| {
        let ready = if state.ready {
            "ready"
        } else if state.terminating {
            "terminating"
        } else {
            "not ready"
        };
        format!("{ready}{}", if state.local { ", this node" } else { "" })
    });
    lines.extend(state);
    if endpoint.used() {
        let held = |one: &RealView| u64::from(one.active) + u64::from(one.inactive);
        let open = match &endpoint.servers[..] {
            [] => String::new(),
            servers => format!(", {} of them open", servers.iter().map(held).sum::<u64>()),
        };
        let count = text::of_endpoint(endpoint);
        lines.extend((!count.is_empty()).then(|| format!("{count} connections{open}")));
    }
    lines.extend(endpoint.unused.clone());
    if endpoint.stale > 0 {
        lines.push(format!("{} stale flows", endpoint.stale));
    }
    lines
}
