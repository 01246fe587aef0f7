//! Transactions: ordered operations on one table, displayed in the syntax of `nft -f`.

use std::fmt;
use std::sync::Arc;

use super::chain::Chain;
use super::rule::Rule;
use super::set::{Element, Set};
use super::{Name, Quoted, Table};

/// An operation on a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Creates the table unless it exists.
    AddTable {
        /// `comment`
        comment: Option<Name>,
    },
    /// Deletes the table with its content.
    DeleteTable,
    /// Creates a chain unless it exists.
    AddChain(Chain),
    /// Deletes a chain with its rules. No rule or element may refer to it.
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
    /// Creates a set or map unless it exists.
    AddSet(Arc<Set>),
    /// Deletes a set, to which no rule may refer.
    DeleteSet(Arc<Set>),
    /// Deletes all elements of a set.
    FlushSet(Arc<Set>),
    /// Adds elements. An existing element must be equal.
    AddElements(Arc<Set>, Vec<Element>),
    /// Deletes elements, which must exist.
    DeleteElements(Arc<Set>, Vec<Element>),
    /// Creates a named counter unless it exists.
    AddCounter(Name),
    /// Deletes a named counter, to which no rule may refer.
    DeleteCounter(Name),
}

impl Operation {
    /// The operation on `table` in nft syntax.
    pub fn of<'a>(&'a self, table: &'a Table) -> impl fmt::Display + 'a {
        Printed { operation: self, table }
    }
}

/// Operations on one table, applied atomically between cuts.
///
/// The kernel side splits a transaction only at its cuts, and only if it exceeds the largest possible batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// The table.
    pub table: Table,
    operations: Vec<Operation>,
    cuts: Vec<usize>,
}

impl Transaction {
    /// An empty transaction.
    #[must_use]
    pub fn on(table: Table) -> Self {
        Self { table, operations: Vec::new(), cuts: Vec::new() }
    }

    /// Appends an operation.
    pub fn push(&mut self, operation: Operation) {
        self.operations.push(operation);
    }

    /// Marks a point at which the transaction may be split.
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

    /// The atomic parts between cuts, each with the index of its first operation.
    pub fn parts(&self) -> impl Iterator<Item = (usize, &[Operation])> {
        let starts = std::iter::once(0).chain(self.cuts.iter().copied());
        let ends = self.cuts.iter().copied().chain(std::iter::once(self.operations.len()));
        starts.zip(ends).map(|(start, end)| (start, &self.operations[start..end])).filter(|(_, part)| !part.is_empty())
    }

    /// Whether it has no operations.
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
