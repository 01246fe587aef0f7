//! The walks through one hook's chain: each random choice, doubt or assumption opens another.

use super::{HookContext, IptablesWalk, KernelTable, Next, Walk, assume, carry_out, doubt, hook, leave, obey};
use crate::rules::{Rule, Table, Target};
use crate::walk::matching::{self, MatchResult};
use crate::walk::path::MOST;
use crate::walk::tables::{self, TableScope};
use crate::walk::{Doubt, Step};

/// Why a walk is not followed any more.
pub(super) enum WalkEnd<'a> {
    /// The base chain ended.
    Chain,
    /// A rule ended it.
    Rule,
    /// A rule is next that only the kernel's expressions decide.
    Kernel(&'a Rule),
}

/// The walks through a hook's chain that are not at their end.
pub(super) struct OpenWalks<'a, 'c> {
    pub chains: &'a Table,
    pub context: &'c HookContext<'c>,
    pub kernel: KernelTable<'c>,
    pub open: Vec<Walk<'a>>,
    pub walked: IptablesWalk,
}

impl<'a> OpenWalks<'a, '_> {
    /// Follows one walk from rule to rule. Others that rules open come later.
    pub fn follow(&mut self, walk: &mut Walk<'a>) -> Result<WalkEnd<'a>, String> {
        let context = self.context;
        loop {
            let Some(frame) = walk.stack.last_mut() else { return Ok(WalkEnd::Chain) };
            let chain = frame.chain;
            let Some(rule) = chain.rules.get(frame.next) else {
                leave(&mut walk.stack);
                continue;
            };
            frame.next += 1;
            context.budget.pay(1, 0)?;
            if rule.kernel.is_some() {
                if self.kernel.is_some() {
                    return Ok(WalkEnd::Kernel(rule));
                }
                let why = "nft put it there, and its text does not tell all";
                walk.traced.doubt(Doubt::new(hook(context), &*rule.text, why));
                continue;
            }
            // That condition comes first: whatever else the rule says, it does not match.
            let to = walk.traced.packet.destination.ip();
            if rule.leading_destination().is_some_and(|other| other != to) {
                continue;
            }
            let Some(chance) = self.matches(rule, walk)? else { continue };
            if chance < 1.0 {
                self.split(chance, walk)?;
            }
            if let Next::Ends(ends) = obey(rule, chance, self.chains, context, walk, &mut self.walked.missing)? {
                self.walked.ends.extend(ends);
                return Ok(WalkEnd::Rule);
            }
        }
    }

    /// Executes a rule by the kernel's expressions.
    pub fn execute(&mut self, rule: &Rule, walk: Walk<'a>) -> Result<(), String> {
        let context = self.context;
        let Some((held, (id, table))) = rule.kernel.as_ref().zip(self.kernel) else { return Ok(()) };
        let scope = TableScope { context, id, table, tracked: context.tracked, nat: context.table == "nat" };
        let text = held.text(id, table);
        let ways = tables::execute_rule(&scope, &hook(context), held, walk.traced, &mut self.walked.lacks);
        for (traced, odds, target) in ways {
            let mut after = Walk { traced, stack: walk.stack.clone() };
            let Some(target) = target else {
                self.open.push(after);
                continue;
            };
            after.traced.steps.push(Step::of(hook(context), &text, odds));
            let next = carry_out(&target, rule, self.chains, context, &mut after, &mut self.walked.missing)?;
            self.go_on(next, after);
        }
        Ok(())
    }

    /// The chance that a rule matches; `None`: it does not. Where that is assumed or not known, another walk takes the other way.
    fn matches(&mut self, rule: &Rule, walk: &mut Walk<'a>) -> Result<Option<f64>, String> {
        let context = self.context;
        let meaning = rule.meaning(context.family);
        let found = matching::matches(meaning, rule.counters, &mut walk.traced, context);
        if matches!(meaning.target, None | Some(Target::Passive(_))) {
            return Ok(match found.holds {
                MatchResult::Yes(chance) => Some(chance),
                _ => None,
            });
        }
        if let Some(other) = assume(rule, &found, context, walk) {
            self.open_other(rule, matches!(found.holds, MatchResult::No), other)?;
        }
        match found.holds {
            MatchResult::Yes(chance) => Ok(Some(chance)),
            MatchResult::No | MatchResult::Assumed(..) => Ok(None),
            MatchResult::Unknown(why) => {
                if let Some(other) = doubt(rule, why, context, walk) {
                    self.open_other(rule, true, other)?;
                }
                Ok(None)
            }
        }
    }

    /// Opens a walk in which a rule matches, or does not.
    fn open_other(&mut self, rule: &Rule, does_match: bool, mut other: Walk<'a>) -> Result<(), String> {
        self.context.budget.pay(0, other.traced.steps.len())?;
        let next = match does_match {
            true => obey(rule, 1.0, self.chains, self.context, &mut other, &mut self.walked.missing)?,
            false => Next::Rule,
        };
        self.go_on(next, other);
        Ok(())
    }

    fn go_on(&mut self, next: Next, walk: Walk<'a>) {
        match next {
            Next::Ends(ends) => self.walked.ends.extend(ends),
            Next::Rule => self.open.push(walk),
        }
    }

    /// Opens a walk for the packets that a random choice leaves out.
    fn split(&mut self, chance: f64, walk: &mut Walk<'a>) -> Result<(), String> {
        self.context.budget.pay(0, walk.traced.steps.len())?;
        if self.open.len() + self.walked.ends.len() > MOST {
            return Err(format!("more than {MOST} ways lead through table {}", self.context.table));
        }
        let mut other = Walk { traced: walk.traced.clone(), stack: walk.stack.clone() };
        other.traced.probability *= 1.0 - chance;
        self.open.push(other);
        walk.traced.probability *= chance;
        Ok(())
    }
}
