//! `kube-proxy trace`: walks a packet through the kernel's rules without sending it.
//!
//! Prints each rule that matches, each random choice with its probability, and the verdict.

mod data;

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use netfilter::IpFamily;
use proxier::model::Protocol;
use proxier::nftables::TABLE;
use proxier_inspect::node::paths::{CLIENT_PORT, Paths};
use proxier_inspect::node::{FamilyRules, Unread};
use proxier_inspect::services::BY_SOURCE;
use proxier_inspect::walk::{Assumption, Branch, DoubtKind, KnownClient, Packet, Step, Trace, Verdict};

use self::data::{as_json, is_certain};
use crate::inspect::obstacles::missing_right;
use crate::terminal::{OutputWriter, Style, Terminal, answer_with, json, text_output};

/// This node as a sender, as `--from` spells it; `node` is the same.
pub const HOST: &str = "host";

/// Source addresses of `--from outside`: documentation ranges, by family.
pub const OUTSIDE: [&str; 2] = ["198.51.100.7", "2001:db8::7"];

/// What an answer says of the packets that come back.
pub const REPLIES: &str = "Replies are not checked: rules that drop them are not found.";

/// The output format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    #[default]
    Text,
    /// JSON; the schema is in src/dump/README.md
    Json,
}

/// The arguments of `trace`.
#[derive(Clone, Debug, Args)]
pub struct Arguments {
    /// The sender: an address with an optional port, "host" (or "node") for this node, or "outside"
    #[arg(long, value_name = "IP[:PORT]|host|outside")]
    from: String,
    /// The destination: 10.96.0.10:80/tcp
    #[arg(long, value_name = "IP:PORT[/PROTOCOL]", value_parser = destination)]
    to: (SocketAddr, Protocol),
    /// The incoming interface; default: the one that the sender's address is routed to
    #[arg(long, value_name = "NAME")]
    in_interface: Option<String>,
    /// Show every path, not only the most likely one
    #[arg(long)]
    all: bool,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Parses `IP:PORT[/PROTOCOL]`; the protocol defaults to TCP.
pub fn destination(text: &str) -> Result<(SocketAddr, Protocol), String> {
    let (address, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let address =
        address.parse().map_err(|_| format!("{address:?} is not IP:PORT, as in 10.96.0.10:80 or [fd00::1]:80"))?;
    let lower = protocol.to_ascii_lowercase();
    let protocol = Protocol::of_name(&lower).ok_or_else(|| format!("{protocol:?} is none of tcp, udp, sctp"))?;
    Ok((address, protocol))
}

/// Exit status if the outcome depends on something that was not understood or not read.
const UNCERTAIN: u8 = 2;

/// Runs the command. Exit status 0: the outcome is certain; 1: the trace failed; 2: the outcome depends on something that
/// was not understood or not read.
pub fn run(arguments: &Arguments) -> ExitCode {
    let shown = shown(arguments).map_err(|error| match missing_right() {
        Some(why) => format!("{error}; {why}"),
        None => error,
    });
    answer_with(shown, 1)
}

/// The number of attempts to trace through the rules of one moment.
const TRIES: u32 = 3;

fn shown(arguments: &Arguments) -> Result<(OutputWriter, u8), String> {
    let family = IpFamily::of(&arguments.to.0.ip());
    let mut tries = TRIES;
    let (packet, trace, unread) = loop {
        tries -= 1;
        let mut unread = Vec::new();
        let mut rules = FamilyRules::for_walking(family, &mut unread)?;
        let (packet, trace) = traced(arguments, &mut rules)?;
        rules.note_problems(&mut unread);
        match rules.unsteady() {
            Some(_) if tries > 0 => {}
            note => {
                unread.extend(note);
                break (packet, trace, unread);
            }
        }
    };
    for unread in &unread {
        eprintln!("cannot read {}: {}", unread.what, unread.why);
    }
    let status = if trace.is_certain() && unread.is_empty() { 0 } else { UNCERTAIN };
    let words = match arguments.output {
        Output::Text => text_output(text(&packet, &trace, &unread, arguments.all, Terminal::of_stdout())),
        Output::Json => json(as_json(&packet, &trace, &unread)),
    };
    Ok((words, status))
}

fn traced(arguments: &Arguments, rules: &mut FamilyRules) -> Result<(Packet, Trace), String> {
    let mut paths = Paths::of(rules);
    let from = sender(&arguments.from, arguments.to.0)?;
    paths.know_client(known_client(&arguments.from));
    let packet = paths.packet(from, arguments.to, arguments.in_interface.as_deref())?;
    let trace = paths.trace(&packet)?;
    Ok((packet, trace))
}

/// Parses `IP`, `IP:PORT`, `outside` or `host`; `host` is `None`.
///
/// # Errors
/// Any other text.
pub fn sender(from: &str, to: SocketAddr) -> Result<Option<SocketAddr>, String> {
    let text = match from {
        HOST | "node" => return Ok(None),
        "outside" => OUTSIDE[usize::from(to.is_ipv6())],
        text => text,
    };
    let address = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, CLIENT_PORT)).or_else(|_| text.parse());
    address.map(Some).map_err(|_| format!("--from {from:?} is no address, \"host\" or \"outside\""))
}

