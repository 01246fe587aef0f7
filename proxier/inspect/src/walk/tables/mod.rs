//! Walks a packet through one base chain of nf_tables.
//!
//! The result has one packet for each possible walk, with the decision that ended it, and the parts of the table that were
//! not read but decide.

mod facts;
mod machine;
mod registers;

use netfilter::nft::ruleset::{Chain, Rule, Table, TableId, UnreadPart};
use netfilter::nft::{Expression, Name, Verdict};

use super::chains::{Decision, HookContext, TracedPacket};
use super::path::MOST;
use super::{Doubt, Step};
use crate::rules::Target;
use machine::{RuleEnd, RuleRun};

/// A base chain's table and hook.
#[derive(Clone, Copy)]
pub(super) struct TableScope<'a> {
    pub(super) context: &'a HookContext<'a>,
    pub(super) id: &'a TableId,
    pub(super) table: &'a Table,
    /// Whether the packet has passed conntrack.
    pub(super) tracked: bool,
    /// Whether it is a NAT chain.
    pub(super) nat: bool,
}

/// The result of a walk.
#[derive(Default)]
pub(super) struct NftablesWalk {
    pub(super) ends: Vec<(TracedPacket, Decision)>,
    pub(super) lacks: Vec<UnreadPart>,
}

/// A chain being walked and the rule that comes next in it.
#[derive(Clone, Copy)]
struct Frame<'a> {
    name: &'a Name,
    chain: &'a Chain,
    next: usize,
    /// The nesting depth, counting `jump` and `goto`.
    depth: usize,
}

struct Walk<'a> {
    traced: TracedPacket,
    stack: Vec<Frame<'a>>,
}

/// Walks the chain, with one walk for each outcome of random choices.
pub(super) fn walk<'a>(
    scope: &TableScope<'a>,
    (name, chain): (&'a Name, &'a Chain),
    traced: TracedPacket,
) -> Result<NftablesWalk, String> {
    let policy = match &chain.base {
        Some(base) if base.drop => Decision::Drop,
        _ => Decision::Accept,
    };
    let mut open = vec![Walk { traced, stack: vec![Frame { name, chain, next: 0, depth: 0 }] }];
    let mut walked = NftablesWalk::default();
    while let Some(mut walk) = open.pop() {
        let Some(frame) = walk.stack.last_mut() else {
            if policy == Decision::Drop {
                let hook = hook(scope, name);
                walk.traced.steps.push(Step { handle: Some(0), ..Step::of(hook, "policy drop", 1.0) });
            }
            walked.ends.push((walk.traced, policy));
            continue;
        };
        let Some(rules) = &frame.chain.rules else {
            walked.lacks.push(UnreadPart::Rules(scope.id.clone(), frame.name.clone()));
            walk.stack.pop();
            open.push(walk);
            continue;
        };
        let Some(rule) = rules.get(frame.next) else {
            walk.stack.pop();
            open.push(walk);
            continue;
        };
        frame.next += 1;
        let (chain, steps) = (frame.name, walk.traced.steps.len());
        let mut others = Vec::new();
        let runs = machine::run(scope, rule, walk.traced, &mut walked.lacks);
        scope.context.budget.pay(1, steps.saturating_mul(runs.len().saturating_sub(1)))?;
        for mut run in runs {
            let supposed = suppose(scope, &hook(scope, chain), rule, &mut run);
            for RuleRun { traced, odds, elements, end } in [run].into_iter().chain(supposed) {
                let mut after = Walk { stack: walk.stack.clone(), traced };
                match obey(scope, (chain, rule), (odds, elements, end), &mut after)? {
                    Some(decision) => walked.ends.push((after.traced, decision)),
                    None => others.push(after),
                }
            }
        }
        open.extend(others.into_iter().rev());
        if open.len() + walked.ends.len() > MOST {
            return Err(format!("more than {MOST} ways lead through table {}", scope.id));
        }
    }
    Ok(walked)
}

/// Applies a rule's result; `None`: the walk continues.
fn obey<'a>(
    scope: &TableScope<'a>,
    (chain, rule): (&Name, &Rule),
    (odds, elements, end): (f64, Vec<String>, RuleEnd),
    walk: &mut Walk<'a>,
) -> Result<Option<Decision>, String> {
    let hook = || hook(scope, chain);
    if !matches!(end, RuleEnd::Passed) {
        scope.context.budget.pay(0, 1)?;
    }
    let verdict = match end {
        RuleEnd::Passed | RuleEnd::Doubt(..) => return Ok(None),

        RuleEnd::Matched(verdict) => verdict,
        RuleEnd::Rejected => {
            step(scope, rule, (hook(), odds, elements), walk);
            return Ok(Some(Decision::Reject));
        }
    };
    step(scope, rule, (hook(), odds, elements), walk);
    match verdict {
        None | Some(Verdict::Continue) => Ok(None),
        Some(Verdict::Accept) => Ok(Some(Decision::Accept)),
        Some(Verdict::Drop) => Ok(Some(Decision::Drop)),
        Some(Verdict::Return) => {
            walk.stack.pop();
            Ok(None)
        }
        Some(Verdict::Jump(to)) => lead(scope, (&to, false), rule, walk),
        Some(Verdict::Goto(to)) => lead(scope, (&to, true), rule, walk),
    }
}

