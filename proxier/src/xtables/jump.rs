//! Jumps from built-in chains into a mode's chains.

use netfilter::SavedTable;
use netfilter::iptables::{Chain, Match, Rule, Table, Target};

/// A jump from a built-in chain to a chain of kube-proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Jump {
    /// The table.
    pub table: Table,
    /// The built-in chain.
    pub from: &'static str,
    /// The target.
    pub to: Chain,
    /// The rule, jump included.
    pub rule: Rule,
}

/// Whether a built-in chain has a [`Jump`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JumpPresence {
    /// The chain has the rule.
    Present,
    /// The chain has a rule with that target in another format, perhaps the same one.
    Alike,
    /// The chain has no rule with that target.
    Absent,
}

impl Jump {
    /// Creates a jump from the built-in chain `from` to `to`, restricted by `matches`.
    #[must_use]
    pub fn new(table: Table, from: &'static str, to: Chain, matches: Vec<Match>) -> Self {
        Self { table, from, to, rule: Rule { matches, target: Some(Target::Jump(to)), ..Rule::default() } }
    }

    /// Looks for the jump in a saved table.
    #[must_use]
    pub fn presence(&self, table: &SavedTable) -> JumpPresence {
        if self.count(table) > 0 {
            return JumpPresence::Present;
        }
        let (from, target) = (format!("-A {} ", self.from), format!("-j {}", self.to));
        let alike = table.builtin.iter().any(|line| line.starts_with(&from) && line.ends_with(&target));
        if alike { JumpPresence::Alike } else { JumpPresence::Absent }
    }

    /// How often a saved table has the jump, compared word by word.
    #[must_use]
    pub fn count(&self, table: &SavedTable) -> usize {
        let expected = format!("-A {}{}", self.from, self.rule);
        table.builtin.iter().filter(|line| line.split_whitespace().eq(expected.split_whitespace())).count()
    }
}
