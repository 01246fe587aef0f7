//! Rulesets: tables, chains and rules of one family.
//!
//! A rule keeps its text, and its meaning is parsed on demand, because a big table has hundreds of thousands of rules.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::OnceLock;

use netfilter::Counters;
use netfilter::IpFamily;
use netfilter::iptables::has_open_quote;
use netfilter::nft::ruleset;

use super::actions::Target;
use super::args;
use super::conditions::Condition;
use super::language;
use super::words;

/// The tables of one family that were read.
#[derive(Clone, Debug)]
pub struct Ruleset {
    pub(super) family: IpFamily,
    pub(super) tables: BTreeMap<String, Table>,
    pub(super) is_legacy: bool,
}

/// The chains of one table, always including the built-in ones.
pub type Table = BTreeMap<Box<str>, Chain>;

/// A chain. The policy of a built-in chain decides packets that its rules do not.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    /// The policy of a built-in chain.
    pub policy: Option<Policy>,
    /// The packets that the policy decided.
    pub counters: Counters,
    /// The rules, in order.
    pub rules: Vec<Rule>,
}

/// The policy of a built-in chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// `ACCEPT`
    Accept,
    /// `DROP`
    Drop,
}

/// A parsed rule.
#[derive(Clone, Debug)]
pub struct Rule {
    /// The line number in the parsed text, from 1.
    pub(super) line: usize,
    /// The rule as written, without counters: `-A CHAIN …`.
    pub text: Box<str>,
    /// Its counters.
    pub counters: Counters,
    /// The kernel's rule, if its text is incomplete because nft added it.
    pub(crate) kernel: Option<Box<ruleset::Rule>>,
    pub(super) meaning: OnceLock<Box<Meaning>>,
}

/// The meaning of a rule.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Meaning {
    /// Conditions, in order.
    pub conditions: Vec<Condition>,
    /// The target; a rule without one only counts.
    pub target: Option<Target>,
    /// The text of `--comment`.
    pub comment: Option<Box<str>>,
    /// The part not understood; the rule may then match fewer packets than the conditions say, and act differently.
    pub problem: Option<String>,
}

impl Rule {
    /// The text after the chain's name.
    #[must_use]
    pub fn options(&self) -> &str {
        self.text.splitn(3, ' ').nth(2).unwrap_or_default()
    }

    /// A rule as read from the kernel. `kernel`: what the kernel holds of it, where its text does not tell all.
    #[must_use]
    pub fn of_kernel(text: Box<str>, counters: Counters, kernel: Option<Box<ruleset::Rule>>) -> Self {
        Self { line: 0, text, counters, kernel, meaning: OnceLock::new() }
    }

    /// The chain that it jumps to; one of the kernel's own targets is no chain.
    #[must_use]
    pub fn jump_target(&self) -> Option<&str> {
        if let Some(kernel) = &self.kernel {
            return kernel.jump_target().map(|chain| &**chain);
        }
        jump_of(&self.text).filter(|to| language::target_of(to).is_none())
    }

    /// The single destination address that the options begin with, as those of Services' rules do.
    ///
    /// To parse ten thousand such rules takes much longer than to look at their addresses.
    #[must_use]
    pub fn leading_destination(&self) -> Option<IpAddr> {
        let word = self.options().strip_prefix("-d ")?.split(' ').next()?;
        match word.split_once('/')? {
            (address, "32") => address.parse().ok().map(IpAddr::V4),
            (address, "128") => address.parse().ok().map(IpAddr::V6),
            _ => None,
        }
    }

    /// Parses the meaning.
    #[must_use]
    pub fn read(&self, family: IpFamily) -> Meaning {
        match words::words(self.options()) {
            Ok(words) => args::rule(family, words),
            Err(problem) => Meaning { problem: Some(problem), ..Meaning::default() },
        }
    }

    /// The meaning, parsed once and cached.
    pub(crate) fn meaning(&self, family: IpFamily) -> &Meaning {
        self.meaning.get_or_init(|| Box::new(self.read(family)))
    }
}

impl Ruleset {
    /// The family.
    #[must_use]
    pub fn family(&self) -> IpFamily {
        self.family
    }

    /// The tables' names, in order.
    pub fn tables(&self) -> impl Iterator<Item = &str> {
        self.tables.keys().map(String::as_str)
    }

    /// The chains of a table; none if the table was not read.
    pub fn chains(&self, table: &str) -> impl Iterator<Item = (&str, &Chain)> {
        self.tables.get(table).into_iter().flatten().map(|(name, chain)| (&**name, chain))
    }

    /// A table's chains, if it was read.
    #[must_use]
    pub fn table(&self, name: &str) -> Option<&Table> {
        self.tables.get(name)
    }

    /// A chain, if its table was read and has it.
    #[must_use]
    pub fn chain(&self, table: &str, name: &str) -> Option<&Chain> {
        self.tables.get(table)?.get(name)
    }

    /// The rules of all tables but `nat`, without those of built-in chains that jump to a chain of which `removed` holds.
    #[must_use]
    pub fn without_nat(&self, removed: impl Fn(&str) -> bool) -> Self {
        let mut tables = self.tables.clone();
        tables.remove("nat");
        for chain in tables.values_mut().flat_map(BTreeMap::values_mut).filter(|chain| chain.policy.is_some()) {
            chain.rules.retain(|rule| !rule.jump_target().is_some_and(&removed));
        }
        Self { family: self.family, tables, is_legacy: self.is_legacy }
    }

    /// Chains accepted by `wanted` that rules of a table jump to but that were not read.
    #[must_use]
    pub fn unread(&self, table: &str, wanted: impl Fn(&str, &Rule) -> bool) -> BTreeSet<String> {
        let mut unread = BTreeSet::new();
        for (name, chain) in self.chains(table) {
            for to in chain.rules.iter().filter(|rule| wanted(name, rule)).filter_map(Rule::jump_target) {
                if self.chain(table, to).is_none() {
                    unread.insert(to.to_owned());
                }
            }
        }
        unread
    }
}

/// The word after `-j` or `-g`, outside of comments.
fn jump_of(text: &str) -> Option<&str> {
    let ends = |at: &usize| !has_open_quote(&text[..*at]);
    let last = |word: &str| text.rmatch_indices(word).map(|(at, _)| at).find(ends);
    let at = last(" -j ").or_else(|| last(" -g "))?;
    text[at + 4..].split(' ').next()
}
