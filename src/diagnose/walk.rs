//! Causes that a packet meets on its way: each connection is walked through the rules in the kernel.

mod direct;
mod reply;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use netfilter::IpFamily;
use proxier::model::Protocol;
use proxier_inspect::node::Unread;
use proxier_inspect::node::facts::Facts;
use proxier_inspect::node::lookups::listens;
use proxier_inspect::node::paths::Paths;
use proxier_inspect::services::{Address, AddressKind, AddressVerdict, ServicePortView};
use proxier_inspect::walk::{Assumption, Branch, Origin, Packet, Trace, Verdict};

use super::endpoints::Endpoints;
use super::finding::{Cause, Finding};
use super::hairpin::hairpin;
use super::loopback::{self, LocalhostFacts};
use super::node_port::NodePortSetting;
use super::refusal::{NOT_ROUTED, diverted, own_refusal, refusal, undecided};
use super::remote::{self, ByDefault};
use super::routes::Routes;
use super::{TargetAddress, bridge, forwarding, leftovers, masquerade};
use crate::inspect::NodeInspection;
use crate::trace::{HOST, sender};

pub use direct::endpoints_at;

/// Which connections were followed through the rules.
#[derive(Debug, Default)]
pub struct Walks {
    /// Sender and destination of each, as in `host -> 10.96.0.10:80/tcp`.
    pub followed: Vec<String>,
    /// Connections that could not be traced, and why.
    pub not_followed: Vec<Unread>,
    /// What is assumed of rules on their ways, as of those that limit a rate: hook, assumption and rule.
    pub assumed: BTreeSet<String>,
    /// What could not be read of endpoints.
    pub unread: Vec<Unread>,
    /// Whether replies of some of them were not followed.
    pub replies_unchecked: bool,
    /// Whether one of them ends anywhere but at an endpoint, or may.
    pub fails: bool,
}

/// The senders whose connections are followed: the sender and the interface in the arguments.
#[derive(Clone, Copy, Debug, Default)]
pub struct Senders<'a> {
    /// As `--from` spells it; `None`: the usual senders for each kind of address.
    pub from: Option<&'a str>,
    /// Where its packets come in.
    pub interface: Option<&'a str>,
}

