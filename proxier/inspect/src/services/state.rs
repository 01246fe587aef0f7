//! Adds the state of objects to Service ports read from rules.
//!
//! A [`Snapshot`] adds names, policies and the state of each endpoint, and the Service ports that the rules lack.

use std::collections::{BTreeMap, HashMap};

use netfilter::IpFamily;

use super::{Address, EndpointState, EndpointView, Policy, ServicePortView};
use proxier::iptables::names::Namer;
use proxier::model::{CategorizedEndpoints, Endpoint, ServicePort, ServicePortName, Snapshot};

/// Adds the model's data to the views, and views of Service ports that only the model has, filtered by `wanted`.
pub fn add_model(
    views: &mut Vec<ServicePortView>,
    snapshot: &Snapshot<'_>,
    family: IpFamily,
    wanted: impl Fn(&ServicePortName) -> bool,
) {
    let mut by_name: HashMap<(String, &'static str), usize> = HashMap::new();
    for (at, view) in views.iter().enumerate() {
        by_name.insert((view.name.clone(), view.protocol), at);
    }
    for (name, port) in snapshot.ports.iter().filter(|(name, _)| wanted(name)) {
        let protocol = name.protocol.name();
        let chains = Namer::new(name).port();
        let names =
            [name.to_string(), chains.cluster.to_string(), chains.external.to_string(), chains.local.to_string()];
        let known = names.iter().find_map(|text| by_name.get(&(text.clone(), protocol)));
        let at = known.copied().unwrap_or_else(|| {
            views.push(missing(name, family));
            views.len() - 1
        });
        views[at].name = name.to_string();
        fill(&mut views[at], name, port, snapshot);
    }
    views.sort_by(|a, b| (&a.name, a.protocol).cmp(&(&b.name, b.protocol)));
}

/// Adds health check node ports, on which the proxy listens; the table of nftables mode has no rules for them.
pub fn add_health_checks(views: &mut [ServicePortView], snapshot: &Snapshot<'_>) {
    for (name, port) in snapshot.ports.iter().filter(|(_, port)| port.health_check_node_port != 0) {
        let text = name.to_string();
        let view = views.iter_mut().find(|view| view.name == text && view.protocol == name.protocol.name());
        view.into_iter().for_each(|view| view.addresses.push(Address::of_health_checks(port.health_check_node_port)));
    }
}

fn missing(name: &ServicePortName, family: IpFamily) -> ServicePortView {
    let notes = vec!["no rule dispatches to this Service port".to_owned()];
    ServicePortView { notes, known: true, ..ServicePortView::of(name.to_string(), family, name.protocol) }
}

fn fill(view: &mut ServicePortView, name: &ServicePortName, port: &ServicePort, snapshot: &Snapshot<'_>) {
    view.known = true;
    let policy = |local| if local { Policy::Local } else { Policy::Cluster };
    view.internal_policy = Some(policy(port.internal_local));
    if port.externally_accessible() {
        view.external_policy = Some(policy(port.external_local));
    }
    let endpoints = snapshot.endpoints.of(name);
    let used = CategorizedEndpoints::of(&endpoints, port, snapshot.node);
    // In iptables mode, pods reach all endpoints by external addresses too, whatever the policy.
    let of_ipvs = view.addresses.iter().any(|address| address.server.is_some());
    let external = port.externally_accessible() && !port.external_local;
    let anywhere = if of_ipvs { !port.internal_local || external } else { port.uses_cluster_endpoints() };
    for endpoint in &endpoints {
        let at = view.endpoints.iter().position(|known| known.address == Some(endpoint.address));
        let at = at.unwrap_or_else(|| {
            view.endpoints.push(EndpointView::at(Some(endpoint.address)));
            view.endpoints.len() - 1
        });
        let proxier::model::SliceEndpoint { ready, serving, terminating, local, .. } = endpoint.state;
        view.endpoints[at].state = Some(EndpointState { ready, serving, terminating, local });
        if !view.endpoints[at].used() {
            view.endpoints[at].unused = Some(why_unused(endpoint, &endpoints, &used, anywhere).to_owned());
        }
    }
    for stranger in view.endpoints.iter_mut().filter(|endpoint| endpoint.state.is_none()) {
        stranger.unused = Some("no EndpointSlice has it, but rules use it".to_owned());
    }
    view.endpoints.sort_by_key(|endpoint| endpoint.address);
}

/// Why an endpoint gets no traffic. `anywhere`: endpoints on other nodes are used too.
fn why_unused(endpoint: &Endpoint, all: &[Endpoint], used: &CategorizedEndpoints<'_>, anywhere: bool) -> &'static str {
    let state = &endpoint.state;
    let may = state.local || anywhere;
    let meant = may && used.reachable.iter().any(|other| other.address == endpoint.address);
    let any_ready = all.iter().any(|other| other.state.ready);
    match () {
        () if meant => "the rules should use it but do not",
        () if !state.ready && !state.terminating => "it is not ready",
        () if state.terminating && !state.serving => "it is terminating and serves no more",
        () if !state.ready && any_ready => "it is terminating, and others are ready",
        () if !may => "it is on another node, and the policy is Local",
        () => "its topology hints are for other zones or nodes",
    }
}

/// Maps each address to its Service port.
#[must_use]
pub fn owners(views: &[ServicePortView]) -> BTreeMap<(Option<std::net::IpAddr>, u16, &'static str), usize> {
    let mut owners = BTreeMap::new();
    for (at, view) in views.iter().enumerate() {
        for address in &view.addresses {
            owners.insert((address.ip, address.port, view.protocol), at);
        }
    }
    owners
}
