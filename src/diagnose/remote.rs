//! Endpoints of other nodes whose packets take the default route.
//!
//! In a network that knows the addresses of pods, as those of clouds do, that is right.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use proxier_inspect::node::facts::Facts;
use proxier_inspect::node::lookups::Route;
use proxier_inspect::services::ServicePortView;
use proxier_inspect::walk::{Branch, Node, Verdict};

use super::finding::{Cause, Finding};
use super::routes::Routes;

/// Kinds of interfaces that carry packets of pods to other nodes.
const TUNNELS: [&str; 7] = ["vxlan", "geneve", "ipip", "sit", "ip6tnl", "gre", "wireguard"];

/// What is known of packets to a pod of another node that take the default route.
pub enum ByDefault {
    /// Other nodes' pods have routes of their own, and this one has none.
    Suspect(Finding),
    /// The gateway may know it, which is assumed.
    Assumed(String),
}

/// A pod of another node that packets are sent to without a route of its own.
pub fn unrouted(
    view: &ServicePortView,
    branch: &Branch,
    (facts, node): (&Facts, &Node),
    (routes, cluster): (&mut Routes, Option<IpNet>),
) -> Option<ByDefault> {
    let Verdict::Delivered(to) = branch.outcome.verdict else { return None };
    let endpoint = view.endpoints.iter().find(|endpoint| endpoint.address == Some(to))?;
    let is_remote = endpoint.state.is_some_and(|state| !state.local);
    let Some(Route::Leaves { device, default: true }) = routes.to(to.ip()).filter(|_| is_remote) else { return None };
    let pods = cluster.unwrap_or_else(|| around(to.ip()));
    if !pods.contains(&to.ip()) || branch.unrouted.is_some() {
        return None;
    }
    let Some(shown) = route_to_others(node, &pods, to).or_else(|| tunnel(facts, &pods)) else {
        let assumed = format!("routing: the gateway on {device} has a route to {}, a pod of another node", to.ip());
        return cluster.map(|_| ByDefault::Assumed(assumed));
    };
    let what = format!(
        "{} ({}): endpoint {to} is a pod of another node, and its packets leave by the default route on {device}, though {shown}: \
         {:.0} % of connections may fail",
        view.name,
        view.family,
        branch.outcome.probability * 100.0
    );
    let next = format!(
        "ip route get {}; see why the network plugin has made no route to that node's pods (its agent's log), unless the \
         router knows them",
        to.ip()
    );
    Some(ByDefault::Suspect(Finding::suspect(Cause::NoRoute, what, next)))
}

/// A route to pods of another node.
fn route_to_others(node: &Node, pods: &IpNet, to: SocketAddr) -> Option<String> {
    let is_own = |net: &IpNet| node.addresses.iter().any(|ip| net.contains(ip));
    let is_of_others =
        |net: &IpNet| pods.contains(net) && net != pods && net.prefix_len() < net.max_prefix_len() && !is_own(net);
    // A network of this node's pods is on a bridge or a veth; those of others are on an uplink or a tunnel.
    let uplink = node.out_interface(to.ip());
    let mut routes = node.routes.iter().filter(|(net, device)| is_of_others(net) && Some(&**device) == uplink);
    routes.next().map(|(net, device)| format!("there is a route to pods of another node, {net} on {device}"))
}

/// A tunnel between nodes with an address among those of pods.
fn tunnel(facts: &Facts, pods: &IpNet) -> Option<String> {
    let is_tunnel = |kind: &Option<String>| kind.as_deref().is_some_and(|kind| TUNNELS.contains(&kind));
    let mut links = facts.links.iter().filter(|link| link.up && is_tunnel(&link.kind));
    let link = links.find(|link| link.addresses.iter().any(|ip| pods.contains(ip)))?;
    let kind = link.kind.as_deref().unwrap_or_default();
    Some(format!("tunnel {} ({kind}) carries packets to pods of other nodes", link.name))
}

/// The network of all pods, as clusters have it by default, around one.
fn around(ip: IpAddr) -> IpNet {
    let length = if ip.is_ipv4() { 16 } else { 48 };
    IpNet::new(ip, length).map_or_else(|_| IpNet::from(ip), |net| net.trunc())
}
