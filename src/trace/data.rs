//! A trace as JSON.

use std::net::{IpAddr, SocketAddr};

use proxier_inspect::node::Unread;
use proxier_inspect::walk::{Assumption, Branch, Doubt, Origin, Outcome, Packet, Step, Trace, Verdict};
use serde::Serialize;
use serde_json::json;

#[derive(Serialize)]
struct BranchData<'a> {
    probability: f64,
    verdict: String,
    to: Option<SocketAddr>,
    masqueraded: bool,
    foreign_source: Option<IpAddr>,
    certain: bool,
    steps: Vec<serde_json::Value>,
    silenced_by: Option<serde_json::Value>,
    doubts: Vec<serde_json::Value>,
    harmless_doubts: Vec<serde_json::Value>,
    assumed: Vec<serde_json::Value>,
    remembered: Vec<&'a String>,
}

/// Whether the outcome of a path is the kernel's, given its assumptions.
#[must_use]
pub fn is_certain(branch: &Branch, trace: &Trace, unread: &[Unread]) -> bool {
    branch.doubts.is_empty() && trace.missing.is_empty() && unread.is_empty()
}

/// The trace as JSON.
#[must_use]
pub fn as_json(packet: &Packet, trace: &Trace, unread: &[Unread]) -> serde_json::Value {
    let data = |branch| BranchData { certain: is_certain(branch, trace, unread), ..branch_data(branch) };
    let branches: Vec<BranchData<'_>> = trace.branches.iter().map(data).collect();
    let (from, interface) = match &packet.origin {
        Origin::Host => ("host", None),
        Origin::Interface(name) => ("interface", Some(name)),
    };
    json!({
        "schema": "kube-proxy.trace/v1",
        "packet": {
            "protocol": packet.protocol.name(), "source": packet.source, "destination": packet.destination,
            "origin": from, "interface": interface,
        },
        "certain": trace.is_certain() && unread.is_empty(),
        "replies_checked": false,
        "branches": branches,
        "unread": unread,
        "dormant_tables": trace.dormant.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "missing_chains": trace.missing.iter().map(|(table, chain)| format!("{table} {chain}")).collect::<Vec<_>>(),
    })
}

fn step_data(step: &Step) -> serde_json::Value {
    let Step { hook, rule, chance, handle, elements } = step;
    json!({"hook": hook, "rule": rule, "chance": chance, "handle": handle, "elements": elements})
}

fn verdict_data(verdict: &Verdict) -> (&'static str, Option<SocketAddr>) {
    match *verdict {
        Verdict::Delivered(to) => ("delivered", Some(to)),
        Verdict::Rejected => ("rejected", None),
        Verdict::Dropped => ("dropped", None),
        Verdict::Untouched => ("untouched", None),
        Verdict::Forwarded(to, _) => ("forwarded", Some(to)),
    }
}

fn doubt_data(doubt: &Doubt) -> serde_json::Value {
    let Doubt { hook, rule, why, otherwise, .. } = doubt;
    json!({"hook": hook, "rule": rule, "why": why, "otherwise": otherwise.iter().map(end_data).collect::<Vec<_>>()})
}

fn end_data(outcome: &Outcome) -> serde_json::Value {
    let (verdict, to) = verdict_data(&outcome.verdict);
    let Outcome { masqueraded, probability, .. } = outcome;
    json!({"verdict": verdict, "to": to, "masqueraded": masqueraded, "probability": probability})
}

fn branch_data(branch: &Branch) -> BranchData<'_> {
    let (verdict, to) = verdict_data(&branch.outcome.verdict);
    let assumed = |one: &Assumption| {
        let otherwise: Vec<_> = one.otherwise.iter().map(end_data).collect();
        json!({"hook": one.hook, "rule": one.rule, "what": one.what, "otherwise": otherwise})
    };
    BranchData {
        probability: branch.outcome.probability,
        verdict: verdict.to_owned(),
        to,
        masqueraded: branch.outcome.masqueraded,
        foreign_source: branch.foreign_source,
        certain: branch.doubts.is_empty(),
        steps: branch.steps.iter().map(step_data).collect(),
        silenced_by: branch.silenced.as_ref().map(step_data),
        doubts: branch.doubts.iter().map(doubt_data).collect(),
        harmless_doubts: branch.harmless.iter().map(doubt_data).collect(),
        assumed: branch.assumed.iter().map(assumed).collect(),
        remembered: branch.remembered.iter().collect(),
    }
}
