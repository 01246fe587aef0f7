//! What packets meet at an endpoint: a neighbour that does not answer, or no process that listens.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use proxier::model::Protocol;
use proxier_inspect::node::Unread;
use proxier_inspect::node::endpoints::{
    Listening, Neighbour, NextHop, NotListening, PodNamespaces, listening_here, silent_neighbour,
};
use proxier_inspect::node::facts::Facts;
use proxier_inspect::node::lookups::{Link, Route};
use proxier_inspect::services::{EndpointView, ServicePortView};
use proxier_inspect::walk::{Branch, Packet, Verdict};

use super::finding::{Cause, Finding};
use super::routes::{Routes, is_pods, same_network};

/// How old a failed neighbour entry may be to count: the pod may have come back since, and the kernel asks again with the next
/// packet only. Clients that try again keep it young.
const RECENT: Duration = Duration::from_secs(5);
/// The most ports that a finding lists.
const LISTED: usize = 5;

/// What was read of endpoints, each once.
#[derive(Default)]
pub struct Endpoints {
    /// The addresses that may be on this node.
    wanted: BTreeSet<IpAddr>,
    namespaces: Option<PodNamespaces>,
    listening: BTreeMap<(SocketAddr, Protocol), Listening>,
    silent: BTreeMap<IpAddr, Option<(NextHop, Neighbour)>>,
    unread: BTreeMap<String, String>,
    /// What is assumed of them.
    pub assumed: BTreeSet<String>,
}

impl Endpoints {
    /// Reads nothing yet. `views`: the Service ports whose endpoints may be asked for.
    pub fn of(views: &[ServicePortView]) -> Self {
        let endpoints = views.iter().flat_map(|view| &view.endpoints);
        let may_be_here = endpoints.filter(|endpoint| endpoint.state.is_none_or(|state| state.local));
        Self { wanted: may_be_here.filter_map(|one| Some(one.address?.ip())).collect(), ..Self::default() }
    }

    /// What could not be read.
    pub fn unread(&self) -> Vec<Unread> {
        self.unread.iter().map(|(what, why)| Unread::new(what, &**why)).collect()
    }

    /// Why the endpoint that a packet is delivered to does not answer, as far as this node shows.
    pub fn silent(
        &mut self,
        view: &ServicePortView,
        packet: &Packet,
        branch: &Branch,
        (facts, routes): (&Facts, &mut Routes),
    ) -> Vec<Finding> {
        let Verdict::Delivered(to) = branch.outcome.verdict else { return Vec::new() };
        let endpoint = view.endpoints.iter().find(|endpoint| endpoint.address == Some(to));
        let Some(endpoint) = endpoint.filter(|_| branch.unrouted.is_none()) else { return Vec::new() };
        let of = Delivery { view, to, protocol: packet.protocol, share: branch.outcome.probability * 100.0 };
        let route = routes.to(to.ip());
        let is_of_node = route == Some(Route::Local);
        let mut findings = Vec::new();
        let neighbour = if is_of_node { None } else { self.neighbour(to.ip()) };
        if let Some((hop, entry)) = &neighbour {
            let certain = routes.decides(packet) && !hop.is_one_of_several && entry.age <= RECENT;
            findings.push(Finding { certain, ..of.unanswered(hop, entry) });
        }
        let listening = self.listening(to, packet.protocol, is_of_node);
        let by_default = matches!(route, Some(Route::Leaves { default: true, .. })) && is_here(endpoint);
        match listening {
            Listening::Yes(assumed) => {
                self.assumed.extend(assumed);
                let has_namespace = self.namespaces.as_ref().is_some_and(|all| all.has(to.ip()));
                findings.extend((by_default && has_namespace).then(|| of.sent_away(facts)).flatten());
            }
            Listening::No(instead) => findings.push(of.not_listening(&instead, is_of_node)),
            // What does not answer is explained.
            Listening::NotFound | Listening::Unknown(_) if neighbour.is_some() => {}
            Listening::NotFound if by_default => findings.extend(of.not_found(facts, true)),
            Listening::Unknown(_) if by_default => findings.extend(of.not_found(facts, false)),
            Listening::NotFound if is_here(endpoint) => {
                self.assume(to, "no network namespace that is visible here has its address");
            }
            Listening::NotFound => {}
            Listening::Unknown(why) if is_of_node || may_be_here(endpoint, to.ip(), (route.as_ref(), facts)) => {
                self.assume(to, &why);
            }
            Listening::Unknown(_) => {}
        }
        findings
    }

