//! What is to be changed: an ordered list of operations on one table.
//!
//! In: tables, chains, rules, sets, elements. Out: lines that `nft -f` reads. Must not know: how they are applied.

use std::fmt;
use std::sync::Arc;

use super::chain::Chain;
use super::rule::Rule;
use super::set::{Element, Set};
use super::{Name, Quoted, Table};

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Makes the table, unless it is there.
    AddTable {
        /// `comment`
        comment: Option<Name>,
    },
    /// Deletes the table with all that is in it.
    DeleteTable,
    /// Makes a chain, unless it is there.
    AddChain(Chain),
    /// Deletes a chain that nothing leads to, with its rules.
    DeleteChain(Name),
    /// Deletes all rules of a chain.
    FlushChain(Name),
    /// Appends a rule.
    AddRule {
        /// The chain.
        chain: Name,
        /// The rule.
        rule: Rule,
    },
    /// Makes a set or map, unless it is there.
    AddSet(Arc<Set>),
    /// Deletes a set that no rule uses.
    DeleteSet(Arc<Set>),
    /// Deletes all elements of a set.
    FlushSet(Arc<Set>),
    /// Adds elements. One that is there already must be equal.
    AddElements(Arc<Set>, Vec<Element>),
    /// Deletes elements that are there.
    DeleteElements(Arc<Set>, Vec<Element>),
    /// Makes a counter, unless it is there.
    AddCounter(Name),
    /// Deletes a counter that no rule uses.
    DeleteCounter(Name),
}

impl Operation {
    /// Its text, as an operation on that table.
    pub fn of<'a>(&'a self, table: &'a Table) -> impl fmt::Display + 'a {
        Printed { operation: self, table }
    }
}

/// Operations on one table. They are applied as one, but for the cuts: at these it may be divided, if it is too big
/// for the kernel to take at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// The table.
    pub table: Table,
    operations: Vec<Operation>,
    cuts: Vec<usize>,
}

impl Transaction {
    /// No operations.
    #[must_use]
    pub fn on(table: Table) -> Self {
        Self { table, operations: Vec::new(), cuts: Vec::new() }
    }

    /// Appends an operation.
    pub fn push(&mut self, operation: Operation) {
        self.operations.push(operation);
    }

    /// What was appended up to now makes sense without what follows.
    pub fn cut(&mut self) {
        if self.cuts.last() != Some(&self.operations.len()) && !self.operations.is_empty() {
            self.cuts.push(self.operations.len());
        }
    }

    /// The operations, in order.
    #[must_use]
    pub fn operations(&self) -> &[Operation] {
        &self.operations
    }

    /// The parts that must not be divided, each with the index of its first operation.
    pub fn parts(&self) -> impl Iterator<Item = (usize, &[Operation])> {
        let starts = std::iter::once(0).chain(self.cuts.iter().copied());
        let ends = self.cuts.iter().copied().chain(std::iter::once(self.operations.len()));
        starts.zip(ends).map(|(start, end)| (start, &self.operations[start..end])).filter(|(_, part)| !part.is_empty())
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }
}

impl fmt::Display for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.operations.iter().try_for_each(|operation| writeln!(f, "{}", operation.of(&self.table)))
    }
}

struct Printed<'a> {
    operation: &'a Operation,
    table: &'a Table,
}

impl fmt::Display for Printed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = self.table;
        match self.operation {
            Operation::AddTable { comment: None } => write!(f, "add table {table}"),
            Operation::AddTable { comment: Some(text) } => {
                write!(f, "add table {table} {{ comment {}; }}", Quoted(text))
            }
            Operation::DeleteTable => write!(f, "delete table {table}"),
            Operation::AddChain(Chain { name, base, comment }) => {
                write!(f, "add chain {table} {name}")?;
                if base.is_none() && comment.is_none() {
                    return Ok(());
                }
                f.write_str(" {")?;
                base.iter().try_for_each(|base| write!(f, " {base}"))?;
                comment.iter().try_for_each(|text| write!(f, " comment {};", Quoted(text)))?;
                f.write_str(" }")
            }
            Operation::DeleteChain(name) => write!(f, "delete chain {table} {name}"),
            Operation::FlushChain(name) => write!(f, "flush chain {table} {name}"),
            Operation::AddRule { chain, rule } => write!(f, "add rule {table} {chain} {rule}"),
            Operation::AddSet(set) => {
                write!(f, "add {} {table} {} {{", set.keyword(), set.name)?;
                set.to_string().lines().try_for_each(|line| write!(f, " {};", line.trim_start()))?;
                f.write_str(" }")
            }
            Operation::DeleteSet(set) => write!(f, "delete {} {table} {}", set.keyword(), set.name),
            Operation::FlushSet(set) => write!(f, "flush {} {table} {}", set.keyword(), set.name),
            Operation::AddElements(set, elements) => {
                write!(f, "add element {table} {} {{ ", set.name)?;
                list(f, elements.iter().map(|element| element.of(set)))?;
                f.write_str(" }")
            }
            Operation::DeleteElements(set, elements) => {
                write!(f, "delete element {table} {} {{ ", set.name)?;
                list(f, elements.iter().map(|element| element.key_of(set)))?;
                f.write_str(" }")
            }
            Operation::AddCounter(name) => write!(f, "add counter {table} {name}"),
            Operation::DeleteCounter(name) => write!(f, "delete counter {table} {name}"),
        }
    }
}

fn list(f: &mut fmt::Formatter<'_>, items: impl Iterator<Item = impl fmt::Display>) -> fmt::Result {
    for (at, item) in items.enumerate() {
        write!(f, "{}{item}", if at > 0 { ", " } else { "" })?;
    }
    Ok(())
}
