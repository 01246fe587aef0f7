//! Causes that lie in the Service and its endpoints.
//!
//! It looks at Service ports as the node has them.

use proxier_inspect::services::{Address, AddressVerdict, Policy, ServicePortView};

use netfilter::IpFamily;
use proxier::model::{NamespacedName, NodeInfo, ServicePort, ServicePortName};
use proxier::track::Tracker;
use proxier_inspect::node::{FamilyRules, Focus};

use super::TargetAddress;
use super::finding::{Cause, Finding};
use crate::inspect::NodeInspection;

/// A finding if no Service has the diagnosed name or address. `others`: Service ports with the same address.
pub fn unknown(
    seen: &NodeInspection,
    (focus, asked): (&Focus, Option<&TargetAddress>),
    name: &str,
    others: &[ServicePortView],
) -> Option<Finding> {
    match seen.rules.mode() {
        // That there is no proxy, or one that is not understood, says it all.
        None => return None,
        Some("ipvs") if seen.objects.is_none() && others.is_empty() => {
            return Some(Finding::suspect(
                Cause::NotUnderstood,
                "this node is in IPVS mode, where only objects tell which Service has which virtual server",
                "give --kubeconfig, --config or --objects; without, see kube-proxy dump and kube-proxy trace",
            ));
        }
        Some(_) => {}
    }
    if let Some(finding) = focus.service.as_ref().filter(|_| asked.is_none()).and_then(|one| no_virtual_ip(seen, one)) {
        return Some(finding);
    }
    let emptied = |family: &FamilyRules| family.emptied_dispatch(&seen.unread).is_some();
    if seen.objects.is_none() && seen.rules.families.iter().any(emptied) {
        // Missing rules of all Services have a finding of their own.
        return None;
    }
    if let Some(asked) = asked
        && let Some(finding) = other_port(asked, others).or_else(|| at_another_node(seen, asked))
    {
        return Some(finding);
    }
    let next = match (&seen.objects, asked) {
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
    let name = asked.map_or_else(|| name.to_owned(), |asked| format!("Service at {asked}"));
    let knows = if seen.objects.is_some() {
        "neither objects nor rules have an address of"
    } else {
        "no rule on this node is for"
    };
    // What could not be read may have it.
    let certain = seen.objects.is_some() || seen.unread.is_empty();
    let finding = Finding::certain(Cause::NoSuchService, format!("{knows} {name}"), next);
    let finding = Finding { certain, ..finding };
    // Without objects, a Service whose rules are damaged looks like one that does not exist.
    let unused = if seen.objects.is_some() { Vec::new() } else { seen.unused_chains() };
    Some(match unused.first() {
        None => finding,
        Some(chain) => {
            let what = format!("{}; but no rule jumps to chain {chain}, so rules may be missing", finding.what);
            Finding { certain: false, what, ..finding }
        }
    })
}

/// That the Service exists, and kube-proxy has no part in it. Whether it works is not known then.
fn no_virtual_ip(seen: &NodeInspection, service: &NamespacedName) -> Option<Finding> {
    seen.portless.get(service)?;
    let what = format!(
        "Service {service} exists and has no virtual IP: it is headless (clusterIP None), of type ExternalName, or served by          another proxy (label service.kubernetes.io/service-proxy-name), so kube-proxy has no rules for it and no part in its          connections"
    );
    let next = format!(
        "its name resolves to the addresses of its pods, or to another name: look up {}.{}.svc in a pod, and give diagnose one          of those pods' addresses and ports",
        service.name, service.namespace
    );
    Some(Finding::suspect(Cause::NoVirtualIp, what, next))
}

/// That the port is a node port, and the address not this node's.
fn at_another_node(seen: &NodeInspection, asked: &TargetAddress) -> Option<Finding> {
    let family = IpFamily::of(&asked.to.ip());
    if seen.rules.of(family).is_none_or(|rules| rules.addresses.contains(&asked.to.ip())) {
        return None;
    }
    let snapshot = seen.objects.as_ref()?.get(&family)?.snapshot(family.localhost());
    let is_it = |(name, port): &(&ServicePortName, &ServicePort)| {
        name.protocol == asked.protocol && port.node_port == asked.to.port()
    };
    let (name, _) = snapshot.ports.iter().find(is_it)?;
    let what = format!(
        "{} is the node port of {}, and {} is no address of this node: the rules of the node that has it decide",
        asked.to.port(),
        name.service,
        asked.to.ip()
    );
    Some(Finding::suspect(Cause::NoSuchService, what, "run kube-proxy diagnose on that node"))
}

/// That the address is a Service's, and the port is not.
fn other_port(asked: &TargetAddress, others: &[ServicePortView]) -> Option<Finding> {
    let ip = asked.to.ip();
    let at = |view: &ServicePortView| -> Vec<(&'static str, String)> {
        let addresses = view.addresses.iter().filter(|address| address.ip == Some(ip));
        addresses.map(|address| (address.kind.name(), format!("{}/{}", address.port, view.protocol))).collect()
    };
    let first = others.iter().find(|view| !at(view).is_empty())?;
    let service = first.name.split(':').next().unwrap_or_default();
    let mut ports: Vec<(&str, String)> = others.iter().filter(|view| is_of(&view.name, service)).flat_map(at).collect();
    ports.sort_by(|a, b| a.1.cmp(&b.1));
    ports.dedup();
    let kind = ports.first().map(|(kind, _)| *kind).unwrap_or_default();
    let ports: Vec<String> = ports.into_iter().map(|(_, port)| port).collect();
    let what = format!(
        "{ip} is the {kind} of {service}, which has port {} and no port {}/{}",
        ports.join(", "),
        asked.to.port(),
        asked.protocol.name()
    );
    let (namespace, name) = service.split_once('/').unwrap_or(("NAMESPACE", service));
    let next = format!(
        "connect to port {}, or add the port to the Service: kubectl -n {namespace} edit service {name}",
        ports.first().map(String::as_str).unwrap_or_default()
    );
    Some(Finding::certain(Cause::NoSuchPort, what, next))
}

/// Explains that no endpoint counts as local if the proxy's Node does not exist.
pub fn without_node(findings: &mut [Finding], seen: &NodeInspection) {
    let name = &seen.settings.proxier.node_name;
    let is_unknown = |tracker: &Tracker| tracker.node_listed() && *tracker.node() == NodeInfo::default();
    if !seen.objects.as_ref().is_some_and(|objects| objects.values().all(is_unknown)) {
        return;
    }
    for finding in findings.iter_mut().filter(|finding| finding.cause == Cause::NoLocalEndpoints) {
        finding.what += &format!("; there is no Node {name:?}, so none of the endpoints counts as local");
        finding.next =
            "start kube-proxy with the name of its Node: --hostname-override, or hostnameOverride in its file"
                .to_owned();
    }
}

fn is_of(name: &str, service: &str) -> bool {
    name.split(':').next() == Some(service)
}

/// What is wrong with a Service port.
pub fn of(view: &ServicePortView, asked: Option<&TargetAddress>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let rejected = view.addresses.iter().any(|address| address.verdict == AddressVerdict::Rejected);
    let exist = view.endpoints.iter().filter(|endpoint| endpoint.exists()).count();
    if exist == 0 && (rejected || view.known) {
        findings.push(no_endpoints(view, exist == 0 && !view.endpoints.is_empty()));
    } else if view.known
        && !super::has_used_endpoints(view)
        && view.endpoints.iter().filter(|endpoint| endpoint.exists()).all(unusable)
    {
        let count = exist;
        findings.push(Finding::certain(
            Cause::EndpointsNotReady,
            format!("{} ({}): none of its {count} endpoints is ready", view.name, view.family),
            "look at why the pods are not ready: kubectl describe pod, their readiness probes and logs",
        ));
    }
    findings.extend(draining_only(view));
    let dropped: Vec<&Address> =
        view.addresses.iter().filter(|address| address.verdict == AddressVerdict::Dropped).collect();
    let dropped: Vec<&Address> = dropped.into_iter().filter(|one| asked.is_none_or(|asked| asked.is(one))).collect();
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

fn no_endpoints(view: &ServicePortView, flows: bool) -> Finding {
    let service = view.name.split(':').next().unwrap_or_default();
    let (namespace, name) = service.split_once('/').unwrap_or(("NAMESPACE", service));
    let old = if flows { "; flows that began before still go to earlier endpoints" } else { "" };
    Finding::certain(
        Cause::NoEndpoints,
        format!("{} ({}) has no endpoints: connections are refused{old}", view.name, view.family),
        format!(
            "kubectl -n {namespace} get endpointslices -l kubernetes.io/service-name={name}; if there is none with \
             addresses, compare the Service's selector, and its port's name and targetPort, with the pods"
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
