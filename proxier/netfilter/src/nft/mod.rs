//! nf_tables: tables, chains, rules, sets and their elements as values.
//!
//! In: names, fields of packets, verdicts. Out: text as `nft list` prints and `nft -f` reads it, and the kernel's own
//! instructions, both from one description. Must not know: Kubernetes, netlink, or who applies anything.

mod chain;
mod expression;
mod field;
mod operation;
mod rule;
pub mod ruleset;
mod set;

use std::fmt;
use std::sync::Arc;

pub use chain::{BaseChain, Chain, ChainType, Hook};
pub use expression::{Comparison, Expression, Register, Registers, SetOperation, Translation};
pub use field::{Field, Load, PayloadBase};
pub use operation::{Operation, Transaction};
pub use rule::{Address, Rule, Statement, Verdict};
pub use set::{Bytes, Element, Key, Set, Value};

use crate::IpFamily;

/// The name of a table, chain, set or counter. Rules and elements share them.
pub type Name = Arc<str>;

/// The longest comment that nft reads and prints, in bytes.
pub const COMMENT_MAX: usize = 127;

/// A table: what `table ip NAME` says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Table {
    /// Its family.
    pub family: IpFamily,
    /// Its name.
    pub name: Name,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family.nft(), self.name)
    }
}

/// Text in the quotes that nft wants. It knows no escapes: what would end the text becomes `'`.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.replace('"', "'"))
    }
}

/// The comment that a list prints on a line of its own.
fn write_comment(f: &mut fmt::Formatter<'_>, comment: Option<&str>) -> fmt::Result {
    comment.map_or(Ok(()), |comment| writeln!(f, "\t\tcomment {}", Quoted(comment)))
}
