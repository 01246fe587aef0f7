//! The source of rules of iptables, by chain or by table, in either flavour.
//!
//! The nf_tables flavour is read over netlink; the legacy program always reads all, so there it is run once and what it
//! prints is kept.

use std::cmp::Ordering;
use std::ops::Range;

use netfilter::IpFamily;
use netfilter::kernel::{Flavour, RuleReader};
use netfilter::nft::ruleset as nft;

use super::native_rules::NativeRules;
use crate::rules::{ParseError, Ruleset};

/// The rules of one family in one flavour.
pub enum RuleSource {
    /// The kernel.
    Native(Box<NativeRules>),
    /// What the legacy program printed.
    Saved(Saved),
}

impl RuleSource {
    /// The rules of the nf_tables flavour, by an outline of its tables. `is_complete`: the outline has all chains.
    #[must_use]
    pub fn native(outline: &nft::Ruleset, is_complete: bool) -> Self {
        Self::Native(Box::new(NativeRules::new(outline, is_complete)))
    }

    /// The rules of the legacy flavour.
    ///
    /// # Errors
    /// If its programs are missing, or cannot read.
    pub fn legacy(family: IpFamily) -> Result<Self, String> {
        let reader = RuleReader::find(family, Flavour::Legacy).map_err(|error| error.to_string())?;
        let mut saved = Saved::default();
        reader.save(None, &mut |line| saved.line(line)).map_err(|error| error.to_string())?;
        Ok(Self::Saved(saved.sorted()))
    }

    /// No rules.
    #[must_use]
    pub fn nothing() -> Self {
        Self::Saved(Saved::default())
    }

    /// Reads all tables into `ruleset`; returns what is wrong with single rules.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn read_all(&mut self, ruleset: &mut Ruleset) -> Result<Vec<String>, String> {
        match self {
            Self::Native(native) => {
                let mut problems = Vec::new();
                native.read_all(ruleset, &mut problems)?;
                Ok(problems)
            }
            Self::Saved(saved) => {
                let mut reader = ruleset.reader();
                saved.text.lines().for_each(|line| reader.line(line));
                Ok(words(reader.finish()))
            }
        }
    }

    /// Reads one table into `ruleset`, nothing if it is not there; returns what is wrong with single rules.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read_table(&mut self, ruleset: &mut Ruleset, table: &str) -> Result<Vec<String>, String> {
        match self {
            Self::Native(native) => {
                let mut problems = Vec::new();
                native.read_table(ruleset, table, &mut problems)?;
                Ok(problems)
            }
            Self::Saved(saved) => Ok(words(ruleset.read_chains(table, &saved.table(table)))),
        }
    }

    /// Reads one chain into `ruleset`; returns what is wrong with single rules, or `None` if there is no such chain.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read_chain(
        &mut self,
        ruleset: &mut Ruleset,
        table: &str,
        chain: &str,
    ) -> Result<Option<Vec<String>>, String> {
        match self {
            Self::Native(native) => {
                let mut problems = Vec::new();
                let is_there = native.read_chain(ruleset, (table, chain), &mut problems)?;
                Ok(is_there.then_some(problems))
            }
            Self::Saved(saved) => {
                Ok(saved.find(table, chain).map(|at| words(ruleset.read_chains(table, &saved.chain(at)))))
            }
        }
    }

    /// Whether a chain has rules, as far as that is kept here.
    #[must_use]
    pub fn has_rules(&self, table: &str, chain: &str) -> bool {
        match self {
            Self::Native(_) => false,
            Self::Saved(saved) => saved.find(table, chain).is_some_and(|place| place.rules.1 > 0),
        }
    }

    /// Why the rules may not be of one moment. What the legacy program printed is.
    #[must_use]
    pub fn unsteady(&self) -> Option<String> {
        match self {
            Self::Native(native) => native.unsteady(),
            Self::Saved(_) => None,
        }
    }

    /// Drops what is kept: nothing is read any more.
    pub fn forget(&mut self) {
        if let Self::Saved(saved) = self {
            *saved = Saved::default();
        }
    }
}

fn words(problems: Vec<ParseError>) -> Vec<String> {
    problems.into_iter().map(|problem| problem.to_string()).collect()
}

/// What `iptables-save` printed, and where in it each chain is.
#[derive(Default)]
pub struct Saved {
    text: String,
    tables: Vec<(String, Range<usize>)>,
    chains: Vec<ChainSpan>,
    /// The chain of the last rule.
    last: usize,
}

/// A chain's place: a big table has a hundred thousand.
#[derive(Clone, Copy)]
struct ChainSpan {
    table: u16,
    /// Where its declaration begins.
    declared: u32,
    /// From its first rule to its last; lines of other chains may be among them.
    rules: (u32, u32),
}