/// What `--from` says about the client. This node's address is known, its next source port is not.
fn known_client(from: &str) -> KnownClient {
    match from {
        "outside" => KnownClient::Unknown,
        from if from.parse::<SocketAddr>().is_ok() => KnownClient::AddressAndPort,
        _ => KnownClient::Address,
    }
}

/// Renders the trace as text.
#[must_use]
pub fn text(packet: &Packet, trace: &Trace, unread: &[Unread], all: bool, terminal: Terminal) -> String {
    let mut out = format!("{}\n", terminal.styled(Style::Bold, &packet.to_string()));
    let likeliest = trace.branches.iter().max_by(|a, b| a.outcome.probability.total_cmp(&b.outcome.probability));
    let shown: Vec<&Branch> = if all { trace.branches.iter().collect() } else { likeliest.into_iter().collect() };
    for branch in &shown {
        out.push('\n');
        if trace.branches.len() > 1 {
            let _ = writeln!(
                out,
                "{}",
                terminal.styled(Style::Bold, &format!("{:.2} % take this path:", branch.outcome.probability * 100.0))
            );
        }
        steps(branch, terminal, &mut out);
        dormant(trace, terminal, &mut out);
        let bad = matches!(branch.outcome.verdict, Verdict::Rejected | Verdict::Dropped);
        let style = match bad {
            _ if !is_certain(branch, trace, unread) => Style::Yellow,
            true => Style::Red,
            false => Style::Green,
        };
        // The verdict is the last line, with its doubts, also for `tail -n 1`.
        if !bad {
            let _ = writeln!(out, "{}", terminal.styled(Style::Dim, REPLIES));
        }
        let text = verdict(branch) + &among_others(branch, trace) + &hedge(branch, trace, unread);
        let _ = writeln!(out, "{}", terminal.styled(style, &text));
    }
    if trace.branches.len() > shown.len() {
        let _ = writeln!(out, "\nAll outcomes with their probabilities (--all shows every path):");
        for outcome in trace.outcomes() {
            let _ = writeln!(
                out,
                "  {:6.2} %  {}",
                outcome.probability * 100.0,
                end(&outcome.verdict, outcome.masqueraded)
            );
        }
    }
    out
}

/// The share of connections that arrive, where chance decides whether one does; empty if all do or none does.
fn among_others(branch: &Branch, trace: &Trace) -> String {
    let fails = |verdict: &Verdict| matches!(verdict, Verdict::Rejected | Verdict::Dropped);
    let lost: f64 = trace.outcomes().iter().filter(|one| fails(&one.verdict)).map(|one| one.probability).sum();
    if lost <= 0.0 || lost > 0.9999 || branch.outcome.probability > 0.9999 {
        return String::new();
    }
    format!(" This is one way of several: {:.2} % of connections fail.", lost * 100.0)
}

/// Words for what the verdict depends on; empty if it is certain.
fn hedge(branch: &Branch, trace: &Trace, unread: &[Unread]) -> String {
    let mut conditions = Vec::new();
    if let Some(first) = branch.doubts.first() {
        let mut ends: Vec<String> = Vec::new();
        for outcome in branch.doubts.iter().flat_map(|doubt| &doubt.otherwise) {
            let end = end(&outcome.verdict, outcome.masqueraded);
            let odds = if outcome.probability < 0.9999 {
                format!("{end} ({:.1} %)", outcome.probability * 100.0)
            } else {
                end
            };
            if !ends.contains(&odds) {
                ends.push(odds);
            }
        }
        let then = if ends.is_empty() { String::new() } else { format!(" (then: {})", ends.join(", or ")) };
        conditions.push(match branch.doubts.len() {
            1 => format!("{}{then}", first.condition()),
            count => format!("one of {count} rules matches that cannot be decided{then}"),
        });
    }
    if let Some((table, chain)) = trace.missing.first() {
        conditions.push(format!("chain {chain} of table {table} decides otherwise, which could not be read"));
    }
    if let Some(unread) = unread.first() {
        conditions.push(format!("it is decided by what could not be read ({})", unread.what));
    }
    let limits: String = branch.assumed.iter().filter(|assumed| !assumed.otherwise.is_empty()).map(limit).collect();
    if conditions.is_empty() { limits } else { format!("{limits} Uncertain: unless {}.", conditions.join(", or ")) }
}

