//! The walk through one base chain of nftables.
//!
//! In: a table, the chain and a packet on its way. Out: the packet after every possible walk, each with the decision met;
//! what of the table was not read and would have decided. Must not know: which hooks a packet passes.

mod facts;
mod machine;
mod registers;

use netfilter::nft::ruleset::{Chain, Rule, Table, TableId, UnreadPart};
use netfilter::nft::{Expression, Name, Verdict};

use super::chains::{Decision, Place, Traveller};
use super::path::MOST;
use super::{Doubt, Step};
use crate::rules::Target;
use machine::{End, Run};

/// One base chain, where it stands.
#[derive(Clone, Copy)]
pub(super) struct Spot<'a> {
    pub(super) place: &'a Place<'a>,
    pub(super) id: &'a TableId,
    pub(super) table: &'a Table,
    /// Whether the packet has met connection tracking.
    pub(super) tracked: bool,
    /// Whether it is a chain that translates.
    pub(super) nat: bool,
}

/// What a walk came to.
#[derive(Default)]
pub(super) struct Walked {
    pub(super) ends: Vec<(Traveller, Decision)>,
    pub(super) lacks: Vec<UnreadPart>,
}

/// A chain being walked and the rule that comes next in it.
#[derive(Clone, Copy)]
struct Frame<'a> {
    name: &'a Name,
    chain: &'a Chain,
    next: usize,
    /// How many chains led to it, by `jump` or `goto`.
    depth: usize,
}

struct Walk<'a> {
    traveller: Traveller,
    stack: Vec<Frame<'a>>,
}

/// Walks the chain, one walk for each way the dice can fall.
pub(super) fn walk<'a>(
    spot: &Spot<'a>,
    (name, chain): (&'a Name, &'a Chain),
    traveller: Traveller,
) -> Result<Walked, String> {
    let policy = match &chain.base {
        Some(base) if base.drop => Decision::Drop,
        _ => Decision::Accept,
    };
    let mut open = vec![Walk { traveller, stack: vec![Frame { name, chain, next: 0, depth: 0 }] }];
    let mut walked = Walked::default();
    while let Some(mut walk) = open.pop() {
        let Some(frame) = walk.stack.last_mut() else {
            if policy == Decision::Drop {
                let hook = hook(spot, name);
                walk.traveller.steps.push(Step { handle: Some(0), ..Step::of(hook, "policy drop", 1.0) });
            }
            walked.ends.push((walk.traveller, policy));
            continue;
        };
        let Some(rules) = &frame.chain.rules else {
            walked.lacks.push(UnreadPart::Rules(spot.id.clone(), frame.name.clone()));
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
        let (chain, steps) = (frame.name, walk.traveller.steps.len());
        let mut others = Vec::new();
        let runs = machine::run(spot, rule, walk.traveller, &mut walked.lacks);
        spot.place.budget.pay(1, steps.saturating_mul(runs.len().saturating_sub(1)))?;
        for mut run in runs {
            let supposed = suppose(spot, &hook(spot, chain), rule, &mut run);
            for Run { traveller, odds, elements, end } in [run].into_iter().chain(supposed) {
                let mut after = Walk { stack: walk.stack.clone(), traveller };
                match obey(spot, (chain, rule), (odds, elements, end), &mut after)? {
                    Some(decision) => walked.ends.push((after.traveller, decision)),
                    None => others.push(after),
                }
            }
        }
        open.extend(others.into_iter().rev());
        if open.len() + walked.ends.len() > MOST {
            return Err(format!("more than {MOST} ways lead through table {}", spot.id));
        }
    }
    Ok(walked)
}

/// Does what a rule came to; None means the walk goes on.
fn obey<'a>(
    spot: &Spot<'a>,
    (chain, rule): (&Name, &Rule),
    (odds, elements, end): (f64, Vec<String>, End),
    walk: &mut Walk<'a>,
) -> Result<Option<Decision>, String> {
    let hook = || hook(spot, chain);
    if !matches!(end, End::Passed) {
        spot.place.budget.pay(0, 1)?;
    }
    let verdict = match end {
        End::Passed | End::Doubt(..) => return Ok(None),

        End::Matched(verdict) => verdict,
        End::Rejected => {
            step(spot, rule, (hook(), odds, elements), walk);
            return Ok(Some(Decision::Reject));
        }
    };
    step(spot, rule, (hook(), odds, elements), walk);
    match verdict {
        None | Some(Verdict::Continue) => Ok(None),
        Some(Verdict::Accept) => Ok(Some(Decision::Accept)),
        Some(Verdict::Drop) => Ok(Some(Decision::Drop)),
        Some(Verdict::Return) => {
            walk.stack.pop();
            Ok(None)
        }
        Some(Verdict::Jump(to)) => lead(spot, (&to, false), rule, walk),
        Some(Verdict::Goto(to)) => lead(spot, (&to, true), rule, walk),
    }
}

