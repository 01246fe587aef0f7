//! A diagnosis for people: one block for each cause, the sentence that matters first.

use super::finding::Finding;
use super::{Diagnosis, Status};
use crate::terminal::{Style, Terminal, wrapped};
use crate::trace::REPLIES;

/// The most sentences of one cause without `-o wide`.
const SHOWN: usize = 3;

/// The text. `wide`: with all doubts and what shows each finding.
pub fn of(diagnosis: &Diagnosis, terminal: Terminal, wide: bool) -> String {
    let mut out = format!("{}\n", terminal.styled(Style::Bold, &diagnosis.target));
    let found = diagnosis.status == Status::CauseFound;
    if !found {
        out += &unread(diagnosis, terminal);
    }
    let (certain, doubts): (Vec<&Finding>, Vec<&Finding>) = diagnosis.findings.iter().partition(|one| one.certain);
    for block in blocks(&certain) {
        out += &shown(&block, terminal, wide);
    }
    let fold = found && !wide;
    for block in blocks(&doubts).iter().filter(|_| !fold) {
        out += &shown(block, terminal, wide);
    }
    if fold && !doubts.is_empty() {
        let names: Vec<String> = blocks(&doubts).iter().map(|block| counted(block)).collect();
        out += &paragraph(&format!("Doubts: {} (-o wide shows them)", names.join(", ")), terminal);
    }
    if found {
        out += &unread(diagnosis, terminal);
    }
    out += &followed(diagnosis, terminal);
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
    out += &format!("{}\n", terminal.styled(style, end));
    if diagnosis.status != Status::Healthy {
        return out;
    }
    if !diagnosis.proxy_found {
        out += "No running kube-proxy was found on this node: changes since it ran are not in the rules.\n";
    }
    if !diagnosis.replies_checked {
        out += &format!("{REPLIES}\n");
    }
    out
}

/// Findings of one cause after the other; they are sorted by cause.
fn blocks<'a>(findings: &[&'a Finding]) -> Vec<Vec<&'a Finding>> {
    findings.chunk_by(|a, b| a.cause == b.cause).map(<[&Finding]>::to_vec).collect()
}

fn counted(block: &[&Finding]) -> String {
    let name = block[0].cause.name();
    if block.len() == 1 { name.to_owned() } else { format!("{name} ({})", block.len()) }
}

/// The first sentence and its next step, then the others of the same cause.
fn shown(block: &[&Finding], terminal: Terminal, wide: bool) -> String {
    let [first, others @ ..] = block else { return String::new() };
    let (word, style) = if first.certain { ("CAUSE", Style::Red) } else { ("SUSPECT", Style::Yellow) };
    let text = format!("{word} {}: {}", first.cause.name(), first.what);
    let title = wrapped(&text, terminal.width).into_iter().next().unwrap_or_default();
    let mut out = format!("{}{}\n", terminal.styled(style, word), title.strip_prefix(word).unwrap_or_default());
    let mut indented = |text: &str| {
        for line in wrapped(text, terminal.width.saturating_sub(2)) {
            out += &format!("  {line}\n");
        }
    };
    let rest = text.strip_prefix(&*title).unwrap_or(&text).trim_start();
    if !rest.is_empty() {
        indented(rest);
    }
    indented(&format!("Next: {}", first.next));
    if let Some(evidence) = &first.evidence {
        indented(&format!("Seen: {evidence}"));
    }
    let shown = if wide { others.len() } else { others.len().min(SHOWN - 1) };
    for other in &others[..shown] {
        indented(&format!("Also: {}", other.what));
        if let Some(evidence) = other.evidence.as_ref().filter(|_| wide) {
            indented(&format!("Seen: {evidence}"));
        }
    }
    if others.len() > shown {
        indented(&format!("Also: {} more (-o wide shows them)", others.len() - shown));
    }
    out
}

fn unread(diagnosis: &Diagnosis, terminal: Terminal) -> String {
    let notes = diagnosis.unread.iter().map(|unread| format!("could not read {}: {}", unread.what, unread.why));
    notes.map(|note| paragraph(&note, terminal)).collect()
}

fn paragraph(text: &str, terminal: Terminal) -> String {
    wrapped(text, terminal.width).into_iter().map(|line| line + "\n").collect()
}

/// Which connections an answer holds for, and which configuration.
fn followed(diagnosis: &Diagnosis, terminal: Terminal) -> String {
    let mut out = String::from("\n");
    if !diagnosis.followed.is_empty() {
        out += &paragraph(&format!("Followed through the rules: {}.", diagnosis.followed.join(", ")), terminal);
    }
    for skipped in &diagnosis.not_followed {
        out += &paragraph(&format!("Not followed: {}: {}", skipped.what, skipped.why), terminal);
    }
    for assumed in &diagnosis.assumed {
        out += &paragraph(&format!("Assumed: {assumed}"), terminal);
    }
    if let Some(configuration) = &diagnosis.configuration {
        out += &paragraph(configuration, terminal);
    }
    out
}
