//! Collects what the HTML page shows beyond the report: the text of each chain and the traces of packets.

use std::net::SocketAddr;

use proxier::model::Protocol;
use proxier_inspect::node::paths::Paths;
use proxier_inspect::services::{AddressKind, KernelObject, ServicePortView};

use crate::inspect::NodeInspection;
use crate::terminal::Terminal;
use crate::trace::{sender, text};

/// A chain and its rules, one line each, as `iptables-save` or `nft list` prints them.
pub struct ChainText {
    /// Table and chain.
    pub name: String,
    /// The rules.
    pub rules: Vec<String>,
}

/// The trace of one connection to an address of a Service port.
pub struct TraceText {
    /// Sender and destination, as in `outside -> 203.0.113.5:80/tcp`.
    pub connection: String,
    /// What `kube-proxy trace` prints, or why the packet could not be traced.
    pub result: Result<String, String>,
}

/// What the page shows of one Service port besides its view.
#[derive(Default)]
pub struct ServiceDetails {
    /// The Service port's chains.
    pub chains: Vec<ChainText>,
    /// Connections to its addresses.
    pub traces: Vec<TraceText>,
}

/// Reads the chains of a Service port and traces a connection to each of its addresses.
///
/// A cluster IP is traced from the node and, where objects name one, from a local endpoint; other addresses from outside.
pub fn details(seen: &mut NodeInspection, view: &ServicePortView) -> ServiceDetails {
    let Some(rules) = seen.rules.families.iter_mut().find(|rules| rules.family.name() == view.family) else {
        return ServiceDetails::default();
    };
    let chains = view.parts.iter().filter(|part| part.element.is_none());
    let chain_text = |part: &KernelObject| {
        let rules = rules.chain_text(part.table, &part.chain);
        (!rules.is_empty()).then(|| ChainText { name: format!("table {}, chain {}", part.table, part.chain), rules })
    };
    let chains = chains.filter_map(chain_text).collect();
    let Some(protocol) = Protocol::of_name(view.protocol) else {
        return ServiceDetails { chains, traces: Vec::new() };
    };
    let node_ip = rules.node_port_ip();
    let mut paths = Paths::of(rules);
    let mut traces = Vec::new();
    for address in view.addresses.iter().filter(|address| address.kind != AddressKind::HealthCheckNodePort) {
        let Some(ip) = address.ip.or(node_ip) else { continue };
        let destination = SocketAddr::new(ip, address.port);
        for from in senders(view, address.kind) {
            let connection = format!("{from} -> {destination}/{}", protocol.name());
            traces.push(TraceText { connection, result: trace(&mut paths, &from, destination, protocol) });
        }
    }
    ServiceDetails { chains, traces }
}

fn senders(view: &ServicePortView, kind: AddressKind) -> Vec<String> {
    if kind != AddressKind::ClusterIp {
        return vec!["outside".to_owned()];
    }
    let local = view.endpoints.iter().filter(|endpoint| endpoint.state.is_some_and(|state| state.local));
    let pod = local.filter_map(|endpoint| endpoint.address).map(|address| address.ip().to_string()).next();
    ["host".to_owned()].into_iter().chain(pod).collect()
}

fn trace(paths: &mut Paths<'_>, from: &str, to: SocketAddr, protocol: Protocol) -> Result<String, String> {
    let packet = paths.packet(sender(from, to)?, (to, protocol), None)?;
    let trace = paths.trace(&packet)?;
    // What could not be read is listed at the head of the page.
    Ok(text(&packet, &trace, &[], false, Terminal { width: usize::MAX, ..Terminal::plain() }))
}
