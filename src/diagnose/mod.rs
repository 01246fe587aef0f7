//! `kube-proxy diagnose`: why a connection to a Service fails.
//!
//! Each cause comes with the next step in words. Exit status 0: healthy; 1: cause found; 2: unknown; 22: usage error.

mod bridge;
mod cluster_cidr;
mod endpoints;
mod finding;
mod forwarding;
mod hairpin;
mod leftovers;
mod loopback;
mod masquerade;
mod node;
mod node_port;
mod refusal;
mod remote;
mod routes;
mod rules;
mod services;
mod text;
mod walk;

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use netfilter::IpFamily;
use proxier::model::{Destination, NamespacedName, Protocol, ServicePortName};
use proxier_inspect::node::facts::Facts;
use proxier_inspect::node::{FamilyRules, Focus, Unread, nftables};
use proxier_inspect::rules::Rule;
use proxier_inspect::services::{Address, DispatchRule, ServicePortView, dispatch_within};
use serde::Serialize;

use self::finding::{Cause, Finding};
use self::walk::{Senders, Walks};
use crate::dump::service_name;
use crate::inspect::arguments::Sources;
use crate::inspect::obstacles::missing_right;
use crate::inspect::{NodeInspection, SYNC_TIME, inspect_node};
use crate::terminal::{OutputWriter, Terminal, answer_with, json, text_output};
use crate::trace::{HOST, destination, sender};

/// The name and version of the JSON's schema.
const SCHEMA: &str = "kube-proxy.diagnose/v1";

/// The arguments of `diagnose`.
#[derive(Clone, Debug, Args)]
pub struct Arguments {
    /// A Service, or where a connection fails to get to
    #[arg(value_name = "NAMESPACE/NAME|IP:PORT[/PROTOCOL]", value_parser = target)]
    target: Target,
    /// Whose connection fails: an address, "host" (or "node") for this node, or "outside"
    #[arg(long, value_name = "IP|host|outside", value_parser = sender_name)]
    from: Option<String>,
    /// The interface its packets come in on, if not the one that the sender's address is routed to
    #[arg(long, value_name = "NAME")]
    in_interface: Option<String>,
    /// How to show it
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    /// Where objects come from.
    #[command(flatten)]
    sources: Sources,
}

/// How to show it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    #[default]
    Text,
    /// With all doubts, and what shows each of them
    Wide,
    /// JSON; the schema is in src/dump/README.md
    Json,
}

/// The destination address in the arguments.
#[derive(Clone, Copy, Debug)]
pub struct TargetAddress {
    to: SocketAddr,
    protocol: Protocol,
}

impl TargetAddress {
    /// Whether it is that address of a Service. Node ports have no address of their own.
    fn is(&self, address: &Address) -> bool {
        address.port == self.to.port() && address.ip.is_none_or(|ip| ip == self.to.ip())
    }
}

impl fmt::Display for TargetAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.to, self.protocol.name())
    }
}

#[derive(Clone, Debug)]
enum Target {
    Service(NamespacedName),
    Address(SocketAddr, Protocol),
}

fn target(text: &str) -> Result<Target, String> {
    let name = text.split_once(':').map_or(text, |(name, _)| name);
    match destination(text) {
        Ok((address, protocol)) => Ok(Target::Address(address, protocol)),
        Err(_) if text.parse::<std::net::IpAddr>().is_ok() => Err("give the port too, as in 10.96.0.10:80".to_owned()),
        // The name of a Service is no address.
        Err(why) if text.starts_with('[') || name.parse::<std::net::IpAddr>().is_ok() => Err(why),
        Err(_) => service_name(name).map(Target::Service),
    }
}

/// Checks the sender; it is read once more where the family is known.
fn sender_name(text: &str) -> Result<String, String> {
    sender(text, SocketAddr::from(([0; 4], 0)))
        .map(|_| text.to_owned())
        .map_err(|_| "give an address, host or outside".to_owned())
}