    /// Assumes that a process listens at an endpoint whose sockets cannot be seen from here, as from kube-proxy's container.
    fn assume(&mut self, to: SocketAddr, why: &str) {
        self.assumed.insert(format!("a process listens at endpoint {to}, whose sockets were not read: {why}"));
    }

    fn neighbour(&mut self, ip: IpAddr) -> Option<(NextHop, Neighbour)> {
        let unread = &mut self.unread;
        let read = || {
            silent_neighbour(ip).unwrap_or_else(|error| {
                unread.insert(format!("the neighbour of endpoint {ip}"), error.to_string());
                None
            })
        };
        self.silent.entry(ip).or_insert_with(read).clone()
    }

    fn listening(&mut self, to: SocketAddr, protocol: Protocol, is_of_node: bool) -> Listening {
        if let Some(known) = self.listening.get(&(to, protocol)) {
            return known.clone();
        }
        let found = match () {
            () if is_of_node => listening_here(to, protocol),
            () if !self.wanted.contains(&to.ip()) => Listening::Yes(None),
            () => self.namespaces.get_or_insert_with(|| PodNamespaces::with(&self.wanted)).listening(to, protocol),
        };
        self.listening.insert((to, protocol), found.clone());
        found
    }
}

/// Whether a pod's link is down: it has taken its route along, which is a finding of its own.
fn has_link_down(facts: &Facts) -> bool {
    facts.links.iter().any(|link| is_pods(link) && !link.up)
}

fn is_here(endpoint: &EndpointView) -> bool {
    endpoint.state.is_some_and(|state| state.local)
}

/// Whether an endpoint is on this node by its EndpointSlice; without objects, by the interface that its packets leave by.
fn may_be_here(endpoint: &EndpointView, ip: IpAddr, (route, facts): (Option<&Route>, &Facts)) -> bool {
    let Some(state) = endpoint.state else {
        let Some(Route::Leaves { device, default: false }) = route else { return false };
        let is_bridge = |link: &Link| link.name == *device && link.kind.as_deref() == Some("bridge");
        return facts.pods.contains(&ip) || facts.links.iter().any(is_bridge);
    };
    state.local
}

/// Packets of a Service port to an endpoint.
struct Delivery<'a> {
    view: &'a ServicePortView,
    to: SocketAddr,
    protocol: Protocol,
    /// Of its connections, in percent.
    share: f64,
}

