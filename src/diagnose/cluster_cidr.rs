//! Whether the configured network of all pods contains the pods of this node.

use netfilter::IpFamily;
use proxier_inspect::services::ServicePortView;

use super::finding::{Cause, Finding};
use crate::inspect::NodeInspection;

/// Endpoints on this node whose addresses are no addresses of pods by the configuration.
pub fn outside(seen: &NodeInspection, views: &[ServicePortView]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for rules in &seen.rules.families {
        let Some(network) = seen.settings.proxier.local_detector.cluster_network(rules.family) else { continue };
        let of_family = views.iter().filter(|view| view.family == IpFamily::name(rules.family));
        let endpoints = of_family.flat_map(|view| view.endpoints.iter().map(move |endpoint| (view, endpoint)));
        let is_here = |state: proxier_inspect::services::EndpointState| state.local;
        let mut pods =
            endpoints.filter(|(_, endpoint)| endpoint.state.is_some_and(is_here)).filter_map(|(view, one)| {
                // Those with an address of the node use its network.
                let ip = one.address.map(|address| address.ip()).filter(|ip| !rules.addresses.contains(ip))?;
                (!network.contains(&ip)).then_some((view, ip))
            });
        findings.extend(pods.next().map(|(view, ip)| {
            let what = format!(
                "{} ({}): endpoint {ip} is a pod of this node, and the configured cluster CIDR {network} does not contain it: \
                 packets of such pods count as those of clients outside, so servers see the node's address and policies \
                 Local apply to them",
                view.name, view.family
            );
            let next = "compare clusterCIDR of kube-proxy's configuration (--cluster-cidr) with the pod network that the \
                        network plugin and kube-controller-manager use";
            Finding::suspect(Cause::WrongClusterCidr, what, next)
        }));
    }
    findings
}
