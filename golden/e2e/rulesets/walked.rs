//! One ruleset: each question traced, sent as real packets, and some diagnosed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;

use golden::case::Mode;
use golden::flavour::Flavour;
use golden::probe::{Entry, Node, Outcome, Probe, Stage};
use golden::rulesets::{Base, Layout, Question};
use kube_proxy::trial::{diagnose, traces};
use netfilter::IpFamily;
use proxier_inspect::walk::{Trace, Verdict};

use super::base;

/// The endpoints of the Services of `golden/rulesets/objects.yaml`.
const ENDPOINTS: [&str; 13] = [
    "192.168.50.9:6443",
    "10.244.1.11:8080",
    "10.244.2.11:8080",
    "10.244.1.12:8080",
    "10.244.2.12:8080",
    "10.244.1.13:8081",
    "10.244.1.14:53",
    "[fd00:10:244:1::b]:8080",
    "[fd00:10:244:2::b]:8080",
    "[fd00:10:244:1::c]:8080",
    "[fd00:10:244:2::c]:8080",
    "[fd00:10:244:1::d]:8081",
    "[fd00:10:244:1::e]:53",
];

/// The outcome of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// At an address, with another source or its own.
    At(SocketAddr, bool),
    Refused,
    Dropped,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(to, masqueraded) => write!(f, "{to}{}", if *masqueraded { " masqueraded" } else { "" }),
            Self::Refused => f.write_str("refused"),
            Self::Dropped => f.write_str("dropped"),
        }
    }
}

/// What was found.
#[derive(Debug, Default)]
pub struct Tally {
    pub questions: usize,
    pub uncertain: usize,
    pub diagnosed: usize,
    pub failures: Vec<String>,
}

impl Tally {
    pub fn add(&mut self, other: Self) {
        self.questions += other.questions;
        self.uncertain += other.uncertain;
        self.diagnosed += other.diagnosed;
        self.failures.extend(other.failures);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { questions, uncertain, diagnosed, failures } = self;
        write!(f, "{questions} questions, {uncertain} uncertain, {diagnosed} diagnosed, {} failures", failures.len())
    }
}

/// What the walk says of a question.
struct Predicted {
    ends: BTreeMap<End, f64>,
    /// Where it may end otherwise.
    otherwise: BTreeSet<End>,
    /// Why it is not certain; empty: it is.
    why: BTreeSet<String>,
}

fn end_of(verdict: Verdict, masqueraded: bool, question: &Question) -> End {
    let masqueraded = masqueraded && question.entry != Entry::Host;
    match verdict {
        Verdict::Delivered(to) | Verdict::Forwarded(to, _) => End::At(to, masqueraded),
        Verdict::Untouched => End::At(question.to, masqueraded),
        Verdict::Rejected => End::Refused,
        Verdict::Dropped => End::Dropped,
    }
}

fn predicted(trace: &Trace, unread: &[String], question: &Question) -> Predicted {
    let (mut ends, mut otherwise, mut why) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
    for branch in &trace.branches {
        let outcome = &branch.outcome;
        *ends.entry(end_of(outcome.verdict, outcome.masqueraded, question)).or_default() += outcome.probability;
        for doubt in &branch.doubts {
            why.insert(format!("{} [{}]", doubt.why, doubt.rule));
            otherwise.extend(doubt.otherwise.iter().map(|one| end_of(one.verdict, one.masqueraded, question)));
        }
    }
    why.extend(trace.missing.iter().map(|(table, chain)| format!("chain {chain} of {table} was not read")));
    why.extend(unread.iter().cloned());
    Predicted { ends, otherwise, why }
}

/// Traces, sends and compares.
pub fn check(layout: &Layout, flavour: Flavour, base: &Base) -> Tally {
    let mut tally = Tally::default();
    let node = match layout.node(base, flavour) {
        Ok(node) => node,
        Err(why) => {
            tally.failures.push(why);
            return tally;
        }
    };
    let mut number = 0;
    for family in IpFamily::ALL {
        let questions = layout.questions(&node, family);
        let asked: Vec<_> = questions.iter().map(words).collect();
        let traced = node.netns().enter(|| traces(family, &asked));
        let (traced, unread) = match traced {
            Ok(read) => read,
            Err(why) => {
                tally.failures.push(format!("{} ({flavour}) {family}: {why}", layout.name));
                continue;
            }
        };
        for (question, trace) in questions.iter().zip(traced) {
            tally.questions += 1;
            let place = place(layout, flavour, base, question);
            let predicted = match &trace {
                Ok(trace) => predicted(trace, &unread, question),
                Err(why) => Predicted { ends: BTreeMap::new(), otherwise: BTreeSet::new(), why: [why.clone()].into() },
            };
            let seen = send(&node, question, layout, predicted.ends.len(), &mut number);
            tally.uncertain += usize::from(!predicted.why.is_empty());
            tally.failures.extend(disagreement(layout, &predicted, &seen).map(|what| {
                let shown = trace.as_ref().map_or_else(Clone::clone, ToString::to_string);
                let shown = if std::env::var_os("SHOW").is_some() { shown } else { String::new() };
                format!("{place}: {what}\n{shown}")
            }));
            if is_diagnosed(question) {
                tally.diagnosed += 1;
                let found = node.netns().enter(|| causes(base, question));
                tally.failures.extend(mistaken(question, &seen, &found).map(|what| format!("{place}: {what}")));
            }
        }
    }
    tally
}

