//! Errors of nf_tables, which name the object, the cause and the next step.

use std::fmt;
use std::io;

use thiserror::Error;

use crate::kernel::netlink::NetlinkError;

/// An operation that the kernel refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The index in the transaction; `None` if the error is about the whole transaction.
    pub operation: Option<usize>,
    /// The operation, or the element in it, in nft syntax.
    pub object: String,
    /// The error number.
    pub errno: i32,
    /// The kernel's message, empty if there is none.
    pub words: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, io::Error::from_raw_os_error(self.errno))?;
        if self.words.is_empty() { Ok(()) } else { write!(f, ": {}", self.words) }
    }
}

/// A failure to read or change nf_tables.
#[derive(Debug, Error)]
pub enum NftError {
    /// The kernel refused operations. Nothing of that part of the transaction was applied.
    #[error("the kernel refused {}", list(.0))]
    Refused(Vec<Refusal>),
    /// Another program changed nf_tables since the generation ID was read.
    #[error("another program changed nf_tables since it was read")]
    Changed,
    /// Part of a transaction exceeds the largest batch that the socket can send.
    #[error("batch of {bytes} bytes exceeds the limit of {room}: raise net.core.wmem_max, or run as root")]
    TooBig {
        /// The size of the part.
        bytes: usize,
        /// The largest possible size.
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
    /// Every attempt to read was interrupted by changes.
    #[error("nf_tables changed during every attempt to read it")]
    Interrupted,
    /// The netlink socket failed, or the kernel returned an error.
    #[error("nf_tables netlink request failed: {0}")]
    Netlink(#[from] io::Error),
}

fn list(refusals: &[Refusal]) -> String {
    match refusals {
        [] => "the batch without a reason".to_owned(),
        [only] => only.to_string(),
        [first, rest @ ..] => format!("{first}, and {} more", rest.len()),
    }
}

/// Keeps the kind of the kernel's error, so that a refusal for want of rights can be told from others.
impl From<NftError> for io::Error {
    fn from(error: NftError) -> Self {
        let kind = match &error {
            NftError::Refused(refusals) => {
                refusals.first().map(|refusal| Self::from_raw_os_error(refusal.errno).kind())
            }
            NftError::Netlink(source) => Some(source.kind()),
            NftError::Changed | NftError::Interrupted => Some(io::ErrorKind::Interrupted),
            NftError::TooBig { .. } | NftError::Owned { .. } => None,
        };
        Self::new(kind.unwrap_or(io::ErrorKind::Other), error)
    }
}

impl From<NetlinkError> for NftError {
    fn from(error: NetlinkError) -> Self {
        Self::Netlink(error.into())
    }
}

#[cfg(test)]
mod tests {
    use nix::libc;

    use super::*;

    #[test]
    fn refusal_for_want_of_rights_keeps_its_kind_and_text_as_an_io_error() {
        let refused = || io::Error::from_raw_os_error(libc::EPERM);
        let error = io::Error::from(NftError::Netlink(refused()));
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(error.to_string(), format!("nf_tables netlink request failed: {}", refused()));
    }
}
