//! Selects the endpoints of a Service port that this node may use.
//!
//! Follows kube-proxy 1.36: hints count only if every ready endpoint has them and one of them is for this node; node
//! hints take precedence over zone hints; without ready endpoints, serving terminating ones are used, for the
//! cluster-wide and for the local list separately.

use super::endpoint::{Endpoint, NodeHint};
use super::node::NodeInfo;
use super::service::ServicePort;

/// The endpoints of a Service port by use. Each list keeps the order of the input.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct CategorizedEndpoints<'a> {
    /// For traffic under policy `Cluster`.
    pub cluster: Vec<&'a Endpoint>,
    /// For traffic under policy `Local`.
    pub local: Vec<&'a Endpoint>,
    /// The union of both: all endpoints that traffic on this node can reach.
    pub reachable: Vec<&'a Endpoint>,
    /// Whether any endpoint in the cluster is usable.
    pub any: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum HintUse {
    Ignored,
    Node,
    Zone,
}

impl<'a> CategorizedEndpoints<'a> {
    /// Categorizes `endpoints` by the policies of `port` on this node.
    #[must_use]
    pub fn of(endpoints: &'a [Endpoint], port: &ServicePort, node: &NodeInfo) -> Self {
        if endpoints.is_empty() {
            return Self::default();
        }
        let (uses_cluster, uses_local) = (port.uses_cluster_endpoints(), port.uses_local_endpoints());
        let ready = || endpoints.iter().filter(|e| e.state.ready);
        let terminating = || endpoints.iter().filter(|e| e.serving_terminating());

        let hints = if uses_cluster { usable_hints(endpoints, node) } else { HintUse::Ignored };
        let mut cluster = Vec::new();
        if uses_cluster {
            cluster.extend(ready().filter(|e| allowed(hints, e, node)));
            if cluster.is_empty() {
                cluster.extend(terminating());
            }
        }
        if !uses_local {
            return Self { reachable: cluster.clone(), any: !cluster.is_empty(), cluster, local: Vec::new() };
        }

        let mut local: Vec<_> = ready().filter(|e| e.state.local).collect();
        if local.is_empty() {
            local.extend(terminating().filter(|e| e.state.local));
        }
        let any = !cluster.is_empty() || ready().next().is_some() || terminating().next().is_some();
        let reachable = union(endpoints, &cluster, &local);
        Self { cluster, local, reachable, any }
    }
}

fn union<'a>(endpoints: &'a [Endpoint], a: &[&'a Endpoint], b: &[&'a Endpoint]) -> Vec<&'a Endpoint> {
    let contains = |list: &[&Endpoint], endpoint: &Endpoint| list.iter().any(|e| std::ptr::eq(*e, endpoint));
    if b.is_empty() {
        return a.to_vec();
    }
    endpoints.iter().filter(|e| contains(a, e) || contains(b, e)).collect()
}

fn usable_hints(endpoints: &[Endpoint], node: &NodeInfo) -> HintUse {
    let (mut all_node, mut all_zone, mut for_node, mut for_zone) = (true, true, false, false);
    for endpoint in endpoints.iter().filter(|e| e.state.ready) {
        all_node &= endpoint.state.node_hint != NodeHint::None;
        all_zone &= endpoint.state.zone_hints.is_some();
        for_node |= allowed(HintUse::Node, endpoint, node);
        for_zone |= allowed(HintUse::Zone, endpoint, node);
    }
    match (all_node && for_node, all_zone && for_zone) {
        (true, _) => HintUse::Node,
        (false, true) => HintUse::Zone,
        (false, false) => HintUse::Ignored,
    }
}

fn allowed(hints: HintUse, endpoint: &Endpoint, node: &NodeInfo) -> bool {
    match hints {
        HintUse::Ignored => true,
        HintUse::Node => endpoint.state.node_hint == NodeHint::Here,
        HintUse::Zone => {
            endpoint.state.zone_hints.as_deref().is_some_and(|zones| zones.iter().any(|zone| **zone == *node.zone))
        }
    }
}