fn place(layout: &Layout, flavour: Flavour, base: &Base, question: &Question) -> String {
    let mode = if base.nft.is_empty() { "iptables" } else { "nftables" };
    let Question { sender, from, to, transport, .. } = question;
    format!("{} ({flavour}, {mode}) {sender} {from} -> {to}/{transport}", layout.name)
}

/// A question in the words of the commands: `--from` and `--to`.
fn words(question: &Question) -> (String, String) {
    let from = if question.entry == Entry::Host { "host".to_owned() } else { question.from.to_string() };
    (from, format!("{}/{}", question.to, question.transport))
}

/// Sends so many packets that each way would have been seen, and returns where they ended.
fn send(node: &Node, question: &Question, layout: &Layout, ways: usize, number: &mut u32) -> BTreeMap<End, usize> {
    let count = if layout.about.remembers { 1 } else { 12 + 20 * ways };
    let probes: Vec<(Entry, Probe)> = (0..count)
        .map(|_| {
            *number += 1;
            let port = u16::try_from(1024 + *number % 60_000).expect("below 65,536");
            let Question { from, to, transport, entry, .. } = *question;
            let from = SocketAddr::new(from, port);
            (entry, Probe { from, to, transport, tag: 0x1000_0000 + *number, stage: Stage::First })
        })
        .collect();
    let mut seen = BTreeMap::new();
    for (outcome, replaced) in node.send_and_compare(&probes) {
        let end = match outcome {
            // The node's own packets keep their address when masqueraded, and get another port where theirs is taken.
            Outcome::Arrived { at, .. } => End::At(at, replaced && question.entry != Entry::Host),
            Outcome::Refused(_) => End::Refused,
            Outcome::Dropped => End::Dropped,
        };
        *seen.entry(end).or_default() += 1;
    }
    seen
}

/// How the reported outcomes differ from those of real packets.
fn disagreement(layout: &Layout, predicted: &Predicted, seen: &BTreeMap<End, usize>) -> Option<String> {
    let mut wrong = Vec::new();
    let certain = predicted.why.is_empty();
    for (end, count) in seen {
        let is_told = predicted.ends.contains_key(end)
            || (!certain && (predicted.otherwise.contains(end) || predicted.ends.is_empty()));
        if !is_told {
            wrong.push(format!("{count} packets: {end}"));
        }
    }
    let count: usize = seen.values().sum();
    for (end, probability) in &predicted.ends {
        #[allow(clippy::cast_precision_loss)] // a few hundred
        let expected = probability * count as f64;
        if certain && count > 1 && expected > 12.0 && !seen.contains_key(end) {
            wrong.push(format!("none of {count} packets: {end}"));
        }
    }
    let allowed = |why: &String| layout.about.uncertain.iter().any(|part| why.contains(part));
    wrong.extend(predicted.why.iter().filter(|why| !allowed(why)).map(|why| format!("uncertain: {why}")));
    let ends: Vec<String> = predicted.ends.iter().map(|(end, odds)| format!("{end} ({odds:.2})")).collect();
    (!wrong.is_empty()).then(|| format!("{}; predicted: {}", wrong.join("; "), ends.join(", ")))
}

/// Which questions are diagnosed too: some of each kind.
fn is_diagnosed(question: &Question) -> bool {
    let to = question.to;
    match question.sender {
        "pod" => matches!(to.port(), 53) || (to.port() == 80 && !to.ip().to_string().starts_with("203")),
        "outside" => matches!(to.port(), 30080 | 30081 | 32081) || to.ip().to_string() == "203.0.113.5",
        "host" => matches!(to.port(), 443) && to.is_ipv4() && !to.ip().to_string().starts_with("198"),
        _ => false,
    }
}

/// The certain causes that `diagnose` finds, and its status.
fn causes(base: &Base, question: &Question) -> Result<(String, Vec<String>), String> {
    let mode = if base.nft.is_empty() { Mode::Iptables } else { Mode::Nftables };
    let (from, to) = words(question);
    let (config, objects) = (base::config(mode), base::objects());
    let found = diagnose(&[
        &to,
        "--from",
        &from,
        "--config",
        &config.to_string_lossy(),
        "--objects",
        &objects.to_string_lossy(),
    ])?;
    let findings = found["findings"].as_array().cloned().unwrap_or_default();
    let certain = findings.iter().filter(|finding| finding["certain"] == true);
    let causes = certain.map(|finding| format!("{}: {}", finding["cause"], finding["what"])).collect();
    Ok((found["status"].as_str().unwrap_or_default().to_owned(), causes))
}

/// What is wrong with a diagnosis, given where packets end.
fn mistaken(
    question: &Question,
    seen: &BTreeMap<End, usize>,
    found: &Result<(String, Vec<String>), String>,
) -> Option<String> {
    let arrives = |end: &End| matches!(end, End::At(at, _) if ENDPOINTS.contains(&at.to_string().as_str()));
    let (status, causes) = match found {
        Ok(found) => found,
        Err(why) => return Some(format!("diagnose: {why}")),
    };
    match (seen.keys().all(arrives), seen.keys().any(arrives)) {
        // No proxy answers at the health check node port here.
        _ if question.to.port() == 32081 => {
            (status == "healthy").then(|| "no process serves health checks, and diagnose finds it healthy".to_owned())
        }
        (true, _) if !causes.is_empty() => Some(format!("packets arrive, and diagnose finds {}", causes.join("; "))),
        (_, false) if status == "healthy" => Some("no packet arrives, and diagnose finds it healthy".to_owned()),
        _ => None,
    }
}