fn hook(spot: &Spot<'_>, chain: &Name) -> String {
    format!("{} {chain} ({})", spot.id, spot.place.hook.to_lowercase())
}

fn step(spot: &Spot<'_>, rule: &Rule, (hook, chance, elements): (String, f64, Vec<String>), walk: &mut Walk<'_>) {
    let text = rule.text(spot.id, spot.table);
    walk.traveller.steps.push(Step { hook, rule: text, chance, handle: Some(rule.handle), elements });
}

fn lead<'a>(
    spot: &Spot<'a>,
    (to, goto): (&Name, bool),
    rule: &Rule,
    walk: &mut Walk<'a>,
) -> Result<Option<Decision>, String> {
    let Some((name, chain)) = spot.table.chains.get_key_value(to) else {
        return Err(format!("table {} changed while it was read: chain {to} is not there", spot.id));
    };
    let depth = walk.stack.last().map_or(0, |frame| frame.depth + 1);
    // Each chain can be on the way once, or the kernel would refuse the loop.
    if depth >= spot.table.chains.len() {
        return Err(format!("chains jump in a circle: {}", rule.text(spot.id, spot.table)));
    }
    if goto {
        walk.stack.pop();
    }
    walk.stack.push(Frame { name, chain, next: 0, depth });
    Ok(None)
}

/// Carries out one rule that stands among those of iptables: the packet after it in every way, how likely, and what
/// is to be done with it, unless the rule does not match.
pub(super) fn one(
    spot: &Spot<'_>,
    hook: &str,
    rule: &Rule,
    traveller: Traveller,
    lacks: &mut Vec<UnreadPart>,
) -> Vec<(Traveller, f64, Option<Target>)> {
    let mut ways = Vec::new();
    for mut run in machine::run(spot, rule, traveller, lacks) {
        let supposed = suppose(spot, hook, rule, &mut run);
        for Run { traveller, odds, end, .. } in [run].into_iter().chain(supposed) {
            let target = match end {
                End::Passed | End::Doubt(..) => None,
                End::Rejected => Some(Target::Reject),
                End::Matched(None | Some(Verdict::Continue)) => Some(Target::Passive("nft".to_owned())),
                End::Matched(Some(Verdict::Accept)) => Some(Target::Accept),
                End::Matched(Some(Verdict::Drop)) => Some(Target::Drop),
                End::Matched(Some(Verdict::Return)) => Some(Target::Return),
                End::Matched(Some(Verdict::Jump(to))) => Some(Target::Jump(to.to_string())),
                End::Matched(Some(Verdict::Goto(to))) => Some(Target::Goto(to.to_string())),
            };
            ways.push((traveller, odds, target));
        }
    }
    ways
}

/// Notes that a rule cannot be decided; returned is the way of the packet as if the rule matched, where all that it
/// would do is its verdict.
fn suppose(spot: &Spot<'_>, hook: &str, rule: &Rule, run: &mut Run) -> Option<Run> {
    let End::Doubt(why, from) = &run.end else { return None };
    let mut deciding = rule.expressions[*from..].iter().filter(|expression| decides(expression));
    let first = deciding.next()?;
    let doubt = Doubt::new(hook.to_owned(), rule.text(spot.id, spot.table), why);
    let end = match (first, deciding.next()) {
        (Expression::Verdict(verdict), None) => End::Matched(Some(verdict.clone())),
        (Expression::Reject { .. } | Expression::RejectWith { .. }, None) => End::Rejected,
        _ => {
            run.traveller.doubt(doubt);
            return None;
        }
    };
    let traveller = run.traveller.fork(doubt, spot.place.forks)?;
    Some(Run { traveller, odds: 1.0, elements: Vec::new(), end })
}

/// Whether it matters that an instruction was not carried out.
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
        // What limits or counts decides only about what comes after it.
        Expression::Unknown(name) => !matches!(&**name, "limit" | "quota" | "connlimit" | "match" | "dynset"),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
