//! `kube-proxy diagnose`: why a connection to a Service fails.
//!
//! In: a Service or an address. Out: the causes found, each with the next step in words, and an exit code: 0 healthy,
//! 1 a cause was found, 2 it could not be told. Must not know: how anything is read.

mod finding;
mod node;
mod rules;
mod services;
mod walk;

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Args;
use netfilter::IpFamily;
use proxier::model::{NamespacedName, Protocol};
use proxier_inspect::services::{Entry, ServicePortView, dispatch_of};
use serde::Serialize;

use self::finding::{Cause, Finding};
use self::walk::Walks;
use crate::dump::service_name;
use crate::inspect::arguments::Sources;
use crate::inspect::facts::Facts;
use crate::inspect::report::Unread;
use crate::inspect::rules::FamilyRules;
use crate::inspect::{Focus, Look as Seen, look, nftables};
use crate::terminal::{Look, Style, Words, answer_with, json, words, wrapped};
use crate::trace::{Output, destination};

/// The name and version of the JSON's schema.
const SCHEMA: &str = "kube-proxy.diagnose/v1";

/// The arguments of `diagnose`.
#[derive(Clone, Debug, Args)]
pub struct Arguments {
    /// A Service, or where a connection fails to get to
    #[arg(value_name = "NAMESPACE/NAME|IP:PORT[/PROTOCOL]", value_parser = target)]
    target: Target,
    /// Whose connection fails: an address, "host" for this node, or "outside"
    #[arg(long, value_name = "IP|host|outside")]
    from: Option<String>,
    /// How to show it
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    /// Where objects come from.
    #[command(flatten)]
    sources: Sources,
}

#[derive(Clone, Debug)]
enum Target {
    Service(NamespacedName),
    Address(SocketAddr, Protocol),
}

