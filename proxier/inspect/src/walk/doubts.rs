//! Undecidable rules, and whether they change the outcome.
//!
//! Where a rule cannot be decided, the packet continues as if the rule did not match, and a copy continues as if it did.
//! Afterwards their outcomes are compared: a doubt that does not change the outcome is harmless.

use std::cell::Cell;
use std::collections::BTreeMap;

use super::chains::{Decision, TracedPacket};
use super::path::outcome;
use super::{Assumption, Doubt, Outcome, Verdict};

/// A doubt; `fork`: the number of the packet that continues as if the rule matched, if any.
#[derive(Clone, Debug)]
pub(super) struct ForkedDoubt {
    pub(super) fork: Option<u32>,
    pub(super) doubt: Doubt,
    /// Whether it is an assumption about a limit, which the other packet continues without.
    pub(super) is_assumption: bool,
}

/// The most forks of a trace: each may meet as many rules as the first packet.
const MOST_FORKS: u32 = 64;

/// Numbers of forks: packets that continue as if an undecidable rule matched.
#[derive(Default)]
pub(super) struct ForkIds(Cell<u32>);

impl ForkIds {
    /// The next number; `None` if there are too many.
    pub(super) fn next(&self) -> Option<u32> {
        let number = self.0.get();
        self.0.set(number.saturating_add(1));
        (number < MOST_FORKS).then_some(number)
    }
}

type End = (Verdict, bool);
type Ends = BTreeMap<End, f64>;

/// The outcomes of both sides of each fork, which decide whether its doubt matters.
pub(super) struct ForkEnds {
    /// Outcomes of packets that took exactly these forks.
    taken: BTreeMap<Vec<u32>, Ends>,
    /// Outcomes of packets that passed a fork without taking it.
    passed: BTreeMap<u32, Ends>,
}

impl ForkEnds {
    pub(super) fn of(ended: &[(TracedPacket, Decision)]) -> Self {
        let mut compared = Self { taken: BTreeMap::new(), passed: BTreeMap::new() };
        for (traced, decision) in ended {
            let Outcome { verdict, masqueraded, probability } = outcome(traced, *decision);
            let add = |ends: &mut Ends| *ends.entry((verdict, masqueraded)).or_default() += probability;
            if !traced.supposed.is_empty() {
                add(compared.taken.entry(traced.supposed.clone()).or_default());
            }
            for fork in traced.doubts.iter().filter_map(|doubted| doubted.fork) {
                add(compared.passed.entry(fork).or_default());
            }
        }
        compared
    }

    /// Separates the doubts that matter, with the outcomes if their rules match, from the harmless ones and from
    /// assumptions. Those have the outcomes if they are wrong, where that differs.
    pub(super) fn sort(&self, doubts: Vec<ForkedDoubt>) -> (Vec<Doubt>, Vec<Doubt>, Vec<Assumption>) {
        let (mut matter, mut harmless, mut assumed) = (Vec::new(), Vec::new(), Vec::new());
        for ForkedDoubt { fork, mut doubt, is_assumption } in doubts {
            let ends = fork.and_then(|fork| self.ends_with(fork));
            doubt.otherwise = ends.map(|(_, ends)| outcomes(ends)).unwrap_or_default();
            let is_harmless = fork.is_some_and(|fork| !self.matters(fork));
            match is_assumption {
                true => {
                    let Doubt { hook, rule, why: what, otherwise, .. } = doubt;
                    let otherwise = if is_harmless { Vec::new() } else { otherwise };
                    assumed.push(Assumption { hook, rule, what, otherwise });
                }
                false if is_harmless => harmless.push(doubt),
                false => matter.push(doubt),
            }
        }
        (matter, harmless, assumed)
    }

    fn ends_with(&self, fork: u32) -> Option<(&Vec<u32>, &Ends)> {
        self.taken.iter().find(|(forks, _)| forks.last() == Some(&fork))
    }

    fn matters(&self, fork: u32) -> bool {
        let (Some((forks, taken)), Some(passed)) = (self.ends_with(fork), self.passed.get(&fork)) else { return true };
        let shares = |ends: &Ends| -> Vec<(End, f64)> {
            let all: f64 = ends.values().sum();
            ends.iter().map(|(end, share)| (*end, share / all)).collect()
        };
        let (taken, passed) = (shares(taken), shares(passed));
        let same = taken.len() == passed.len()
            && taken.iter().zip(&passed).all(|(a, b)| a.0 == b.0 && (a.1 - b.1).abs() < 1e-9);
        // A fork may fork again.
        let later = self.taken.keys().filter(|more| more.len() == forks.len() + 1 && more.starts_with(forks));
        !same || later.filter_map(|more| more.last()).any(|next| self.matters(*next))
    }
}

fn outcomes(ends: &Ends) -> Vec<Outcome> {
    let all: f64 = ends.values().sum();
    let outcome =
        |(&(verdict, masqueraded), share): (&End, &f64)| Outcome { verdict, masqueraded, probability: share / all };
    ends.iter().map(outcome).collect()
}
