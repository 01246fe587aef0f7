//! What can go wrong with nf_tables.
//!
//! In: the kernel's refusals. Out: errors that name the object at fault and what can be done.
//! Must not know: whose object it is.

use std::fmt;
use std::io;

use thiserror::Error;

use crate::kernel::netlink::NetlinkError;

/// One operation that the kernel refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Its index in the transaction; `None` if it is all of it.
    pub operation: Option<usize>,
    /// The operation, or the element in it, in the words of nft.
    pub object: String,
    /// The kernel's error number.
    pub errno: i32,
    /// The kernel's own words, if it has any.
    pub words: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, io::Error::from_raw_os_error(self.errno))?;
        if self.words.is_empty() { Ok(()) } else { write!(f, ": {}", self.words) }
    }
}

/// Why nf_tables could not be read or changed.
#[derive(Debug, Error)]
pub enum NftError {
    /// The kernel refused operations; nothing of that part of the transaction was done.
    #[error("the kernel refused {}", list(.0))]
    Refused(Vec<Refusal>),
    /// Somebody else changed nf_tables since it was read.
    #[error("somebody else changed nf_tables meanwhile")]
    Changed,
    /// Part of a transaction exceeds the largest batch that the socket can send.
    #[error("{bytes} bytes are too much for one batch of at most {room}: raise net.core.wmem_max, or run this as root")]
    TooBig {
        /// How much it is.
        bytes: usize,
        /// How much there may be.
        room: usize,
    },
    /// Another process owns the table (`flags owner`): the kernel refuses changes by any other process.
    #[error(
        "nf_tables table {table} belongs to another process (flags owner, netlink port ID {owner}), and the kernel lets no \
         other change it: stop that process"
    )]
    Owned {
        /// The family and name of the table.
        table: String,
        /// The port ID of the owner's netlink socket, usually its process's ID.
        owner: u32,
    },
    /// It changed too often to be read.
    #[error("nf_tables changes faster than it can be read")]
    Interrupted,
    /// Netlink failed.
    #[error("nf_tables over netlink: {0}")]
    Netlink(#[from] io::Error),
}

fn list(refusals: &[Refusal]) -> String {
    match refusals {
        [] => "it without a reason".to_owned(),
        [only] => only.to_string(),
        [first, rest @ ..] => format!("{first}, and {} more", rest.len()),
    }
}

impl From<NetlinkError> for NftError {
    fn from(error: NetlinkError) -> Self {
        Self::Netlink(error.into())
    }
}