fn target(text: &str) -> Result<Target, String> {
    if let Ok((address, protocol)) = destination(text) {
        return Ok(Target::Address(address, protocol));
    }
    if text.parse::<std::net::IpAddr>().is_ok() {
        return Err("give the port too, as in 10.96.0.10:80".to_owned());
    }
    service_name(text.split_once(':').map_or(text, |(name, _)| name)).map(Target::Service)
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
    /// Those that could not be followed, and why.
    not_followed: Vec<Unread>,
    unread: Vec<Unread>,
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

fn shown(arguments: &Arguments) -> Result<(Words, u8), String> {
    let diagnosis = diagnose(arguments)?;
    let status = diagnosis.status.code();
    let answer = match arguments.output {
        Output::Text => words(text(&diagnosis, Look::of_stdout())),
        Output::Json => json(diagnosis),
    };
    Ok((answer, status))
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

fn diagnose(arguments: &Arguments) -> Result<Diagnosis, String> {
    let (service, address) = match &arguments.target {
        Target::Service(service) => (Some(service.clone()), None),
        Target::Address(address, protocol) => (owner(*address, *protocol), Some((*address, *protocol))),
    };
    let mut focus = Focus { service, endpoint: None };
    let mut seen = look(&arguments.sources, &focus)?;
    if focus.service.is_none() {
        focus.service = address.and_then(|(address, protocol)| owner_by_objects(&seen, address, protocol));
    }
    let name = match (&focus.service, address) {
        (Some(service), Some((address, protocol))) => format!("{address}/{} of Service {service}", protocol.name()),
        (Some(service), None) => format!("Service {service}"),
        (None, Some((address, protocol))) => format!("{address}/{}", protocol.name()),
        (None, None) => String::new(),
    };
    let mut findings = rules::of(&seen);
    let mut views = if focus.service.is_some() { seen.services(&focus) } else { Vec::new() };
    views.retain(|view| address.is_none_or(|(to, _)| IpFamily::of(&to.ip()).name() == view.family));
    if views.is_empty() {
        findings.extend(services::unknown(&seen, address, &name));
    }
    findings.extend(views.iter().flat_map(services::of));
    findings.extend(rules::drift(&mut seen, &focus, &views));
    let facts = Facts::of(&seen);
    seen.unread.extend(node::unread(&facts));
    let walks = walk::of(&mut seen, &facts, &views, (arguments.from.as_deref(), address), &mut findings)?;
    // Told of that pod, it needs not be told of any.
    let hairpin = findings.iter().any(|finding| finding.cause == Cause::Hairpin);
    findings.extend(node::of(&facts, &views).into_iter().filter(|one| !hairpin || one.cause != Cause::Hairpin));
    Ok(summed_up(name, findings, walks, seen.unread))
}

fn summed_up(target: String, mut findings: Vec<Finding>, walks: Walks, unread: Vec<Unread>) -> Diagnosis {
    findings.sort_by(|a, b| (!a.certain, a.cause, &a.what).cmp(&(!b.certain, b.cause, &b.what)));
    findings.dedup();
    let status = match () {
        () if findings.iter().any(|finding| finding.certain) => Status::CauseFound,
        // What could not be read may be the cause.
        () if !findings.is_empty() || !unread.is_empty() => Status::CouldNotTell,
        () => Status::Healthy,
    };
    let Walks { followed, not_followed } = walks;
    Diagnosis { schema: SCHEMA, target, status, findings, followed, not_followed, unread }
}

/// The Service that rules send packets to an address to.
fn owner(address: SocketAddr, protocol: Protocol) -> Option<NamespacedName> {
    let rules = FamilyRules::for_walking(IpFamily::of(&address.ip()), &mut Vec::new()).ok()?;
    let local = address.ip().is_loopback() || rules.addresses.contains(&address.ip());
    let entries = dispatch_of(&rules.ruleset, &|_, _| true);
    let found = entries.iter().find(|entry| entry.is_for(address, protocol, local)).and_then(Entry::name).cloned();
    found.or_else(|| nftables::owner(address, protocol, local)).map(|name| name.service)
}

fn owner_by_objects(seen: &Seen, address: SocketAddr, protocol: Protocol) -> Option<NamespacedName> {
    let family = IpFamily::of(&address.ip());
    let tracker = seen.objects.as_ref()?.get(&family)?;
    let node = proxier::model::Destination::NodePort(address.port());
    let local = seen.rules.of(family).is_some_and(|rules| rules.addresses.contains(&address.ip()));
    let snapshot = tracker.snapshot(family.localhost());
    let mut ports = snapshot.ports.iter().filter(|(name, _)| name.protocol == protocol);
    let found = ports.find(|(_, port)| {
        port.destinations().any(|to| to == proxier::model::Destination::Address(address) || (local && to == node))
    });
    found.map(|(name, _)| name.service.clone())
}

fn text(diagnosis: &Diagnosis, look: Look) -> String {
    let mut out = format!("{}\n", look.styled(Style::Bold, &diagnosis.target));
    for unread in &diagnosis.unread {
        out += &format!("could not read {}: {}\n", unread.what, unread.why);
    }
    for finding in &diagnosis.findings {
        let (word, style) = if finding.certain { ("CAUSE", Style::Red) } else { ("SUSPECT", Style::Yellow) };
        out += &format!("\n{} {}\n", look.styled(style, word), finding.cause.name());
        for (label, text) in [("", &finding.what), ("Next: ", &finding.next)] {
            for line in wrapped(&format!("{label}{text}"), look.width.saturating_sub(2)) {
                out += &format!("  {line}\n");
            }
        }
    }
    out += &followed(diagnosis, look);
    let (style, end) = match diagnosis.status {
        Status::Healthy => {
            (Style::Green, "Nothing is wrong with it on this node, as far as the rules and the kernel tell.")
        }
        Status::CauseFound => return out,
        Status::CouldNotTell if diagnosis.findings.is_empty() => {
            (Style::Yellow, "No cause was found, but not all could be read that may be one.")
        }
        Status::CouldNotTell => (Style::Yellow, "No certain cause was found."),
    };
    out + &look.styled(style, end) + "\n"
}

/// Which connections an answer holds for.
fn followed(diagnosis: &Diagnosis, look: Look) -> String {
    let mut out = String::from("\n");
    let mut paragraph = |text: &str| {
        for line in wrapped(text, look.width) {
            out += &format!("{line}\n");
        }
    };
    if !diagnosis.followed.is_empty() {
        paragraph(&format!("Followed through the rules: {}.", diagnosis.followed.join(", ")));
    }
    for skipped in &diagnosis.not_followed {
        paragraph(&format!("Not followed: {}: {}", skipped.what, skipped.why));
    }
    out
}

/// Whether a Service port has an endpoint that gets traffic.
fn leads_somewhere(view: &ServicePortView) -> bool {
    view.endpoints.iter().any(proxier_inspect::services::EndpointView::used)
}
