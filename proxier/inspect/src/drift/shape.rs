//! Shapes of dispatch paths: which destinations the rules treat alike.
//!
//! Packets to destinations with the same shape meet the same rules, provided that the endpoints are as expected.

use netfilter::nft::ruleset::{Rule, Table};
use netfilter::nft::{Expression, Load, Verdict};

use crate::services::nftables::dispatch::DispatchSummary;

/// The rules of the path without names, numbers and addresses of one Service port; repetitions are merged.
#[must_use]
pub fn shape(table: &Table, summary: &DispatchSummary<'_>) -> Vec<String> {
    let mut shape: Vec<String> = Vec::new();
    for name in &summary.chains {
        shape.push(kind(name).to_owned());
        let rules = table.chains.get(name).into_iter().flat_map(|chain| chain.rules.iter().flatten());
        shape.extend(rules.map(of_rule));
        shape.dedup();
    }
    // Chains for each endpoint come one after the other.
    let mut seen = std::collections::HashSet::new();
    shape.retain(|line| seen.insert(line.clone()));
    shape
}

fn of_rule(rule: &Rule) -> String {
    rule.expressions.iter().map(of_expression).collect::<Vec<_>>().join(" ")
}

fn of_expression(expression: &Expression) -> String {
    match expression {
        Expression::Lookup { set, key, to, verdict, not } => {
            format!("lookup {} {key:?} {to:?} {verdict} {not}", kind(set))
        }
        Expression::Dynset { set, operation, key, .. } => format!("dynset {} {operation:?} {key:?}", kind(set)),
        Expression::Verdict(Verdict::Jump(chain)) => format!("jump {}", kind(chain)),
        Expression::Verdict(Verdict::Goto(chain)) => format!("goto {}", kind(chain)),
        Expression::Immediate { to, .. } => format!("immediate {to:?}"),
        Expression::Load { from: Load::Random { offset, .. }, to, .. } => format!("random {offset} {to:?}"),
        other => format!("{other:?}"),
    }
}

/// A name without its hash and Service port's name, or without its number.
fn kind(name: &str) -> &str {
    if name.contains('/') || name.starts_with("__") {
        return name.split('-').next().map_or(name, |kind| kind.trim_end_matches(|c: char| c.is_ascii_digit()));
    }
    name.trim_end_matches(|c: char| c.is_ascii_digit())
}