/// Follows a connection to each address, or to the one in the arguments.
///
/// # Errors
/// If no connection to the address in the arguments can be followed.
pub fn of(
    seen: &mut NodeInspection,
    facts: &Facts,
    views: &[ServicePortView],
    (senders, asked): (Senders<'_>, Option<&TargetAddress>),
    findings: &mut Vec<Finding>,
) -> Result<Walks, String> {
    let proxies = seen.running_proxies();
    let mut following = Following {
        facts,
        senders,
        walks: Walks::default(),
        findings,
        routes: Routes::default(),
        endpoints: Endpoints::of(views),
        cluster: None,
        node_ports: None,
        proxies,
        listens: false,
    };
    for view in views {
        let Some(protocol) = Protocol::of_name(view.protocol) else { continue };
        let Some(family) = IpFamily::ALL.into_iter().find(|family| family.name() == view.family) else { continue };
        following.node_ports = NodePortSetting::of(seen, family);
        let Some(rules) = seen.rules.families.iter_mut().find(|rules| rules.family == family) else { continue };
        following.cluster = seen.settings.proxier.local_detector.cluster_network(rules.family);
        following.listens = seen.settings.proxier.proxies_localhost(rules.family);
        let node_ip = rules.node_port_ip();
        let mut paths = Paths::of(rules);
        let pod = local_pod(view, &paths, facts);
        if let Some(asked) = asked.filter(|asked| direct::is_endpoint(view, asked)) {
            following.follow_endpoint(view, (asked.to, asked.protocol), &mut paths)?;
        }
        for address in &view.addresses {
            let Some(to) = destination(address, protocol, node_ip, asked) else { continue };
            // Health check node ports are only followed if named in the arguments.
            if address.kind == AddressKind::HealthCheckNodePort && asked.is_none() {
                continue;
            }
            for from in senders.to(address, pod) {
                following.follow(view, address, &from, to, &mut paths)?;
            }
            if senders.from.is_none() && !to.0.ip().is_loopback() {
                following.findings.extend(bridge::between_pods(facts, view, to, &mut paths)?);
            }
        }
    }
    following.walks.unread = following.endpoints.unread();
    following.walks.assumed.append(&mut following.endpoints.assumed);
    match following.walks.not_followed.first() {
        Some(skipped) if asked.is_some() && following.walks.followed.is_empty() => Err(skipped.why.clone()),
        _ => Ok(following.walks),
    }
}

/// Where to send to for an address of a Service port: for a node port to the node's address. `None` if another
/// destination is named in the arguments.
fn destination(
    address: &Address,
    protocol: Protocol,
    node_ip: Option<IpAddr>,
    asked: Option<&TargetAddress>,
) -> Option<(SocketAddr, Protocol)> {
    let of_health_check = address.kind == AddressKind::HealthCheckNodePort;
    let protocol = if of_health_check { Protocol::Tcp } else { protocol };
    let to = (SocketAddr::new(address.ip.or(node_ip)?, address.port), protocol);
    let Some(asked) = asked else { return Some(to) };
    (asked.is(address) && asked.protocol == protocol).then_some((asked.to, asked.protocol))
}

impl Senders<'_> {
    /// Whether only connections from this node itself are followed.
    pub fn is_host(self) -> bool {
        matches!(self.from, Some(HOST | "node"))
    }

    /// Whose connections are followed to an address.
    fn to(self, address: &Address, pod: Option<IpAddr>) -> Vec<String> {
        let usual: &[&str] = match address.kind {
            AddressKind::ClusterIp => &[HOST],
            AddressKind::HealthCheckNodePort => &["outside"],
            _ if address.ip.is_some_and(|ip| ip.is_loopback()) => &[HOST],
            _ => &["outside", HOST],
        };
        let pod = pod.filter(|_| address.kind != AddressKind::HealthCheckNodePort).map(|ip| ip.to_string());
        match self.from {
            Some(from) => vec![from.to_owned()],
            None => usual.iter().map(|name| (*name).to_owned()).chain(pod).collect(),
        }
    }
}

struct Following<'a> {
    facts: &'a Facts,
    senders: Senders<'a>,
    walks: Walks,
    findings: &'a mut Vec<Finding>,
    routes: Routes,
    endpoints: Endpoints,
    /// The network of all pods of the family, where it is configured.
    cluster: Option<IpNet>,
    /// Where node ports of the family are served, where that is known.
    node_ports: Option<NodePortSetting>,
    /// The processes that are a kube-proxy.
    proxies: Vec<u32>,
    /// Whether the configuration has kube-proxy listen at loopback addresses of the family.
    listens: bool,
}

