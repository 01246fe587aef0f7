//! The input of `iptables-restore --noflush`: one transaction over several tables.
//!
//! Each chain and rule may have an owner, so that a line that the tool rejects can be traced to the object it was
//! rendered for.

use std::fmt::{self, Write};

use super::iptables::{Chain, Rule, Table};
use super::save::SavedChain;

/// The owner of a line: a number that the caller interprets.
pub type Owner = u32;

/// A chain that is changed rule by rule, with its content before and after that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EditedChain {
    /// The chain.
    pub chain: Chain,
    /// The content that it must have.
    pub before: SavedChain,
    /// The content that it has afterwards.
    pub after: SavedChain,
}

/// Rules that replace others at one place of a chain.
#[derive(Clone, Copy, Debug)]
pub struct RuleEdit<'a> {
    /// The number of rules before them, after the edits before this one.
    pub after: u32,
    /// The number of rules that go.
    pub deleted: u32,
    /// The rules that come.
    pub inserted: &'a [Rule],
}

#[derive(Debug, Default)]
struct Section {
    declarations: String,
    rules: String,
    declared_by: Vec<Option<Owner>>,
    ruled_by: Vec<Option<Owner>>,
    deletions: String,
    deleted: usize,
    appended: usize,
    edited: Vec<EditedChain>,
}

/// A transaction. Chains that it does not name stay as they are; each table is committed atomically.
#[derive(Debug, Default)]
pub struct Restore {
    sections: [Section; Table::ALL.len()],
    chains: usize,
}

impl Restore {
    fn section(&mut self, table: Table) -> &mut Section {
        &mut self.sections[table as usize]
    }

    /// Creates a chain, or flushes an existing one.
    pub fn declare(&mut self, table: Table, chain: Chain, owner: Option<Owner>) {
        self.chains += 1;
        let section = self.section(table);
        let _ = writeln!(section.declarations, ":{chain} - [0:0]");
        section.declared_by.push(owner);
    }

    /// Appends a rule to a chain.
    pub fn append(&mut self, table: Table, chain: Chain, rule: &Rule, owner: Option<Owner>) {
        self.write("-A ", table, chain.as_str(), rule, owner);
        self.section(table).appended += 1;
    }

    /// Creates or flushes a chain and appends its rules.
    pub fn chain(&mut self, table: Table, chain: Chain, rules: &[Rule], owner: Option<Owner>) {
        self.declare(table, chain, owner);
        for rule in rules {
            self.append(table, chain, rule, owner);
        }
    }

    /// Writes a chain unless `current` equals the desired content.
    ///
    /// Returns the desired content. The text of each rule is rendered once, for both comparison and output.
    pub fn update(
        &mut self,
        table: Table,
        chain: Chain,
        rules: &[Rule],
        current: Option<SavedChain>,
        owner: Option<Owner>,
    ) -> SavedChain {
        let section = self.section(table);
        let start = section.rules.len();
        let mut wanted = SavedChain::default();
        for rule in rules {
            section.rules.push_str("-A ");
            section.rules.push_str(chain.as_str());
            let text = section.rules.len();
            rule.write_to(&mut section.rules);
            wanted.add(&section.rules[text..]);
            section.rules.push('\n');
        }
        if current == Some(wanted) {
            section.rules.truncate(start);
        } else {
            section.ruled_by.extend(std::iter::repeat_n(owner, rules.len()));
            section.appended += rules.len();
            self.declare(table, chain, owner);
        }
        wanted
    }

    /// Declares a chain that [`Restore::edit`] changes.
    ///
    /// Only for an [`IptablesTool`](crate::kernel::IptablesTool) that edits chains: it applies the transaction only if
    /// the chain has the content `before`. Positions are lines such as `-D CHAIN 7` and `-I CHAIN 7 …`.
    pub fn begin_edits(&mut self, table: Table, edited: EditedChain) {
        self.section(table).edited.push(edited);
    }

    /// Replaces rules at one place of a chain.
    pub fn edit(&mut self, table: Table, chain: Chain, edit: &RuleEdit<'_>, owner: Option<Owner>) {
        let section = self.section(table);
        for _ in 0..edit.deleted {
            let _ = writeln!(section.rules, "-D {chain} {}", edit.after + 1);
            section.ruled_by.push(owner);
        }
        for (position, rule) in (edit.after + 1..).zip(edit.inserted) {
            let _ = write!(section.rules, "-I {chain} {position}");
            rule.write_to(&mut section.rules);
            section.rules.push('\n');
            section.ruled_by.push(owner);
            section.appended += 1;
        }
    }

    /// The chains of a table that are changed rule by rule.
    pub(crate) fn edited(&self, table: Table) -> &[EditedChain] {
        &self.sections[table as usize].edited
    }

    /// Inserts a rule at the head of a built-in chain.
    pub fn insert(&mut self, table: Table, builtin: &str, rule: &Rule) {
        self.write("-I ", table, builtin, rule, None);
    }

    /// Deletes a rule of a built-in chain, which must contain it.
    pub fn remove(&mut self, table: Table, builtin: &str, rule: &Rule) {
        self.write("-D ", table, builtin, rule, None);
    }

    fn write(&mut self, verb: &str, table: Table, chain: &str, rule: &Rule, owner: Option<Owner>) {
        let section = self.section(table);
        section.rules.push_str(verb);
        section.rules.push_str(chain);
        rule.write_to(&mut section.rules);
        section.rules.push('\n');
        section.ruled_by.push(owner);
    }

