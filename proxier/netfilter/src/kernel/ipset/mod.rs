//! The ipsets of a network namespace, over nfnetlink.

mod error;
mod system;
mod wire;

#[cfg(feature = "testing")]
pub(super) use wire::fuzz;

use crate::Counters;
use crate::ipset::{Entry, ObservedSet, Set, SetName};

pub use error::IpSetError;
pub use system::SystemIpSets;

/// Type, family and size of a set, in the format of [`ObservedSet::described`].
pub(crate) fn described(set: &Set) -> String {
    let name = set.set_type.name();
    let counters = if set.counters { " counters" } else { "" };
    match set.family {
        Some(family) => format!("{name} family {} maxelem {}{counters}", family.ipset(), set.max_entries),
        None => format!("{name} range 0-65535{counters}"),
    }
}

/// A change to the sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetOperation {
    /// Creates a set. Succeeds if an equal set exists, or one that counts besides, which keeps its entries; a different
    /// set of that name is a [`IpSetError::Clash`].
    Create(Set),
    /// Destroys a set with its entries; fails if it does not exist or is referenced.
    Destroy(SetName),
    /// Deletes all entries of a set.
    Flush(SetName),
    /// Swaps the entries of two sets of one type.
    ///
    /// Rules that refer to either set see the other's entries.
    Swap(SetName, SetName),
    /// Adds an entry; succeeds if it exists.
    Add(SetName, Entry),
    /// Adds an entry; fails if it exists.
    AddNew(SetName, Entry),
    /// Deletes an entry; fails if it does not exist.
    Delete(SetName, Entry),
}

impl SetOperation {
    /// The set that the operation changes.
    #[must_use]
    pub fn name(&self) -> SetName {
        match self {
            Self::Create(set) => set.name,
            Self::Destroy(name)
            | Self::Flush(name)
            | Self::Swap(name, _)
            | Self::Add(name, _)
            | Self::AddNew(name, _)
            | Self::Delete(name, _) => *name,
        }
    }
}

/// The sets of the network namespace.
pub trait IpSets: Send + std::fmt::Debug {
    /// Passes each set to `each`, without entries. A set may be passed twice.
    ///
    /// # Errors
    /// If the sets cannot be listed.
    fn sets(&mut self, each: &mut dyn FnMut(ObservedSet)) -> Result<(), IpSetError>;

    /// The set of a name, if it exists.
    ///
    /// # Errors
    /// If the sets cannot be listed.
    fn set(&mut self, name: SetName) -> Result<Option<ObservedSet>, IpSetError>;

    /// Passes each entry of a set to `each`. An entry may be passed twice.
    ///
    /// # Errors
    /// If the set does not exist, has an unsupported type, or cannot be listed.
    fn entries(&mut self, name: SetName, each: &mut dyn FnMut(Entry)) -> Result<(), IpSetError> {
        self.counted_entries(name, &mut |entry, _| each(entry))
    }

    /// The same with what each entry has counted; zeros if the set does not count.
    ///
    /// # Errors
    /// As for [`IpSets::entries`].
    fn counted_entries(&mut self, name: SetName, each: &mut dyn FnMut(Entry, Counters)) -> Result<(), IpSetError>;

    /// Applies operations in order, many in one message.
    ///
    /// Failed operations are passed to `failed` by index; the others are applied all the same.
    ///
    /// # Errors
    /// If the netlink socket fails. It is then unknown which operations were applied.
    fn apply(
        &mut self,
        operations: &[SetOperation],
        failed: &mut dyn FnMut(usize, IpSetError),
    ) -> Result<(), IpSetError>;
}
