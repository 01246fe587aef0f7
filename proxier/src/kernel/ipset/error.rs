//! What can go wrong with ipsets.
//!
//! In: what was tried, and the kernel's error number. Out: the object, the reason and the operator's next step.
//! Must not know: why it was tried.

use std::io;

use thiserror::Error;

use super::{SetOperation, described};
use crate::netfilter::ipset::{FoundSet, Set, SetName};

/// Why something was not done to a set, or not read from it.
#[derive(Debug, Error)]
pub enum IpSetError {
    /// The kernel has no ipsets.
    #[error(
        "this kernel has no ipset: load module ip_set (modprobe ip_set), or boot a kernel built with CONFIG_IP_SET, or \
         choose another mode than ipvs"
    )]
    Missing,
    /// The kernel does not have this type of set.
    #[error("this kernel has no ipset type {kind}: load module {module} (modprobe {module})")]
    NoType {
        /// The type.
        kind: &'static str,
        /// Its module.
        module: String,
    },
    /// We may not.
    #[error("ipsets may be changed and read only with CAP_NET_ADMIN in the host's network namespace: run privileged")]
    NotPermitted,
    /// There is another one of that name.
    #[error(
        "ipset {name} exists with another type: it is {found}, wanted is {wanted}; see what uses it (ipset list {name}; iptables-save) and destroy it"
    )]
    Clash {
        /// The name.
        name: SetName,
        /// What it is.
        found: String,
        /// What it should be.
        wanted: String,
    },
    /// It is there already.
    #[error("{0}: exists already")]
    Exists(String),
    /// It is not there.
    #[error("{0}: does not exist")]
    NotFound(String),
    /// Rules or other sets refer to it.
    #[error("ipset {0} is in use: rules that name it (iptables-save | grep {0}) have to go first")]
    InUse(SetName),
    /// It takes no more.
    #[error("{entry}: ipset {name} is full")]
    Full {
        /// The set.
        name: SetName,
        /// What it has no room for.
        entry: String,
    },
    /// The entry or the other set is of another type or family than the set.
    #[error("{0}: of another type or family than the set")]
    Mismatch(String),
    /// The kernel refuses it for another reason.
    #[error("{object}: {reason}")]
    Refused {
        /// What was to be changed.
        object: String,
        /// The kernel's reason.
        reason: String,
    },
    /// The kernel could not be talked to.
    #[error("cannot talk to ipset: {0}")]
    Failed(#[from] io::Error),
}

impl SetOperation {
    /// What a message calls it.
    pub(crate) fn object(&self) -> String {
        match self {
            Self::Create(set) => format!("ipset {}", set.name),
            Self::Destroy(name) | Self::Flush(name) => format!("ipset {name}"),
            Self::Swap(one, other) => format!("ipsets {one} and {other}"),
            Self::Add(name, entry) | Self::AddNew(name, entry) | Self::Delete(name, entry) => {
                format!("entry {entry} of ipset {name}")
            }
        }
    }
}

impl IpSetError {
    /// A set is in the way.
    pub(crate) fn clash(wanted: &Set, found: &FoundSet) -> Self {
        let (found, wanted_words) = (found.described.clone(), described(wanted));
        Self::Clash { name: wanted.name, found, wanted: wanted_words }
    }

    /// A set's entries are of a type that is none of ours.
    pub(crate) fn foreign(name: SetName, found: &str) -> Self {
        Self::Refused { object: format!("ipset {name}"), reason: format!("its type is {found}, none of ours") }
    }

    /// The set that an operation is about is not there.
    pub(crate) fn no_set(operation: &SetOperation) -> Self {
        match operation {
            SetOperation::Swap(..) => Self::NotFound(format!("one of {}", operation.object())),
            _ => Self::NotFound(format!("ipset {}", operation.name())),
        }
    }
}