    /// Deletes a chain, which must exist, after all other changes of its table.
    pub fn delete(&mut self, table: Table, chain: Chain) {
        self.declare(table, chain, None);
        let section = self.section(table);
        let _ = writeln!(section.deletions, "-X {chain}");
        section.deleted += 1;
    }

    /// Whether the transaction changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sections.iter().all(Section::is_empty)
    }

    /// The number of chains that it writes, which determines the tool's run time.
    #[must_use]
    pub fn chains(&self) -> usize {
        self.chains
    }

    /// The number of tables that it changes.
    #[must_use]
    pub fn tables(&self) -> usize {
        self.sections.iter().filter(|section| !section.is_empty()).count()
    }

    /// The number of rules that it appends to user-defined chains of a table.
    #[must_use]
    pub fn rules(&self, table: Table) -> usize {
        self.sections[table as usize].appended
    }

    /// The owner of a line; lines are numbered from 1, as the tool numbers them.
    #[must_use]
    pub fn owner(&self, line: usize) -> Option<Owner> {
        let mut first = 1;
        for section in self.sections.iter().filter(|section| !section.is_empty()) {
            let declarations = first + 1;
            let rules = declarations + section.declared_by.len();
            let deletions = rules + section.ruled_by.len();
            if (declarations..rules).contains(&line) {
                return section.declared_by[line - declarations];
            }
            if (rules..deletions).contains(&line) {
                return section.ruled_by[line - rules];
            }
            first = deletions + section.deleted + 1;
        }
        None
    }

    /// The text of a line, numbered from 1.
    #[must_use]
    pub fn line(&self, line: usize) -> Option<String> {
        self.parts().flat_map(str::lines).nth(line.checked_sub(1)?).map(str::to_owned)
    }

    /// The tables that it changes, with the texts of their declarations, rules and deletions, a line each.
    pub(crate) fn texts(&self) -> impl Iterator<Item = (Table, [&str; 3])> {
        let sections = Table::ALL.into_iter().zip(&self.sections).filter(|(_, section)| !section.is_empty());
        sections
            .map(|(table, Section { declarations, rules, deletions, .. })| (table, [&**declarations, rules, deletions]))
    }

    /// The text in chunks of whole lines. It can have tens of megabytes and is not copied.
    pub fn parts(&self) -> impl Iterator<Item = &str> {
        let sections = Table::ALL.iter().zip(&self.sections).filter(|(_, section)| !section.is_empty());
        sections.flat_map(|(table, section)| {
            let (head, Section { declarations, rules, deletions, .. }) = (table.head(), section);
            [head, declarations, rules, deletions, "COMMIT\n"]
        })
    }
}

impl Section {
    fn is_empty(&self) -> bool {
        self.declared_by.is_empty() && self.ruled_by.is_empty()
    }
}

/// The input of the tool.
impl fmt::Display for Restore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.parts().try_for_each(|part| f.write_str(part))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iptables::Target;

    #[test]
    fn unchanged_chain_is_not_written() {
        let chain = Chain::new("ONE");
        let rules = [Rule { target: Some(Target::Drop), ..Rule::default() }];
        let mut restore = Restore::default();
        let wanted = restore.update(Table::Nat, chain, &rules, Some(SavedChain::of(&rules)), Some(1));
        assert_eq!(wanted, SavedChain::of(&rules));
        assert!(restore.is_empty() && restore.to_string().is_empty(), "{restore}");
        restore.update(Table::Nat, chain, &rules, Some(SavedChain::default()), Some(1));
        assert_eq!(restore.to_string(), "*nat\n:ONE - [0:0]\n-A ONE -j DROP\nCOMMIT\n");
        assert_eq!((restore.chains(), restore.rules(Table::Nat), restore.owner(3)), (1, 1, Some(1)));
    }

    #[test]
    fn every_line_maps_to_its_owner() {
        let (one, two) = (Chain::new("ONE"), Chain::new("TWO"));
        let drop = Rule { target: Some(Target::Drop), ..Rule::default() };
        let mut restore = Restore::default();
        restore.chain(Table::Nat, one, std::slice::from_ref(&drop), Some(1));
        restore.chain(Table::Filter, two, &[drop.clone(), drop.clone()], Some(2));
        restore.insert(Table::Filter, "INPUT", &drop);
        restore.delete(Table::Nat, two);
        let text = restore.to_string();
        let owned: Vec<_> = (1..=text.lines().count()).map(|n| (restore.owner(n), restore.line(n))).collect();
        let expected: Vec<_> = [
            (None, "*filter"),
            (Some(2), ":TWO - [0:0]"),
            (Some(2), "-A TWO -j DROP"),
            (Some(2), "-A TWO -j DROP"),
            (None, "-I INPUT -j DROP"),
            (None, "COMMIT"),
            (None, "*nat"),
            (Some(1), ":ONE - [0:0]"),
            (None, ":TWO - [0:0]"),
            (Some(1), "-A ONE -j DROP"),
            (None, "-X TWO"),
            (None, "COMMIT"),
        ]
        .map(|(owner, line)| (owner, Some(line.to_owned())))
        .to_vec();
        assert_eq!(owned, expected);
        assert_eq!(restore.owner(99), None);
    }
}
