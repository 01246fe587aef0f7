//! Pods of one bridge that reach each other below the rules, so that replies come back untranslated.

use std::net::{IpAddr, SocketAddr};

use proxier::model::Protocol;
use proxier_inspect::node::facts::Facts;
use proxier_inspect::node::lookups::Link;
use proxier_inspect::node::paths::{CLIENT_PORT, Paths};
use proxier_inspect::services::{EndpointView, ServicePortView};
use proxier_inspect::walk::{Branch, Node, Origin, Packet, Verdict};

use super::finding::{Cause, Finding};
use super::node::BRIDGED;

/// How many addresses of a bridge's network are tried for one that no endpoint has.
const TRIED: usize = 64;

/// The bridge of that name, if packets between its ports do not meet the rules of the view's family.
fn unseen<'a>(facts: &'a Facts, view: &ServicePortView, name: &str) -> Option<&'a Link> {
    let (_, sysctl) = BRIDGED.iter().find(|(family, _)| *family == view.family)?;
    let off = facts.sysctls.get(*sysctl).is_none_or(|value| *value == 0);
    let is_it = |link: &&Link| link.name == name && link.kind.as_deref() == Some("bridge");
    let bridge = facts.links.iter().find(is_it).filter(|_| off)?;
    facts.links.iter().any(|link| link.master.as_deref() == Some(name)).then_some(bridge)
}

/// A pod that is sent to another pod of its bridge with its own address as the sender: the answer goes over the bridge, where
/// nothing translates it back. A pod that is sent to itself is another matter.
pub fn lost_reply(
    facts: &Facts,
    view: &ServicePortView,
    packet: &Packet,
    branch: &Branch,
    node: &Node,
) -> Option<Finding> {
    let Verdict::Delivered(to) = branch.outcome.verdict else { return None };
    let Origin::Interface(name) = &packet.origin else { return None };
    let on_bridge = |ip: IpAddr| node.out_interface(ip) == Some(name) && !node.is_local(ip);
    let between = on_bridge(packet.source.ip()) && on_bridge(to.ip()) && packet.source.ip() != to.ip();
    if branch.outcome.masqueraded || !between {
        return None;
    }
    let bridge = &unseen(facts, view, name)?.name;
    let (family, sysctl) = BRIDGED.iter().find(|(family, _)| *family == view.family)?;
    let is = if facts.sysctls.contains_key(*sysctl) { "is 0" } else { "is not there (module br_netfilter)" };
    let what = format!(
        "{family}: {sysctl} {is}: packets between pods on bridge {bridge} do not meet the rules, so the answer of {to} \
         to a pod of that bridge comes from the wrong address"
    );
    let next = format!("modprobe br_netfilter; sysctl -w {}=1", sysctl.replace('/', "."));
    Some(Finding { certain: branch.is_certain(), ..Finding::certain(Cause::BridgeNetfilterOff, what, next) })
}

/// The same for any pod of an endpoint's bridge, where no sender was named.
///
/// # Errors
/// As a trace.
pub fn between_pods(
    facts: &Facts,
    view: &ServicePortView,
    (destination, protocol): (SocketAddr, Protocol),
    paths: &mut Paths<'_>,
) -> Result<Option<Finding>, String> {
    let used = view.endpoints.iter().filter(|endpoint| endpoint.used()).filter_map(|endpoint| endpoint.address);
    let bridges = used.filter_map(|to| unseen(facts, view, paths.node().out_interface(to.ip())?));
    let Some(bridge) = bridges.map(|link| link.name.clone()).next() else { return Ok(None) };
    let Some(ip) = neighbour(&bridge, view, paths.node()) else { return Ok(None) };
    let source = SocketAddr::new(ip, CLIENT_PORT);
    if source.is_ipv4() != destination.is_ipv4() {
        return Ok(None);
    }
    let packet = paths.packet(Some(source), (destination, protocol), Some(&bridge))?;
    let trace = paths.trace(&packet)?;
    Ok(trace.branches.iter().find_map(|branch| lost_reply(facts, view, &packet, branch, paths.node())))
}

/// An address of a bridge's network that is neither the node's nor an endpoint's.
fn neighbour(bridge: &str, view: &ServicePortView, node: &Node) -> Option<IpAddr> {
    let mut nets = node.routes.iter().filter(|(net, name)| name == bridge && net.prefix_len() < net.max_prefix_len());
    let is_of_family = |ip: &IpAddr| ip.is_ipv4() == (view.family == "IPv4");
    let is_endpoint = |ip: IpAddr| {
        view.endpoints.iter().any(|endpoint: &EndpointView| endpoint.address.is_some_and(|at| at.ip() == ip))
    };
    let is_free = |ip: &IpAddr| !node.is_local(*ip) && !is_endpoint(*ip) && node.out_interface(*ip) == Some(bridge);
    nets.find_map(|(net, _)| net.hosts().skip(1).take(TRIED).filter(is_of_family).find(is_free))
}