/// Words for an assumption about a limit that changes the verdict.
fn limit(assumed: &Assumption) -> String {
    let ends: Vec<String> = assumed.otherwise.iter().map(|one| end(&one.verdict, one.masqueraded)).collect();
    format!(" Assumed: {} in {} (otherwise: {}).", assumed.what, assumed.hook, ends.join(", or "))
}

fn steps(branch: &Branch, terminal: Terminal, out: &mut String) {
    let mut hook = "";
    for step in &branch.steps {
        if step.hook != hook {
            hook = &step.hook;
            let _ = writeln!(out, "{}", terminal.styled(Style::Blue, hook));
        }
        let _ = writeln!(out, "  {}", step.rule);
        // Elements that the rule itself shows are not repeated.
        for element in step.elements.iter().filter(|element| !step.rule.contains(element.as_str())) {
            let _ = writeln!(out, "      {}", terminal.styled(Style::Dim, &format!("found: {element}")));
        }
        if let Some(meaning) = meaning(step) {
            let _ = writeln!(out, "      {}", terminal.styled(Style::Dim, &meaning));
        }
    }
    if branch.steps.is_empty() {
        out.push_str("no rule matches\n");
    }
    for doubt in &branch.doubts {
        let text = match doubt.kind {
            DoubtKind::Rule => {
                format!("{}: treated as not matching because it cannot be decided ({}):", doubt.hook, doubt.why)
            }
            DoubtKind::Chain | DoubtKind::Order | DoubtKind::TableOrder => {
                format!("{}: not decided ({}):", doubt.hook, doubt.why)
            }
        };
        let _ = writeln!(out, "{} {text}\n      {}", terminal.styled(Style::Yellow, "?"), doubt.rule);
    }
    if let Some(step) = &branch.silenced {
        let text = format!("{}: drops the error that tells the client:", step.hook);
        let _ = writeln!(out, "{} {text}\n      {}", terminal.styled(Style::Yellow, "!"), step.rule);
    }
    for assumed in &branch.assumed {
        let text = format!("{}: assuming that {}:", assumed.hook, assumed.what);
        let _ = writeln!(
            out,
            "{} {text}\n      {}",
            terminal.styled(Style::Dim, "~"),
            terminal.styled(Style::Dim, &assumed.rule)
        );
    }
}

/// Names the tables that the packet would meet if they were active.
fn dormant(trace: &Trace, terminal: Terminal, out: &mut String) {
    for id in &trace.dormant {
        let text = format!(
            "table {id} is dormant: the kernel runs none of its chains, so the packet does not meet its rules. \
             \"nft add table {id}\" wakes it."
        );
        let _ = writeln!(out, "{} {text}", terminal.styled(Style::Yellow, "!"));
    }
}

/// Explains what a rule does, unless it is obvious.
fn meaning(step: &Step) -> Option<String> {
    if step.handle.is_some() {
        return nftables_meaning(step);
    }
    let target = step.rule.rsplit(" -j ").next().unwrap_or_default();
    let chain = step.rule.split(' ').nth(1).unwrap_or_default();
    let words: Vec<&str> = target.split(' ').collect();
    let does = match words[0] {
        "DNAT" => Some(format!("new destination: {}", words.get(2).copied().unwrap_or_default())),
        "REDIRECT" => Some("new destination: this node".to_owned()),
        "NETMAP" => Some(format!("another address, of network {}", words.get(2).copied().unwrap_or_default())),
        "SNAT" => Some(format!("the source address becomes {}", words.get(2).copied().unwrap_or_default())),
        "NOTRACK" => Some("not tracked: no NAT applies".to_owned()),
        "CT" if words.contains(&"--notrack") => Some("not tracked: no NAT applies".to_owned()),
        "MASQUERADE" => Some("masqueraded: the source address becomes this node's".to_owned()),
        "MARK" if chain == "KUBE-POSTROUTING" => Some("mark cleared".to_owned()),
        // Only this mark is kube-proxy's; others mean what their owners say.
        "MARK" if chain == "KUBE-MARK-MASQ" => {
            Some("marked for masquerading: the source address will become this node's".to_owned())
        }
        "REJECT" => Some("rejected with an error".to_owned()),
        "DROP" => Some("dropped".to_owned()),
        _ => None,
    };
    if step.hook.starts_with("ipvs ") {
        return server_meaning(step);
    }
    let chance = (step.chance < 1.0)
        .then(|| format!("by chance: {:.2} % of the packets that reach this rule", step.chance * 100.0));
    let recent =
        step.rule.contains("--rcheck").then(|| "this client was sent there before (session affinity)".to_owned());
    chance.or(recent).or(does)
}