/// What was found out.
#[derive(Debug, Serialize)]
struct Diagnosis {
    schema: &'static str,
    target: String,
    status: Status,
    findings: Vec<Finding>,
    /// The connections that were followed through the rules.
    followed: Vec<String>,
    /// Connections that could not be traced, and why.
    not_followed: Vec<Unread>,
    /// What is assumed of rules on their ways.
    assumed: BTreeSet<String>,
    unread: Vec<Unread>,
    /// Whether the packets that come back were followed, of all connections that reach an endpoint.
    replies_checked: bool,
    /// Whether a kube-proxy runs on this node, as far as processes and its page tell.
    #[serde(skip)]
    proxy_found: bool,
    /// The proxy's configuration and where it comes from.
    configuration: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Status {
    Healthy,
    CauseFound,
    CouldNotTell,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> ExitCode {
    answer_with(shown(arguments), Status::CouldNotTell.code())
}

fn shown(arguments: &Arguments) -> Result<(OutputWriter, u8), String> {
    let diagnosis = diagnose(arguments)?;
    let status = diagnosis.status.code();
    let answer = match arguments.output {
        Output::Text => text_output(text::of(&diagnosis, Terminal::of_stdout(), false)),
        Output::Wide => text_output(text::of(&diagnosis, Terminal::of_stdout(), true)),
        Output::Json => json(diagnosis),
    };
    Ok((answer, status))
}

/// What the command prints with `-o json`.
///
/// # Errors
/// Those of the command.
pub fn as_json(arguments: &Arguments) -> Result<serde_json::Value, String> {
    serde_json::to_value(diagnose(arguments)?).map_err(|error| error.to_string())
}

impl Status {
    fn code(self) -> u8 {
        match self {
            Self::Healthy => 0,
            Self::CauseFound => 1,
            Self::CouldNotTell => 2,
        }
    }
}

/// Diagnoses, and does so again if rules are not as they should be while a proxy runs: it may be about to write them.
fn diagnose(arguments: &Arguments) -> Result<Diagnosis, String> {
    let first = diagnose_once(arguments)?;
    let is_altered = |finding: &Finding| finding.certain && finding.cause == Cause::RulesAltered;
    let altered = first.findings.iter().filter(|finding| is_altered(finding));
    let before: BTreeSet<String> = altered.map(|finding| finding.what.clone()).collect();
    if before.is_empty() || !first.proxy_found {
        return Ok(first);
    }
    std::thread::sleep(SYNC_TIME);
    let mut second = diagnose_once(arguments)?;
    // What was different before is a change, too.
    let is_new = |finding: &Finding| is_altered(finding) && !before.contains(&finding.what);
    second.findings.iter_mut().filter(|finding| is_new(finding)).for_each(|finding| finding.certain = false);
    second.settle();
    Ok(second)
}

fn diagnose_once(arguments: &Arguments) -> Result<Diagnosis, String> {
    let (mut service, asked) = match &arguments.target {
        Target::Service(service) => (Some(service.clone()), None),
        Target::Address(to, protocol) => {
            let asked = TargetAddress { to: *to, protocol: *protocol };
            (owner(&asked), Some(asked))
        }
    };
    let mut focus = Focus { service: service.clone(), endpoint: None };
    let mut seen = inspect_node(&arguments.sources, &focus)?;
    if let Some(asked) = asked.as_ref().filter(|_| service.is_none()) {
        service = owner_by_objects(&seen, asked);
        focus.service.clone_from(&service);
    }
    let mut views = views(&mut seen, &focus, asked.as_ref());
    let unknown = views.is_empty();
    let others = if unknown && asked.is_some() { seen.services(&Focus::default()) } else { Vec::new() };
    if let Some(asked) = asked.as_ref().filter(|_| unknown) {
        views = walk::endpoints_at(&others, asked);
    }
    let name = target_name(service.as_ref(), asked.as_ref(), &views);
    let mut findings = rules::of(&seen);
    let obstacles = rules::obstacles(&mut seen, &findings);
    let outdated = [Cause::WatchFails, Cause::NoRules];
    let is_outdated = obstacles.iter().any(|finding| outdated.contains(&finding.cause));
    findings.extend(obstacles);
    if views.is_empty() {
        findings.extend(services::unknown(&seen, (&focus, asked.as_ref()), &name, &others));
    }
    if !unknown {
        findings.extend(views.iter().flat_map(|view| services::of(view, asked.as_ref())));
    }
    services::without_node(&mut findings, &seen);
    findings.extend(cluster_cidr::outside(&seen, &views));
    findings.extend(rules::drift(&mut seen, &focus, &views, is_outdated));
    let facts = Facts::of(&seen.rules);
    seen.unread.extend(node::unread(&facts));
    let senders = Senders { from: arguments.from.as_deref(), interface: arguments.in_interface.as_deref() };
    let mut met = Vec::new();
    let mut walks = walk::of(&mut seen, &facts, &views, (senders, asked.as_ref()), &mut met)?;
    let mut of_node = node::of(&facts, &views, senders.is_host());
    if asked.is_some() && !walks.fails && !walks.followed.is_empty() {
        exonerate(&mut findings);
        // The filter was asked about each of the packets.
        of_node.retain(|finding| finding.cause != Cause::ReversePathFilter);
    }
    add_met(&mut findings, met, of_node);
    let proxy_found = seen.configuration.is_some() || !seen.running_proxies().is_empty();
    let lost = asked.filter(|_| walks.followed.is_empty() && walks.not_followed.is_empty());
    let left_out = lost.as_ref().and_then(|asked| node_port::without_server(&seen, &views, asked));
    let (mut unread, configuration) = (seen.unread, seen.configuration);
    unread.append(&mut walks.unread);
    if let Some(asked) = lost.filter(|_| left_out.is_none()) {
        let why = "neither rules nor objects have such an address of the Service, so no connection was followed";
        unread.push(Unread::new(&format!("the way to {asked}"), why));
    }
    // Connections of the node itself fail where it has no route.
    let counts = |skipped: &&Unread| asked.is_some() || skipped.what.starts_with(HOST);
    let skipped = walks.not_followed.iter().filter(counts);
    unread.extend(skipped.map(|skipped| Unread::new(&format!("the way {}", skipped.what), &*skipped.why)));
    findings.extend(left_out);
    if let Some(why) = missing_right() {
        unread.insert(0, Unread::new("the rules of this node", why));
    }
    Ok(Diagnosis { configuration, proxy_found, ..summed_up(name, findings, walks, unread) })
}

/// What is diagnosed, in words.
fn target_name(service: Option<&NamespacedName>, asked: Option<&TargetAddress>, views: &[ServicePortView]) -> String {
    match (service, asked) {
        (None, Some(asked)) if !views.is_empty() => {
            let names: Vec<&str> = views.iter().map(|view| &*view.name).collect();
            format!("{asked}, an endpoint of {} and no address of a Service", names.join(" and of "))
        }
        (Some(service), Some(asked)) => format!("{asked} of Service {service}"),
        (Some(service), None) => format!("Service {service}"),
        (None, Some(asked)) => asked.to_string(),
        (None, None) => String::new(),
    }
}

/// Adds what packets met on their ways, and the findings about the node that it does not say already.
fn add_met(findings: &mut Vec<Finding>, met: Vec<Finding>, of_node: Vec<Finding>) {
    if met.iter().any(|finding| finding.cause == Cause::DivertedByOthers) {
        // New flows go there too.
        let stale = findings.iter_mut().filter(|finding| finding.cause == Cause::StaleUdpFlow);
        stale.for_each(|finding| finding.certain = false);
    }
    findings.extend(met);
    // With a finding about that pod, one about any pod says nothing new.
    let hairpin = findings.iter().any(|finding| finding.cause == Cause::Hairpin);
    findings.extend(of_node.into_iter().filter(|one| !hairpin || one.cause != Cause::Hairpin));
}

/// The Service ports to diagnose.
fn views(seen: &mut NodeInspection, focus: &Focus, asked: Option<&TargetAddress>) -> Vec<ServicePortView> {
    let mut views = if focus.service.is_some() { seen.services(focus) } else { Vec::new() };
    let Some(asked) = asked else { return views };
    views.retain(|view| IpFamily::of(&asked.to.ip()).name() == view.family);
    let has = |view: &ServicePortView| view.addresses.iter().any(|address| asked.is(address));
    // Where rules have lost the address, all ports of the Service tell more than none.
    if views.iter().any(has) {
        views.retain(has);
    }
    views
}

/// Drops causes in other parts of a Service whose diagnosed address works.
fn exonerate(findings: &mut Vec<Finding>) {
    let of_service = [Cause::NoEndpoints, Cause::EndpointsNotReady, Cause::DrainingOnly, Cause::NoLocalEndpoints];
    findings.retain(|finding| !of_service.contains(&finding.cause));
    let kept = [Cause::StaleUdpFlow, Cause::NoProxy];
    let rest = findings.iter_mut().filter(|finding| !kept.contains(&finding.cause));
    rest.for_each(|finding| finding.certain = false);
}

impl Diagnosis {
    /// Puts the findings in order, and the status that follows from them.
    fn settle(&mut self) {
        self.findings.sort_by(|a, b| (!a.certain, a.cause, &a.what).cmp(&(!b.certain, b.cause, &b.what)));
        self.findings.dedup();
        self.status = match () {
            () if self.findings.iter().any(|finding| finding.certain) => Status::CauseFound,
            // What could not be read may be the cause.
            () if !self.findings.is_empty() || !self.unread.is_empty() => Status::CouldNotTell,
            () => Status::Healthy,
        };
    }
}

fn summed_up(target: String, findings: Vec<Finding>, walks: Walks, unread: Vec<Unread>) -> Diagnosis {
    let Walks { followed, not_followed, assumed, replies_unchecked, .. } = walks;
    let replies_checked = !followed.is_empty() && !replies_unchecked;
    let configuration = None;
    let schema = SCHEMA;
    let mut diagnosis = Diagnosis {
        schema,
        target,
        status: Status::CouldNotTell,
        findings,
        followed,
        not_followed,
        assumed,
        unread,
        replies_checked,
        proxy_found: false,
        configuration,
    };
    diagnosis.settle();
    diagnosis
}

/// The Service that rules send packets to an address to.
fn owner(asked: &TargetAddress) -> Option<NamespacedName> {
    let TargetAddress { to, protocol } = *asked;
    // What cannot be read now is noted when all of it is.
    let rules = FamilyRules::for_dispatch(IpFamily::of(&to.ip()), &mut Vec::new());
    let local = to.ip().is_loopback() || rules.addresses.contains(&to.ip());
    let may_be = |rule: &Rule| rule.leading_destination().is_none_or(|ip| ip == to.ip());
    let entries = dispatch_within(&rules.ruleset, &may_be, &|_, _| true);
    let is_for =
        |entry: &&DispatchRule| entry.is_for(to, protocol, local) || (local && entry.is_health_check_at(to, protocol));
    let found = entries.iter().find(is_for).and_then(DispatchRule::name).cloned();
    found.or_else(|| nftables::owner(to, protocol, local)).map(|name| name.service)
}

fn owner_by_objects(seen: &NodeInspection, asked: &TargetAddress) -> Option<NamespacedName> {
    let TargetAddress { to, protocol } = *asked;
    let family = IpFamily::of(&to.ip());
    let tracker = seen.objects.as_ref()?.get(&family)?;
    let node = Destination::NodePort(to.port());
    let local = seen.rules.of(family).is_some_and(|rules| rules.addresses.contains(&to.ip()));
    let snapshot = tracker.snapshot(family.localhost());
    let checks = |port: &proxier::model::ServicePort| {
        local && protocol == Protocol::Tcp && port.health_check_node_port == to.port()
    };
    let is_for = |name: &ServicePortName, port: &proxier::model::ServicePort| {
        let served = port.destinations().any(|at| at == Destination::Address(to) || (local && at == node));
        (name.protocol == protocol && served) || (port.health_check_node_port != 0 && checks(port))
    };
    let found = snapshot.ports.iter().find(|(name, port)| is_for(name, port));
    found.map(|(name, _)| name.service.clone())
}

/// Whether a Service port has an endpoint that gets traffic.
fn has_used_endpoints(view: &ServicePortView) -> bool {
    view.endpoints.iter().any(proxier_inspect::services::EndpointView::used)
}
