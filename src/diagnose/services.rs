//! Causes that lie in the Service and its endpoints.
//!
//! In: Service ports as the node has them. Out: findings. Must not know: rules beyond what the views tell.

use std::net::SocketAddr;

use proxier::model::Protocol;
use proxier_inspect::services::{Address, Fate, Policy, ServicePortView};

use super::finding::{Cause, Finding};
use crate::inspect::Look;

/// Nobody knows what was asked for.
pub fn unknown(seen: &Look, address: Option<(SocketAddr, Protocol)>, name: &str) -> Option<Finding> {
    match seen.rules.mode() {
        // That there is no proxy, or one that is not understood, says it all.
        None => return None,
        Some("ipvs") if seen.objects.is_none() => {
            return Some(Finding::suspect(
                Cause::NotUnderstood,
                "this node is in IPVS mode, where only objects tell which Service has which virtual server",
                "give --kubeconfig, --config or --objects; without, see kube-proxy dump and kube-proxy trace",
            ));
        }
        Some(_) => {}
    }
    let asked = address
        .map_or_else(|| name.to_owned(), |(address, protocol)| format!("Service at {address}/{}", protocol.name()));
    let next = match (&seen.objects, address) {
        (Some(_), None) => {
            "check the name and namespace with kubectl get service; headless Services, those of type ExternalName and \
             those with the label service.kubernetes.io/service-proxy-name have no rules"
        }
        (Some(_), Some(_)) => {
            "check the address and port with kubectl get services -A; a cluster IP of a deleted Service leads nowhere"
        }
        (None, _) => {
            "check that it exists with kubectl get services -A; with --kubeconfig or --objects this tells more"
        }
    };
    let knows =
        if seen.objects.is_some() { "neither the objects nor the rules know" } else { "no rule on this node knows" };
    Some(Finding::certain(Cause::NoSuchService, format!("{knows} a {asked}"), next))
}

/// What is wrong with a Service port.
pub fn of(view: &ServicePortView) -> Vec<Finding> {
    let mut findings = Vec::new();
    let rejected = view.addresses.iter().any(|address| address.fate == Fate::Rejected);
    if view.endpoints.is_empty() && (rejected || view.known) {
        findings.push(no_endpoints(view));
    } else if view.known && !super::leads_somewhere(view) && view.endpoints.iter().all(unusable) {
        let count = view.endpoints.len();
        findings.push(Finding::certain(
            Cause::EndpointsNotReady,
            format!("{} ({}): none of its {count} endpoints is ready", view.name, view.family),
            "look at why the pods are not ready: kubectl describe pod, their readiness probes and logs",
        ));
    }
    findings.extend(draining_only(view));
    let dropped: Vec<&Address> = view.addresses.iter().filter(|address| address.fate == Fate::Dropped).collect();
    if !dropped.is_empty() {
        findings.push(no_local(view, &dropped));
    }
    let stale: u64 = view.endpoints.iter().map(|endpoint| endpoint.stale).sum();
    if stale > 0 {
        let to = view.endpoints.iter().filter(|e| e.stale > 0).filter_map(|e| e.address);
        let to: Vec<String> = to.map(|address| address.to_string()).collect();
        findings.push(Finding::certain(
            Cause::StaleUdpFlow,
            format!("{} ({}): {stale} UDP flows still go to {}", view.name, view.family, to.join(", ")),
            "clients that keep their port go on sending there: delete the flows with conntrack -D -p udp --orig-dst \
             ADDRESS --dport PORT, and see whether the proxy runs, as it does that after each change",
        ));
    }
    findings
}

fn draining_only(view: &ServicePortView) -> Option<Finding> {
    let drains = |one: &proxier_inspect::services::RealView| one.weight == 0;
    let mut servers = view.endpoints.iter().flat_map(|endpoint| &endpoint.servers).peekable();
    (servers.peek().is_some() && servers.all(drains)).then(|| {
        Finding::certain(
            Cause::DrainingOnly,
            format!(
                "{} ({}): all real servers have weight 0: they wait for their connections to end, and new ones are refused",
                view.name, view.family
            ),
            "see why there is no endpoint that is ready; if there is one, whether the proxy runs, and who else changes \
             weights (ipvsadm)",
        )
    })
}

fn unusable(endpoint: &proxier_inspect::services::EndpointView) -> bool {
    endpoint.state.is_some_and(|state| !(state.ready || (state.serving && state.terminating)))
}

fn no_endpoints(view: &ServicePortView) -> Finding {
    let service = view.name.split(':').next().unwrap_or_default();
    let (namespace, name) = service.split_once('/').unwrap_or(("NAMESPACE", service));
    Finding::certain(
        Cause::NoEndpoints,
        format!("{} ({}) has no endpoints: connections are refused", view.name, view.family),
        format!(
            "compare the Service's selector with the pods' labels, and its port's name and targetPort with the pods' \
             (this cannot be seen from here): kubectl -n {namespace} get endpointslices -l \
             kubernetes.io/service-name={name}; kubectl -n {namespace} describe service {name}"
        ),
    )
}

fn no_local(view: &ServicePortView, dropped: &[&Address]) -> Finding {
    let addresses: Vec<String> = dropped
        .iter()
        .map(|address| {
            let ip = address.ip.map_or_else(|| "*".to_owned(), |ip| ip.to_string());
            format!("{} {ip} port {}", address.kind.name(), address.port)
        })
        .collect();
    let mut policies = Vec::new();
    let local = |policy: Option<Policy>| policy == Some(Policy::Local);
    policies.extend(local(view.internal_policy).then_some("internalTrafficPolicy"));
    policies.extend(local(view.external_policy).then_some("externalTrafficPolicy"));
    let policies = match policies[..] {
        [] => "a traffic policy is".to_owned(),
        [one] => format!("{one} is"),
        _ => format!("{} are", policies.join(" and ")),
    };
    Finding::certain(
        Cause::NoLocalEndpoints,
        format!(
            "{} ({}): {policies} Local and this node has no endpoint that can be used, so packets to {} are dropped",
            view.name,
            view.family,
            addresses.join(", ")
        ),
        "send to a node that has an endpoint (a load balancer's health check should see to that), run a pod of it on \
         this node, or set the policy to Cluster",
    )
}
