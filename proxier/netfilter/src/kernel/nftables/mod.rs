//! nf_tables, over nfnetlink: one table is read and changed, without the nft program.
//!
//! In: transactions of one table. Out: they are applied, each part of them whole or not at all; what the kernel holds,
//! as much of it as is asked for. Must not know: why anything is to be there.

mod chain_state;
mod chains;
mod decode;
mod decode_ruleset;
mod encode;
mod error;
mod expression;
#[cfg(feature = "testing")]
pub(crate) mod fuzzing;
mod load;
mod presence;
mod read;
#[cfg(any(test, feature = "testing"))]
mod strategies;
mod system;

use std::fmt;

pub use chain_state::ChainState;
pub use chains::chains;
pub use decode::{ReadRule, ReadSet, ReadTable};
pub use error::{NftError, Refusal};
pub use presence::{delete_table, has_chain, has_table};
pub use read::NftReader;
#[cfg(feature = "testing")]
pub use strategies::any_expression;
pub use system::SystemNftables;

use crate::IpFamily;
use crate::nft::{Bytes, Element, Name, Set, Table, Transaction};

/// nf_tables of the network namespace.
pub trait NftTables: Send + fmt::Debug {
    /// A number that every change of nf_tables makes another one, whoever makes it, in whichever table.
    ///
    /// # Errors
    /// If the kernel does not say.
    fn generation(&mut self) -> Result<u32, NftError>;

    /// The states of chains of one table, in this order; `None` where there is no such chain. In one round trip, for at
    /// most a hundred chains.
    ///
    /// # Errors
    /// If the kernel does not say.
    fn chain_states(&mut self, table: &Table, chains: &[&str]) -> Result<Vec<Option<ChainState>>, NftError>;

    /// The names of all tables of a family.
    ///
    /// # Errors
    /// If they cannot be listed.
    fn tables(&mut self, family: IpFamily) -> Result<Vec<Name>, NftError>;

    /// What is in a table, but for the elements of its sets; `None` if there is no such table.
    ///
    /// # Errors
    /// If it cannot be read.
    fn table(&mut self, table: &Table) -> Result<Option<ReadTable>, NftError>;

    /// Hands over the elements of a set, one by one. Some may come again.
    ///
    /// # Errors
    /// If they cannot be read: there is no such set, for one.
    fn elements(&mut self, table: &Table, set: &Set, each: &mut dyn FnMut(Element)) -> Result<(), NftError>;

    /// Hands over those of these keys' elements that a set has, of each list at least those before the first that it has
    /// not. It costs as much as is asked for; `elements` costs the kernel time in the square of what there is.
    ///
    /// # Errors
    /// If they cannot be read.
    fn lookup(
        &mut self,
        table: &Table,
        set: &Set,
        lists: &mut dyn Iterator<Item = Vec<Bytes>>,
        each: &mut dyn FnMut(Element),
    ) -> Result<(), NftError>;

    /// Makes the changes, in as few batches as the kernel takes, and tells how many those were. With `generation`, only
    /// if nobody has changed anything since the kernel told that number.
    ///
    /// # Errors
    /// If a part was refused. It then left no trace; parts before it are done, parts after it were not tried.
    fn apply(&mut self, transaction: &Transaction, generation: Option<u32>) -> Result<u32, NftError>;

    /// Finds out whether the kernel would make the changes, as one, and makes none.
    ///
    /// # Errors
    /// What it would refuse.
    fn check(&mut self, transaction: &Transaction) -> Result<(), NftError>;
}