fn hook(scope: &TableScope<'_>, chain: &Name) -> String {
    format!("{} {chain} ({})", scope.id, scope.context.hook.to_lowercase())
}

fn step(
    scope: &TableScope<'_>,
    rule: &Rule,
    (hook, chance, elements): (String, f64, Vec<String>),
    walk: &mut Walk<'_>,
) {
    let text = rule.text(scope.id, scope.table);
    walk.traced.steps.push(Step { hook, rule: text, chance, handle: Some(rule.handle), elements });
}

fn lead<'a>(
    scope: &TableScope<'a>,
    (to, goto): (&Name, bool),
    rule: &Rule,
    walk: &mut Walk<'a>,
) -> Result<Option<Decision>, String> {
    let Some((name, chain)) = scope.table.chains.get_key_value(to) else {
        return Err(format!("table {} changed while it was read: chain {to} is not there", scope.id));
    };
    let depth = walk.stack.last().map_or(0, |frame| frame.depth + 1);
    // A chain can be open only once at a time: the kernel refuses loops.
    if depth >= scope.table.chains.len() {
        return Err(format!("chains jump in a circle: {}", rule.text(scope.id, scope.table)));
    }
    if goto {
        walk.stack.pop();
    }
    walk.stack.push(Frame { name, chain, next: 0, depth });
    Ok(None)
}

/// Executes one nf_tables rule in an iptables chain. Returns each possible packet after it with its probability and its
/// target; `None`: the rule does not match.
pub(super) fn execute_rule(
    scope: &TableScope<'_>,
    hook: &str,
    rule: &Rule,
    traced: TracedPacket,
    lacks: &mut Vec<UnreadPart>,
) -> Vec<(TracedPacket, f64, Option<Target>)> {
    let mut ways = Vec::new();
    for mut run in machine::run(scope, rule, traced, lacks) {
        let supposed = suppose(scope, hook, rule, &mut run);
        for RuleRun { traced, odds, end, .. } in [run].into_iter().chain(supposed) {
            let target = match end {
                RuleEnd::Passed | RuleEnd::Doubt(..) => None,
                RuleEnd::Rejected => Some(Target::Reject),
                RuleEnd::Matched(None | Some(Verdict::Continue)) => Some(Target::Passive("nft".to_owned())),
                RuleEnd::Matched(Some(Verdict::Accept)) => Some(Target::Accept),
                RuleEnd::Matched(Some(Verdict::Drop)) => Some(Target::Drop),
                RuleEnd::Matched(Some(Verdict::Return)) => Some(Target::Return),
                RuleEnd::Matched(Some(Verdict::Jump(to))) => Some(Target::Jump(to.to_string())),
                RuleEnd::Matched(Some(Verdict::Goto(to))) => Some(Target::Goto(to.to_string())),
            };
            ways.push((traced, odds, target));
        }
    }
    ways
}

/// Records an undecidable rule. Returns the run as if the rule matched, if its verdict is all that it would do.
fn suppose(scope: &TableScope<'_>, hook: &str, rule: &Rule, run: &mut RuleRun) -> Option<RuleRun> {
    let RuleEnd::Doubt(why, from) = &run.end else { return None };
    let mut deciding = rule.expressions[*from..].iter().filter(|expression| decides(expression));
    let first = deciding.next()?;
    let doubt = Doubt::new(hook.to_owned(), rule.text(scope.id, scope.table), why);
    let end = match (first, deciding.next()) {
        (Expression::Verdict(verdict), None) => RuleEnd::Matched(Some(verdict.clone())),
        (Expression::Reject { .. } | Expression::RejectWith { .. }, None) => RuleEnd::Rejected,
        _ => {
            run.traced.doubt(doubt);
            return None;
        }
    };
    let traced = run.traced.fork(doubt, scope.context.forks)?;
    Some(RuleRun { traced, odds: 1.0, elements: Vec::new(), end })
}

/// Whether skipping an expression may change the result.
fn decides(expression: &Expression) -> bool {
    match expression {
        Expression::Verdict(_)
        | Expression::Dnat { .. }
        | Expression::Translate { .. }
        | Expression::Masquerade { .. }
        | Expression::Reject { .. }
        | Expression::RejectWith { .. }
        | Expression::SetMark { .. }
        | Expression::SetConnectionMark { .. }
        | Expression::Dynset { .. }
        | Expression::NoTrack => true,
        Expression::Lookup { verdict, .. } => *verdict,
        // These only affect the expressions after them, or a TCP option, as `tcp option maxseg size set rt mtu` does.
        Expression::Unknown(name) => {
            !matches!(&**name, "limit" | "quota" | "connlimit" | "match" | "dynset" | "rt" | "exthdr")
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests;
