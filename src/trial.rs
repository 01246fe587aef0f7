//! `trace` and `diagnose` as functions that tests call: thousands of processes would take too long. Not a public interface.

use clap::Parser;
use netfilter::IpFamily;
use proxier_inspect::node::paths::Paths;
use proxier_inspect::node::{FamilyRules, Unread};
use proxier_inspect::walk::Trace;

use crate::diagnose;
use crate::trace::{destination, sender};

/// A trace for each question, or why it could not be made.
pub type Traces = Vec<Result<Trace, String>>;

/// The traces of `trace --from FROM --to TO` for each pair of one family, in the calling thread's network namespace, and
/// the state that could not be read; if there is any, no verdict is certain. The rules are read once.
///
/// # Errors
/// As `trace`, while it reads rules.
pub fn traces(family: IpFamily, asked: &[(String, String)]) -> Result<(Traces, Vec<String>), String> {
    let mut unread: Vec<Unread> = Vec::new();
    let mut rules = FamilyRules::for_walking(family, &mut unread)?;
    let mut paths = Paths::of(&mut rules);
    let mut trace = |from: &str, to: &str| {
        let to = destination(to)?;
        let packet = paths.packet(sender(from, to.0)?, to, None)?;
        paths.trace(&packet)
    };
    let traces = asked.iter().map(|(from, to)| trace(from, to)).collect();
    Ok((traces, unread.into_iter().map(|unread| format!("{}: {}", unread.what, unread.why)).collect()))
}

#[derive(Parser)]
struct DiagnoseLine {
    #[command(flatten)]
    arguments: diagnose::Arguments,
}

/// The JSON of `diagnose -o json` with these arguments.
///
/// # Errors
/// As `diagnose`, and usage errors.
pub fn diagnose(words: &[&str]) -> Result<serde_json::Value, String> {
    let line = DiagnoseLine::try_parse_from(["diagnose"].iter().chain(words)).map_err(|error| error.to_string())?;
    diagnose::as_json(&line.arguments)
}
