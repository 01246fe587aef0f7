//! nf_tables over nfnetlink, without the nft program.
//!
//! [`NftTables`] reads and changes one table in transactions; [`NftReader`] reads the tables of any program.

mod chain_state;
mod chains;
mod decode;
mod decode_ruleset;
mod encode;
mod error;
mod expression;
#[cfg(feature = "testing")]
pub(crate) mod fuzzing;
mod hooks;
mod load;
mod outline;
mod presence;
mod read;
#[cfg(any(test, feature = "testing"))]
mod strategies;
mod system;
mod table_flags;
pub(in crate::kernel) mod uapi;

use std::fmt;

pub use chain_state::ChainState;
pub use chains::chains;
pub use decode::{ReadRule, ReadSet, ReadTable};
pub(in crate::kernel) use decode_ruleset::rule as decode_rule;
pub use error::{NftError, Refusal};
pub use presence::{delete_table, has_any_table, has_chain, has_table};
pub use read::{NftReader, OtherChain};
#[cfg(feature = "testing")]
pub use strategies::any_expression;
pub use system::SystemNftables;
pub use table_flags::{TableFlags, table_flags};

use crate::IpFamily;
use crate::nft::{Bytes, Element, Name, Set, Table, Transaction};

/// nf_tables of the network namespace.
pub trait NftTables: Send + fmt::Debug {
    /// The generation ID, which every change by any program increments.
    ///
    /// # Errors
    /// If the kernel does not return it.
    fn generation(&mut self) -> Result<u32, NftError>;

    /// The states of up to a hundred chains of one table, in order.
    ///
    /// A missing chain is `None`. Takes one round trip, whatever the chains contain.
    ///
    /// # Errors
    /// If the kernel refuses the query.
    fn chain_states(&mut self, table: &Table, chains: &[&str]) -> Result<Vec<Option<ChainState>>, NftError>;

    /// The names of all tables of a family.
    ///
    /// # Errors
    /// If they cannot be listed.
    fn tables(&mut self, family: IpFamily) -> Result<Vec<Name>, NftError>;

    /// The content of a table, without the elements of its sets.
    ///
    /// `None` if the table does not exist.
    ///
    /// # Errors
    /// If it cannot be read.
    fn table(&mut self, table: &Table) -> Result<Option<ReadTable>, NftError>;

    /// Passes each element of a set to `each`. An element may be passed twice.
    ///
    /// # Errors
    /// If the elements cannot be read, for example because the set does not exist.
    fn elements(&mut self, table: &Table, set: &Set, each: &mut dyn FnMut(Element)) -> Result<(), NftError>;

    /// Passes the existing elements among the given keys to `each`.
    ///
    /// Of each list, at least the elements before the first missing key are passed. The cost is proportional to the
    /// number of keys, while [`NftTables::elements`] takes time quadratic in the size of the set.
    ///
    /// # Errors
    /// If the elements cannot be read.
    fn lookup(
        &mut self,
        table: &Table,
        set: &Set,
        lists: &mut dyn Iterator<Item = Vec<Bytes>>,
        each: &mut dyn FnMut(Element),
    ) -> Result<(), NftError>;

    /// Applies a transaction in as few batches as possible and returns their number.
    ///
    /// With `generation`, the kernel applies it only if nf_tables has not changed since that generation ID.
    ///
    /// # Errors
    /// If a part was refused. Nothing of that part was applied; earlier parts were, later ones were not tried.
    fn apply(&mut self, transaction: &Transaction, generation: Option<u32>) -> Result<u32, NftError>;

    /// Validates a transaction as a whole without applying it.
    ///
    /// # Errors
    /// The operations that the kernel would refuse.
    fn check(&mut self, transaction: &Transaction) -> Result<(), NftError>;
}