/// Explains a rule of nftables, which may have several effects.
fn nftables_meaning(step: &Step) -> Option<String> {
    if step.handle == Some(0) {
        return Some("no rule of the chain accepts it: dropped".to_owned());
    }
    let rule = step.rule.split(" comment ").next().unwrap_or_default();
    let chance = (step.chance < 1.0)
        .then(|| format!("by chance: {:.2} % of the packets that reach this rule", step.chance * 100.0));
    let translated = rule.split_once("dnat ").map(|(_, to)| {
        let found = step.elements.last().and_then(|element| element.rsplit_once(" : ")).map(|(_, to)| to);
        let written = to.rsplit_once("to ").map_or(to, |(_, to)| to);
        match found.and_then(|found| found.split_once(" . ")) {
            Some((address, port)) if address.contains(':') => format!("new destination: [{address}]:{port}"),
            Some((address, port)) => format!("new destination: {address}:{port}"),
            None => format!("new destination: {}", found.unwrap_or(written)),
        }
    });
    let words = [
        ("masquerade", "masqueraded: the source address becomes this node's"),
        ("snat ", "the source address is replaced"),
        ("redirect", "new destination: this node"),
        ("update @", "this client is remembered (session affinity)"),
        ("reject", "rejected with an error"),
    ];
    let marks = (step.hook.split(' ').nth(1) == Some(TABLE) && rule.contains("meta mark set meta mark |"))
        .then(|| "marked for masquerading: the source address will become this node's".to_owned());
    let does = words.iter().find(|(word, _)| rule.contains(word)).map(|(_, does)| (*does).to_owned());
    let drops = (rule == "drop" || rule.ends_with(" drop")).then(|| "dropped".to_owned());
    let all: Vec<String> = [chance, translated, does, marks, drops].into_iter().flatten().collect();
    (!all.is_empty()).then(|| all.join("; "))
}

/// Explains a virtual server.
fn server_meaning(step: &Step) -> Option<String> {
    if !step.rule.starts_with("-A ") {
        return (step.chance < 1.0).then(|| format!("{:.2} % of new connections on average", step.chance * 100.0));
    }
    let mut notes = Vec::new();
    if BY_SOURCE.iter().any(|name| step.rule.contains(&format!(" -s {name}"))) {
        notes.push("the client's address selects the real server: probabilities are over all clients");
    }
    if step.rule.contains(" -p ") {
        notes.push("a client keeps its previous real server, which is unknown here");
    }
    (!notes.is_empty()).then(|| notes.join("; "))
}

fn end(verdict: &Verdict, masqueraded: bool) -> String {
    let sender = if masqueraded { ", with this node's source address" } else { "" };
    match verdict {
        Verdict::Delivered(to) => format!("to {to}{sender}"),
        Verdict::Rejected => "rejected".to_owned(),
        Verdict::Dropped => "dropped".to_owned(),
        Verdict::Untouched => format!("to its original destination{sender}"),
        Verdict::Forwarded(to, how) => format!("to {to} by {}, unchanged", how.name()),
    }
}

fn verdict(branch: &Branch) -> String {
    let sender = match branch.foreign_source {
        Some(source) => format!("with source address {source}, which is none of this node's"),
        None if branch.outcome.masqueraded => "with this node's source address".to_owned(),
        None => "with its own source address".to_owned(),
    };
    match &branch.outcome.verdict {
        Verdict::Delivered(to) => format!("Verdict: delivered to {to}, {sender}."),
        Verdict::Rejected => "Verdict: rejected. The client gets an error at once: \"connection refused\", or that of the rule's reject type.".to_owned(),
        Verdict::Dropped => "Verdict: dropped silently. The client waits until it times out.".to_owned(),
        Verdict::Untouched => {
            format!("Verdict: passed on to its original destination, {sender}: no rule changed the destination.")
        }
        Verdict::Forwarded(to, how) => format!(
            "Verdict: forwarded unchanged to {} by {}: that host must own the destination address and answers the client itself. \
             No kube-proxy sets that up; the rules it meets from there on are not followed.",
            to.ip(),
            how.name()
        ),
    }
}