impl Delivery<'_> {
    /// An endpoint of this node whose packets take the default route, and whose address no namespace has. `all_read`: no
    /// namespace was left out.
    fn not_found(&self, facts: &Facts, all_read: bool) -> Option<Finding> {
        if has_link_down(facts) {
            return None;
        }
        let Self { view, to, share, .. } = self;
        let which = if all_read { "no network namespace" } else { "no network namespace that could be read" };
        let what = format!(
            "{} ({}): endpoint {to} is on this node by its EndpointSlice, but {which} has its address, and its packets leave \
             by the default route: {share:.0} % of connections fail",
            view.name, view.family
        );
        let next = "see whether its pod still runs (crictl pods), and what the kubelet says of it: its EndpointSlice may be \
                    out of date, or the network plugin has lost its route";
        // Pods of the same network have routes of their own.
        let others = facts.pods.iter().any(|pod| *pod != to.ip() && same_network(*pod, to.ip()));
        Some(Finding { certain: others && all_read, ..Finding::certain(Cause::NoRoute, what, next) })
    }

    /// An endpoint whose namespace hangs on this node, and whose packets take the default route all the same.
    fn sent_away(&self, facts: &Facts) -> Option<Finding> {
        if has_link_down(facts) {
            return None;
        }
        let Self { view, to, share, .. } = self;
        let what = format!(
            "{} ({}): endpoint {to} is in a network namespace on this node, but its packets leave by the default route: \
             {share:.0} % of connections fail",
            view.name, view.family
        );
        let next = format!(
            "ip route get {}; the route to the pod is missing: restart the pod or the network plugin's agent, which make it",
            to.ip()
        );
        // Pods of the same network have routes of their own.
        let others = facts.pods.iter().any(|pod| *pod != to.ip() && same_network(*pod, to.ip()));
        Some(Finding { certain: others, ..Finding::certain(Cause::NoRoute, what, next) })
    }

    fn unanswered(&self, hop: &NextHop, entry: &Neighbour) -> Finding {
        let Self { view, to, share, .. } = self;
        let how = if to.is_ipv4() { "ARP" } else { "neighbour solicitations" };
        let (device, seconds) = (&hop.device, entry.age.as_secs());
        let (who, next) = if hop.address == to.ip() {
            let next = format!(
                "see whether its pod runs and has that address (crictl pods; ip addr in its network namespace); ip neigh \
                 show {} dev {device}",
                to.ip()
            );
            (format!("endpoint {to} does not answer {how} on {device}"), next)
        } else {
            let next = format!(
                "see whether that machine is up and on the same network (kubectl get nodes -o wide); ip neigh show {} dev \
                 {device}",
                hop.address
            );
            (format!("the next hop {} of endpoint {to} does not answer {how} on {device}", hop.address), next)
        };
        let old = if entry.age > RECENT { "; it may do so again, as no packet was sent to it since" } else { "" };
        let what = format!(
            "{} ({}): {who}, as of {seconds} s ago{old}: {share:.0} % of connections fail",
            view.name, view.family
        );
        Finding::certain(Cause::NeighbourUnreachable, what, next)
    }

    fn not_listening(&self, instead: &NotListening, is_of_node: bool) -> Finding {
        let Self { view, to, protocol, share } = self;
        let process = instead.process.as_ref().map(|(pid, name)| format!(" (process {pid}, {name})"));
        let place = if is_of_node {
            "on this node".to_owned()
        } else {
            format!("in its network namespace{}", process.unwrap_or_default())
        };
        let listed = |all: Vec<String>| all.into_iter().take(LISTED).collect::<Vec<_>>().join(", ");
        let same: Vec<String> = instead.same_port.iter().map(ToString::to_string).collect();
        let ports: Vec<String> = instead.other_ports.iter().map(ToString::to_string).collect();
        let mut parts = Vec::new();
        if !same.is_empty() {
            parts.push(format!("it listens on {} only", listed(same)));
        } else if !ports.is_empty() && !is_of_node {
            let word = if ports.len() == 1 { "port" } else { "ports" };
            parts.push(format!("it listens on {word} {}", listed(ports)));
        }
        if !instead.doubts.is_empty() {
            parts.push(format!("{} there may take its packets", instead.doubts.join(" and ")));
        }
        let parts: String = parts.into_iter().map(|part| format!("; {part}")).collect();
        let what = format!(
            "{} ({}): no process listens on {to}/{} {place}{parts}: {share:.0} % of connections fail",
            view.name,
            view.family,
            protocol.name().to_lowercase()
        );
        let enter = instead.process.as_ref().map(|(pid, _)| format!("nsenter -t {pid} -n "));
        let next = format!(
            "compare targetPort of the Service with what the program listens on ({}ss -ln), see whether it runs, and let it \
             listen on all addresses and not on 127.0.0.1 or ::1",
            enter.unwrap_or_default()
        );
        Finding { certain: instead.doubts.is_empty(), ..Finding::certain(Cause::NotListening, what, next) }
    }
}
