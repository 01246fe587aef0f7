//! Jumps from the kernel's own chains into a mode's.
//!
//! In: a jump, a table as it was read back. Out: whether it is there. Must not know: which jumps a mode wants.

use netfilter::SavedTable;
use netfilter::iptables::{Chain, Match, Rule, Table, Target};

/// A jump from one of the kernel's own chains into one of kube-proxy's.
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

/// How a built-in chain stands to a [`Jump`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JumpPresence {
    /// It has the rule.
    Present,
    /// It has a rule with that target in other words: perhaps the same one.
    Alike,
    /// It has none.
    Absent,
}

impl Jump {
    /// A jump to `to` from a built-in chain, with what has to match before.
    #[must_use]
    pub fn new(table: Table, from: &'static str, to: Chain, matches: Vec<Match>) -> Self {
        Self { table, from, to, rule: Rule { matches, target: Some(Target::Jump(to)), ..Rule::default() } }
    }

    /// Looks for the jump in a table as it was read back.
    #[must_use]
    pub fn presence(&self, table: &SavedTable) -> JumpPresence {
        if self.count(table) > 0 {
            return JumpPresence::Present;
        }
        let (from, target) = (format!("-A {} ", self.from), format!("-j {}", self.to));
        let alike = table.builtin.iter().any(|line| line.starts_with(&from) && line.ends_with(&target));
        if alike { JumpPresence::Alike } else { JumpPresence::Absent }
    }

    /// How often a table has the jump, word by word.
    #[must_use]
    pub fn count(&self, table: &SavedTable) -> usize {
        let expected = format!("-A {}{}", self.from, self.rule);
        table.builtin.iter().filter(|line| line.split_whitespace().eq(expected.split_whitespace())).count()
    }
}