impl Following<'_> {
    /// Follows one connection and notes what it meets, or why it cannot be followed.
    fn follow(
        &mut self,
        view: &ServicePortView,
        address: &Address,
        from: &str,
        to: (SocketAddr, Protocol),
        paths: &mut Paths<'_>,
    ) -> Result<(), String> {
        // From elsewhere nothing can be sent to the node's loopback addresses.
        if to.0.ip().is_loopback() && self.senders.from.is_none() && from != HOST {
            return Ok(());
        }
        let way = format!("{from} -> {}/{}", to.0, to.1.name().to_lowercase());
        let found = sender(from, to.0).and_then(|from| paths.packet(from, to, self.senders.interface));
        let packet = match found {
            Ok(packet) => packet,
            // That the node has no route is no cause for what fails elsewhere.
            Err(problem) => {
                self.walks.not_followed.push(Unread::new(&way, problem));
                return Ok(());
            }
        };
        let trace = paths.trace(&packet)?;
        let asked_for = self.senders.from.is_some() || from == HOST;
        let mut met = self.met(view, address, &packet, &trace, paths);
        met.extend(self.replies(view, &packet, &trace.branches, paths)?);
        if self.localhost().is_served(&packet) {
            self.walks.replies_unchecked = true;
            met.extend(self.proxied(view, &packet, paths)?);
        }
        if !asked_for && packet.origin != Origin::Host && from != "outside" {
            // Policies may be meant for that pod alone, and no pod was named.
            let refused = [Cause::RefusedByOthers, Cause::ReplyRefused];
            let by_policy = |finding: &Finding| refused.contains(&finding.cause) && finding.of_pod_policy();
            met.iter_mut().filter(|finding| by_policy(finding)).for_each(|finding| finding.certain = false);
        }
        // A pod chosen by diagnose itself may never call its own Service.
        let to_itself = |branch: &&Branch| matches!(branch.outcome.verdict, Verdict::Delivered(to) if to.ip() == packet.source.ip());
        let called = || trace.branches.iter().filter(|branch| asked_for || !to_itself(branch));
        met.extend(called().filter(|_| asked_for).find_map(|branch| hairpin(self.facts, view, &packet, branch)));
        met.extend(called().find_map(|branch| masquerade::skipped(view, &packet, branch, paths.node())));
        // An address that is refused without endpoints, and whose packets leave as they came, is not served either.
        let served_here = paths.node().is_local(to.0.ip());
        let refused = |branch: &Branch| match branch.outcome.verdict {
            Verdict::Dropped | Verdict::Rejected => true,
            // Nothing listens at a node port but the proxy, at loopback addresses.
            Verdict::Untouched if address.kind == AddressKind::NodePort => !self.localhost().is_served(&packet),
            Verdict::Untouched => !served_here,
            Verdict::Delivered(to) => view.endpoints.iter().all(|endpoint| endpoint.address != Some(to)),
            Verdict::Forwarded(..) => false,
        };
        self.walks.fails |= !met.is_empty() || trace.branches.iter().any(refused);
        let assumed = trace.branches.iter().flat_map(|branch| &branch.assumed);
        self.walks.assumed.extend(assumed.map(in_words));
        self.findings.extend(met);
        self.walks.followed.push(way);
        Ok(())
    }

    /// What packets meet on the way to an endpoint that the rules gave them.
    fn beyond_the_rules(
        &mut self,
        view: &ServicePortView,
        packet: &Packet,
        branch: &Branch,
        paths: &Paths<'_>,
    ) -> Vec<Finding> {
        let mut findings = self.endpoints.silent(view, packet, branch, (self.facts, &mut self.routes));
        match remote::unrouted(view, branch, (self.facts, paths.node()), (&mut self.routes, self.cluster)) {
            Some(ByDefault::Suspect(finding)) => findings.push(finding),
            Some(ByDefault::Assumed(assumed)) => _ = self.walks.assumed.insert(assumed),
            None => {}
        }
        findings
    }

    /// A finding that nothing translates packets, with the setting that is the reason, if one is.
    fn explained(&self, finding: Finding, view: &ServicePortView, address: &Address, packet: &Packet) -> Finding {
        let to = packet.destination;
        let is_node_port = address.kind == AddressKind::NodePort && finding.cause == Cause::NotTranslated;
        let setting = self.node_ports.as_ref().filter(|_| is_node_port && !to.ip().is_loopback());
        let excluded = setting.and_then(|setting| setting.excludes(to.ip(), (&view.name, view.family), to.port()));
        excluded.map_or(finding.clone(), |excluded| Finding { certain: finding.certain, ..excluded })
    }

    /// What decides about node ports at loopback addresses.
    fn localhost(&self) -> LocalhostFacts<'_> {
        LocalhostFacts { mode: self.facts.mode, proxies: &self.proxies, is_configured: self.listens }
    }

    /// What connections of the proxy itself meet: to the endpoints of a node port that it serves at loopback addresses.
    fn proxied(
        &mut self,
        view: &ServicePortView,
        packet: &Packet,
        paths: &mut Paths<'_>,
    ) -> Result<Vec<Finding>, String> {
        let mut findings = Vec::new();
        let used = view.endpoints.iter().filter(|endpoint| endpoint.used());
        for to in used.filter_map(|endpoint| endpoint.address) {
            let way = format!("kube-proxy on this node -> {to}/{}", packet.protocol.name().to_lowercase());
            match paths.packet(None, (to, packet.protocol), None) {
                Ok(own) => {
                    let trace = paths.trace(&own)?;
                    let branches = &trace.branches;
                    findings.extend(branches.iter().filter_map(|branch| refusal(view, &own, branch)));
                    findings
                        .extend(branches.iter().filter_map(|branch| self.routes.lost(view, &own, branch, self.facts)));
                    only_the_exact(&mut findings);
                    findings
                        .extend(branches.iter().flat_map(|branch| &branch.doubts).map(|doubt| undecided(&own, doubt)));
                    self.walks.followed.push(way);
                }
                Err(problem) => self.walks.not_followed.push(Unread::new(&way, problem)),
            }
        }
        Ok(findings)
    }

    fn met(
        &mut self,
        view: &ServicePortView,
        address: &Address,
        packet: &Packet,
        trace: &Trace,
        paths: &Paths<'_>,
    ) -> Vec<Finding> {
        let branches = &trace.branches;
        let mode = self.facts.mode;
        let left = |branch: &Branch| leftovers::decided(view, packet, branch, mode);
        let mut findings: Vec<Finding> = branches.iter().find_map(left).into_iter().collect();
        let taken = !findings.is_empty();
        let others = branches.iter().filter(|branch| left(branch).is_none());
        findings.extend(others.filter_map(|branch| refusal(view, packet, branch)));
        if address.verdict == AddressVerdict::Endpoints && !taken {
            findings.extend(branches.iter().find_map(|branch| own_refusal(view, packet, branch)));
        }
        let untranslated = untranslated(view, address, packet, trace, (paths, &self.localhost()));
        findings.extend(untranslated.map(|finding| self.explained(finding, view, address, packet)));
        findings.extend(branches.iter().find_map(|branch| forwarded(view, branch)));
        findings.extend(branches.iter().filter(|_| !taken).find_map(|branch| diverted(view, packet, branch)));
        findings.extend(branches.iter().find_map(|branch| masquerade::foreign_source(view, packet, branch)));
        let node = paths.node();
        findings.extend(branches.iter().find_map(|one| bridge::lost_reply(self.facts, view, packet, one, node)));
        findings.extend(branches.iter().find_map(|one| forwarding::stopped(self.facts, one, &packet.origin)));
        findings.extend(branches.iter().filter_map(|branch| self.routes.lost(view, packet, branch, self.facts)));
        for branch in branches {
            findings.extend(self.beyond_the_rules(view, packet, branch, paths));
        }
        findings.extend(super::node::martian(self.facts, packet, trace, paths));
        only_the_exact(&mut findings);
        let doubts = branches.iter().flat_map(|branch| &branch.doubts);
        findings.extend(doubts.map(|doubt| undecided(packet, doubt)));
        findings
    }
}

