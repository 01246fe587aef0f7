//! nf_tables tables, chains, rules, sets and elements as values.
//!
//! Each is displayed as `nft list` prints and `nft -f` reads it, and encoded as the kernel's expressions from the same
//! description. [`ruleset`] has the types for tables read from the kernel.

mod chain;
mod expression;
mod field;
pub mod jhash;
mod operation;
mod rule;
pub mod ruleset;
mod set;

use std::fmt;
use std::sync::Arc;

pub use chain::{BaseChain, Chain, ChainType, Hook};
pub use expression::{Comparison, Expression, Register, Registers, SetOperation, Translation};
pub use field::{Field, HashedClient, Load, PayloadBase};
pub use operation::{Operation, Transaction};
pub use rule::{Address, Rule, Statement, Verdict};
pub use set::{Bytes, Element, Key, Set, Value};

use crate::IpFamily;

/// The name of a table, chain, set or counter, shared by reference.
pub type Name = Arc<str>;

/// The longest comment in bytes that nft accepts.
pub const COMMENT_MAX: usize = 128;

/// A table, such as `ip kube-proxy`.
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

/// A quoted string. nft has no escapes, so `"` becomes `'`.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.replace('"', "'"))
    }
}

/// Writes a comment as a line of its own, as in a listing.
fn write_comment(f: &mut fmt::Formatter<'_>, comment: Option<&str>) -> fmt::Result {
    comment.map_or(Ok(()), |comment| writeln!(f, "\t\tcomment {}", Quoted(comment)))
}
