//! The kernel's ipsets, over nfnetlink.
//!
//! In: operations on sets and their entries. Out: they are done, or each failure names its object and the way out;
//! sets, and entries of one set, as they come. Must not know: which rules ask them.

mod error;
mod system;
mod wire;

#[cfg(feature = "testing")]
pub(super) use wire::fuzz;

use crate::ipset::{Entry, ObservedSet, Set, SetName};

pub use error::IpSetError;
pub use system::SystemIpSets;

/// A set's type, family and size, as the kernel's words for a set in the way are compared with.
pub(crate) fn described(set: &Set) -> String {
    let name = set.set_type.name();
    match set.family {
        Some(family) => format!("{name} family {} maxelem {}", family.ipset(), set.max_entries),
        None => format!("{name} range 0-65535"),
    }
}

/// A change to the sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetOperation {
    /// Makes a set. One that exists and is the same in type, family and size will do, with the entries that it has;
    /// another one of that name is a clash.
    Create(Set),
    /// Deletes a set with its entries; fails if there is none, or if rules refer to it.
    Destroy(SetName),
    /// Deletes all entries of a set.
    Flush(SetName),
    /// Gives the entries of each to the other: rules that name one see the other's. Both must be of one type.
    Swap(SetName, SetName),
    /// Adds an entry; one that is there will do.
    Add(SetName, Entry),
    /// Adds an entry that is not there yet; fails if it is.
    AddNew(SetName, Entry),
    /// Deletes an entry; fails if it is not there.
    Delete(SetName, Entry),
}

impl SetOperation {
    /// The set that it is about.
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
    /// Hands each set to `each`, whoever made it; one may come twice. Entries are not read.
    ///
    /// # Errors
    /// If the sets cannot be listed.
    fn sets(&mut self, each: &mut dyn FnMut(ObservedSet)) -> Result<(), IpSetError>;

    /// The set of that name, if there is one.
    ///
    /// # Errors
    /// If the kernel does not say.
    fn set(&mut self, name: SetName) -> Result<Option<ObservedSet>, IpSetError>;

    /// Hands each entry of a set to `each`, as the kernel tells of them; one may come twice. Fails if there is no such set or it is none
    /// of our types.
    ///
    /// # Errors
    /// If the set cannot be listed.
    fn entries(&mut self, name: SetName, each: &mut dyn FnMut(Entry)) -> Result<(), IpSetError>;

    /// Does operations in this order, many in one message to the kernel. Those that fail are told to `failed`, by
    /// index; the others are done all the same.
    ///
    /// # Errors
    /// If the kernel cannot be talked to: then it is unknown which operations were done.
    fn apply(
        &mut self,
        operations: &[SetOperation],
        failed: &mut dyn FnMut(usize, IpSetError),
    ) -> Result<(), IpSetError>;
}