impl Saved {
    /// Takes the next line, its end included.
    fn line(&mut self, line: &str) {
        let start = self.text.len();
        self.text.push_str(line);
        let end = self.text.len();
        let (Ok(from), Ok(to)) = (u32::try_from(start), u32::try_from(end)) else { return };
        if let Some(table) = line.strip_prefix('*') {
            self.tables.push((table.trim().to_owned(), end..end));
            self.last = self.chains.len();
        } else if let Some((_, range)) = self.tables.last_mut()
            && !line.starts_with(['#', 'C'])
        {
            range.end = end;
            let table = u16::try_from(self.tables.len() - 1).unwrap_or(u16::MAX);
            if line.starts_with(':') {
                self.chains.push(ChainSpan { table, declared: from, rules: (0, 0) });
            } else if let Some(at) = self.place_of(table, line) {
                self.last = at;
                let rules = &mut self.chains[at].rules;
                *rules = if rules.1 == 0 { (from, to) } else { (rules.0, to) };
            }
        }
    }

    /// Which chain a rule's line belongs to. Rules come in the order in which their chains were declared.
    fn place_of(&self, table: u16, line: &str) -> Option<usize> {
        let name = chain_of(line)?;
        let is_it = |at: &usize| self.chains[*at].table == table && self.name(self.chains[*at]) == name;
        (self.last..self.chains.len()).find(is_it).or_else(|| (0..self.last).find(is_it))
    }

    fn name(&self, place: ChainSpan) -> &str {
        let declaration = &self.text[place.declared as usize + 1..];
        declaration.split([' ', '\n']).next().unwrap_or_default()
    }

    fn sorted(mut self) -> Self {
        let mut chains = std::mem::take(&mut self.chains);
        chains.sort_by(|a, b| (a.table, self.name(*a)).cmp(&(b.table, self.name(*b))));
        Self { chains, ..self }
    }

    fn find(&self, table: &str, chain: &str) -> Option<ChainSpan> {
        let table = self.tables.iter().position(|(name, _)| name == table)?;
        let order = |place: &ChainSpan| match usize::from(place.table).cmp(&table) {
            Ordering::Equal => self.name(*place).cmp(chain),
            other => other,
        };
        self.chains.binary_search_by(order).ok().map(|at| self.chains[at])
    }

    fn table(&self, table: &str) -> String {
        let found = self.tables.iter().find(|(name, _)| name == table);
        found.map(|(_, range)| self.text[range.clone()].to_owned()).unwrap_or_default()
    }

    fn chain(&self, place: ChainSpan) -> String {
        let (name, declaration) = (self.name(place), &self.text[place.declared as usize..]);
        let mut text = declaration.split_inclusive('\n').next().unwrap_or_default().to_owned();
        let rules = &self.text[place.rules.0 as usize..place.rules.1 as usize];
        text.extend(rules.split_inclusive('\n').filter(|line| chain_of(line) == Some(name)));
        text
    }
}

/// The chain of `[0:0] -A CHAIN …`.
fn chain_of(line: &str) -> Option<&str> {
    let rule = if line.starts_with('[') { line.split_once("] ")?.1 } else { line };
    rule.strip_prefix("-A ")?.split([' ', '\n']).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# by hand\n*mangle\n:PREROUTING ACCEPT [1:2]\n:KUBE-X - [0:0]\nCOMMIT\n*nat\n:OUTPUT ACCEPT [3:4]\n\
        :KUBE-B - [0:0]\n:KUBE-A - [0:0]\n:KUBE-AA - [0:0]\n[5:6] -A OUTPUT -j KUBE-B\n[7:8] -A KUBE-B -j KUBE-A\n\
        [0:0] -A KUBE-A -j DROP\n[9:9] -A KUBE-B -j RETURN\n[1:1] -A KUBE-AA\nCOMMIT\n# the end\n";

    #[test]
    fn chains_are_cut_out_of_what_was_saved() {
        let mut saved = Saved::default();
        TEXT.split_inclusive('\n').for_each(|line| saved.line(line));
        let saved = saved.sorted();
        let chain = |table: &str, name: &str| saved.find(table, name).map(|at| saved.chain(at));
        let b = ":KUBE-B - [0:0]\n[7:8] -A KUBE-B -j KUBE-A\n[9:9] -A KUBE-B -j RETURN\n";
        assert_eq!(chain("nat", "KUBE-B").as_deref(), Some(b));
        assert_eq!(chain("nat", "KUBE-A").as_deref(), Some(":KUBE-A - [0:0]\n[0:0] -A KUBE-A -j DROP\n"));
        assert_eq!(chain("nat", "KUBE-AA").as_deref(), Some(":KUBE-AA - [0:0]\n[1:1] -A KUBE-AA\n"));
        assert_eq!(chain("mangle", "KUBE-X").as_deref(), Some(":KUBE-X - [0:0]\n"));
        assert_eq!((chain("nat", "KUBE-X"), chain("raw", "OUTPUT")), (None, None));
        assert_eq!(saved.table("mangle"), ":PREROUTING ACCEPT [1:2]\n:KUBE-X - [0:0]\n");
        assert_eq!((saved.table("raw"), saved.table("nat").lines().count()), (String::new(), 9));
        assert_eq!(saved.text, TEXT);
    }
}
