//! `kube-proxy preflight`: what will behave otherwise on this node in nftables mode, and what to set before the move.
//!
//! It reads the rules and the configuration of the proxy that runs, ours or upstream's, in iptables or IPVS mode. Exit
//! status 0: nothing differs; 1: something does; 2: something could not be read, whatever else differs; 22: usage error.

mod checks;
mod forward;
mod node;
#[cfg(test)]
mod tests;

use std::fmt::Write;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use proxier_inspect::node::{Focus, Unread};
use serde::Serialize;

use self::checks::{Difference, Severity, check};
use self::node::NodeState;
use crate::inspect::arguments::Sources;
use crate::inspect::{in_nftables_mode, inspect_node};
use crate::terminal::{OutputWriter, answer_with, json, text_output, wrapped};

/// The name and version of the JSON's schema.
const SCHEMA: &str = "kube-proxy.preflight/v1";
/// The width of the text.
const WIDTH: usize = 100;
/// The most Services that the text names for a difference; JSON has all.
const MAX_SERVICES: usize = 10;

/// The arguments of `preflight`.
#[derive(Clone, Debug, Args)]
pub struct Arguments {
    /// The mode to move to
    #[arg(value_enum, default_value_t)]
    to: TargetMode,
    /// How to show it
    #[arg(short, long, value_enum, default_value_t)]
    output: PreflightOutput,
    /// Where objects come from.
    #[command(flatten)]
    sources: Sources,
}

/// The mode to move to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum TargetMode {
    /// nftables mode, the default from Kubernetes 1.40 on
    #[default]
    Nftables,
}

/// How to show it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum PreflightOutput {
    /// For people
    #[default]
    Text,
    /// JSON
    Json,
}

/// What the command prints.
#[derive(Debug, Serialize)]
struct PreflightReport {
    schema: &'static str,
    node: String,
    from: String,
    to: &'static str,
    differences: Vec<Difference>,
    unread: Vec<Unread>,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> ExitCode {
    answer_with(report(arguments), 2)
}

fn report(arguments: &Arguments) -> Result<(OutputWriter, u8), String> {
    let TargetMode::Nftables = arguments.to;
    let mut inspection = inspect_node(&arguments.sources, &Focus::default())?;
    let state = NodeState::of(&mut inspection, in_nftables_mode(&arguments.sources));
    if inspection.objects.is_none() {
        let why = "without them no Service can be named: give --kubeconfig, --config or --objects";
        if !inspection.unread.iter().any(|unread| unread.what == "objects") {
            inspection.unread.push(Unread::new("objects", why));
        }
    }
    let report = PreflightReport {
        schema: SCHEMA,
        node: inspection.settings.proxier.node_name.clone(),
        from: state.mode.to_string(),
        to: "nftables",
        differences: check(&state),
        unread: inspection.unread,
    };
    let status = report.status();
    let writer = match arguments.output {
        PreflightOutput::Text => text_output(report.text()),
        PreflightOutput::Json => json(report),
    };
    Ok((writer, status))
}

impl PreflightReport {
    fn status(&self) -> u8 {
        match () {
            // What could not be read may differ too.
            () if !self.unread.is_empty() => 2,
            () if self.differences.iter().any(|found| found.severity != Severity::Note) => 1,
            () => 0,
        }
    }

    fn text(&self) -> String {
        let mut text = format!("Node {}: from {} mode to {} mode\n", self.node, self.from, self.to);
        for Difference { id, severity, what, set, services } in &self.differences {
            put(&mut text, "", &format!("{} {id}: {what}", severity.word()));
            if let Some(set) = set {
                put(&mut text, "  ", &format!("Set: {set}"));
            }
            let more = services.len().saturating_sub(MAX_SERVICES);
            let shown = services[..services.len() - more].join(", ");
            if !shown.is_empty() {
                let more = if more > 0 { format!(" and {more} more") } else { String::new() };
                put(&mut text, "  ", &format!("Services: {shown}{more}"));
            }
        }
        for Unread { what, why } in &self.unread {
            put(&mut text, "", &format!("UNREAD {what}: {why}"));
        }
        text += match self.status() {
            0 if self.differences.is_empty() => "Nothing will behave otherwise.\n",
            0 => "Nothing needs to be set.\n",
            _ => "",
        };
        text
    }
}

/// Adds a paragraph, with two more blanks from its second line on.
fn put(text: &mut String, indent: &str, paragraph: &str) {
    for (at, line) in wrapped(paragraph, WIDTH - indent.len() - 2).into_iter().enumerate() {
        let more = if at > 0 { "  " } else { "" };
        let _ = writeln!(text, "{indent}{more}{line}");
    }
}
