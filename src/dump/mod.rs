//! `kube-proxy dump`: reports what this node does with Services.
//!
//! Prints the report to standard output. Parts that could not be read are listed, and the rest is printed.

mod dot;
mod graph;
mod html;
mod steady;
mod svg;
mod text;

use std::net::IpAddr;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use clap::{Args, ValueEnum};
use proxier::model::NamespacedName;
use proxier::track::CopyRequest;
use proxier_inspect::node::{Focus, Unread};

use crate::config::ValidatedConfig;
use crate::http::ReportError;
use crate::inspect::arguments::Sources;
use crate::inspect::inspect_with;
use crate::inspect::model::{Model, NoModel};
use crate::inspect::report::Report;
use crate::terminal::{OutputWriter, Terminal, answer, json, text_output};

pub use text::text;

/// How to show it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Tables for people
    #[default]
    Text,
    /// More of them: chains, hooks, interfaces
    Wide,
    /// JSON; the schema is in src/dump/README.md
    Json,
    /// The same in YAML
    Yaml,
    /// The way from address to endpoint of one Service, for graphviz
    Dot,
    /// The same, drawn
    Svg,
    /// A page for people in one file: picture, rules, drift, flows, traces
    Html,
}

/// The arguments of `dump`.
#[derive(Clone, Debug, Args)]
pub struct Arguments {
    /// Only this Service
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = service_name)]
    pub service: Option<NamespacedName>,
    /// Only Services with this endpoint
    #[arg(long, value_name = "IP")]
    pub endpoint: Option<IpAddr>,
    /// How to show it
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
    /// Where objects come from.
    #[command(flatten)]
    pub sources: Sources,
}

/// Reads `namespace/name`, or a name in the namespace `default`.
pub fn service_name(text: &str) -> Result<NamespacedName, String> {
    let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
    if namespace.is_empty() || name.is_empty() || name.contains([':', '/']) {
        return Err("give it as namespace/name".to_owned());
    }
    Ok(NamespacedName::new(namespace, name))
}

/// Runs the command. Status 1: it could not be done, or there is no such Service.
pub fn run(arguments: &Arguments) -> ExitCode {
    answer(show(arguments))
}

fn show(arguments: &Arguments) -> Result<OutputWriter, String> {
    let focus = Focus { service: arguments.service.clone(), endpoint: arguments.endpoint };
    let (mut seen, report) = steady::read(&arguments.sources, &focus)?;
    for unread in &report.unread {
        eprintln!("cannot read {}: {}", unread.what, unread.why);
    }
    if report.services.is_empty()
        && let Some(wanted) = wanted(&focus)
    {
        return Err(nothing_found(&wanted, &report));
    }
    if report.facts.mode.is_none()
        && report.services.is_empty()
        && let Some(unread) = report.unread.iter().find(|unread| unread.is_of_rules())
    {
        return Err(format!("there may be Services: could not read {}: {}", unread.what, unread.why));
    }
    let cannot = |error: &dyn std::fmt::Display| format!("cannot print the report: {error}");
    let shown = match arguments.output {
        Output::Json => return Ok(json(report)),
        Output::Text => Ok(text(&report, Terminal::of_stdout(), false)),
        Output::Wide => Ok(text(&report, Terminal::of_stdout(), true)),
        Output::Yaml => serde_saphyr::to_string(&report).map_err(|error| cannot(&error)),
        Output::Dot => graph::of(&report).map(|graph| dot::draw(&graph)),
        Output::Svg => graph::of(&report).map(|graph| svg::draw(&graph)),
        Output::Html => Ok(html::page(&mut seen, &report, &focus)),
    };
    shown.map(text_output)
}

/// More Service ports than these are not shown on one page: it is made by the proxy itself, and would take
/// hundreds of megabytes.
const MOST_ON_A_PAGE: usize = 2000;

/// The report as a page: of one Service or of all, as JSON or as text. Rules are compared with what the proxy knows.
/// `syncs`: how many syncs began so far.
///
/// # Errors
/// If there is no such Service, or there are too many; or the proxy cannot tell now.
pub fn page(
    settings: &ValidatedConfig,
    model: &Model,
    syncs: &dyn Fn() -> usize,
    (service, json): (Option<&str>, bool),
) -> Result<String, ReportError> {
    let service = service.map(service_name).transpose().map_err(ReportError::BadRequest)?;
    let before = syncs();
    // Whether all are too many has to be known before their rules are read.
    let whole =
        service.is_none().then(|| model.copy(&CopyRequest { only: None, max_ports: MOST_ON_A_PAGE })).transpose();
    let whole = whole.map_err(|error| match error {
        NoModel::TooMany(_) => ReportError::BadRequest(error.to_string()),
        _ => ReportError::Unavailable(error.to_string()),
    })?;
    let whole = Mutex::new(whole);
    let load = |only: Option<&NamespacedName>| {
        let copied = whole.lock().unwrap_or_else(PoisonError::into_inner).take();
        let max_ports = if only.is_none() { MOST_ON_A_PAGE } else { usize::MAX };
        let extent = CopyRequest { only: only.cloned(), max_ports };
        copied.map_or_else(|| model.copy(&extent), Ok).map_err(|error| error.to_string())
    };
    let focus = Focus { service, endpoint: None };
    let mut report = Report::of(&mut inspect_with(settings.clone(), Some(&load), &focus), &focus);
    if syncs() != before {
        report
            .unread
            .push(Unread::new("the rules at one moment", "a sync was at work: differences may be those of then"));
    }
    if let Some(wanted) = wanted(&focus).filter(|_| report.services.is_empty()) {
        return Err(ReportError::BadRequest(nothing_found(&wanted, &report)));
    }
    if json {
        return serde_json::to_string(&report).map_err(|error| ReportError::Unavailable(error.to_string()));
    }
    Ok(text(&report, Terminal::plain(), false))
}

fn wanted(focus: &Focus) -> Option<String> {
    let service = focus.service.as_ref().map(|service| format!("Service {service}"));
    service.or_else(|| focus.endpoint.map(|ip| format!("Service with the endpoint {ip}")))
}

fn nothing_found(wanted: &str, report: &Report) -> String {
    let objects = if report.differences.is_some() { " and no object" } else { "" };
    match report.facts.mode {
        Some(_) => format!("no rule{objects} tells of a {wanted}; kube-proxy dump without it lists what there is"),
        None => match report.unread.iter().find(|unread| unread.is_of_rules()) {
            Some(unread) => format!("no {wanted} was found, and could not read {}: {}", unread.what, unread.why),
            None => {
                format!("no rule{objects} tells of a {wanted}: there are no rules of a kube-proxy at all on this node")
            }
        },
    }
}