/// Where another finding says more exactly why the kernel does not route a packet, that one is enough.
fn only_the_exact(findings: &mut Vec<Finding>) {
    let by_kernel = |finding: &Finding| finding.cause == Cause::NoRoute && finding.what.contains(NOT_ROUTED);
    let exact = [Cause::NoRoute, Cause::LinkDown, Cause::RouteLocalnetOff, Cause::ReversePathFilter];
    if findings.iter().any(|finding| exact.contains(&finding.cause) && !by_kernel(finding)) {
        findings.retain(|finding| !by_kernel(finding));
    }
}

/// A pod on this node that a connection could come from: one of the Service port's endpoints, or any that has a route.
fn local_pod(view: &ServicePortView, paths: &Paths<'_>, facts: &Facts) -> Option<IpAddr> {
    let mut local = view.endpoints.iter().filter(|endpoint| endpoint.state.is_some_and(|state| state.local));
    let endpoint = local.find_map(|endpoint| endpoint.address).map(|address| address.ip());
    let endpoint = endpoint.filter(|ip| !paths.node().is_local(*ip));
    let family = IpFamily::ALL.into_iter().find(|family| family.name() == view.family)?;
    paths.pod(family, &facts.links).or(endpoint)
}

/// Connections that no rule gives an endpoint, on a node with rules of that mode.
fn untranslated(
    view: &ServicePortView,
    address: &Address,
    packet: &Packet,
    trace: &Trace,
    (paths, localhost): (&Paths<'_>, &LocalhostFacts<'_>),
) -> Option<Finding> {
    let untouched = || trace.branches.iter().filter(|branch| branch.outcome.verdict == Verdict::Untouched);
    let lost: f64 = untouched().map(|branch| branch.outcome.probability).sum();
    let to = packet.destination;
    let name = &view.name;
    if lost <= 0.0 {
        return None;
    }
    let open = || listens(to, packet.protocol);
    if address.kind == AddressKind::HealthCheckNodePort {
        return (matches!(open(), Ok(Some(false)))).then(|| {
            Finding::certain(
                Cause::HealthCheckUnserved,
                format!("{to} is the health check node port of {name}, and no process on this node listens there"),
                "see whether kube-proxy runs and what its log says of this port: the load balancer takes this node for dead",
            )
        });
    }
    if address.verdict != AddressVerdict::Endpoints {
        return None;
    }
    let doubted = untouched().any(|branch| !branch.doubts.is_empty());
    if to.ip().is_loopback() {
        return loopback::untranslated(name, packet, localhost);
    }
    // NodeLocal DNS and its like: a process on the node serves the cluster IP itself.
    if paths.node().is_local(to.ip()) && !paths.is_bound_by_ipvs(to.ip()) && address.ip.is_some() {
        return match open() {
            Ok(Some(false)) => Some(Finding::certain(
                Cause::NotTranslated,
                format!(
                    "{to} of {name} is an address of this node, no rule translates it, and no process listens there"
                ),
                "start what served it (NodeLocal DNS, say), or remove the address from its interface: ip addr show",
            )),
            _ => None,
        };
    }
    let branch = untouched().next()?;
    let untracked = branch.steps.iter().find(|step| step.rule.contains("--notrack") || step.rule.contains("NOTRACK"));
    let last = branch.steps.iter().rfind(|step| !step.hook.ends_with("POSTROUTING"));
    let why = match (untracked, last) {
        (Some(_), _) => "a rule turns connection tracking off",
        (None, Some(_)) => "no rule after the last one that matched gives an endpoint",
        (None, None) => "no rule matches",
    };
    let shown = untracked.or(last).map_or_else(
        || "no rule matched the packet".to_owned(),
        |step| format!("the last rule that matched, in {}: {}", step.hook, step.rule),
    );
    let what =
        format!("{name} ({}): {:.0} % of connections {packet} stay untranslated: {why}", view.family, lost * 100.0);
    let next = "see the way with kube-proxy trace, and what differs with kube-proxy dump";
    Some(Finding { certain: !doubted, ..Finding::certain(Cause::NotTranslated, what, next).shown_by(shown) })
}

/// An assumption, and how a packet ends if it is wrong.
fn in_words(assumed: &Assumption) -> String {
    let ends: Vec<String> = assumed.otherwise.iter().map(ToString::to_string).collect();
    let otherwise = if ends.is_empty() { String::new() } else { format!(" (otherwise: {})", ends.join(", ")) };
    format!("{}: {}{otherwise}: {}", assumed.hook, assumed.what, assumed.rule)
}

/// A real server that gets packets as they are.
fn forwarded(view: &ServicePortView, branch: &Branch) -> Option<Finding> {
    let Verdict::Forwarded(to, how) = branch.outcome.verdict else { return None };
    let what = format!(
        "{} ({}): connections go to {to} by {} and not by translation: its pod does not know their address",
        view.name,
        view.family,
        how.name()
    );
    Some(Finding::certain(
        Cause::RulesAltered,
        what,
        "no kube-proxy sets that up: find out who changed the real server (ipvsadm), and delete it there, so that the \
         proxy adds it again",
    ))
}
