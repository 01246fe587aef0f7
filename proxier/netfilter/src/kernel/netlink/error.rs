//! Netlink errors, with the extended acknowledgement of the kernel.

use std::io;

use thiserror::Error;

/// A failed netlink request.
#[derive(Debug, Error)]
pub enum NetlinkError {
    /// The kernel returned an error.
    #[error("{}{}", io::Error::from_raw_os_error(*errno), in_words(words))]
    Refused {
        /// The error number.
        errno: i32,
        /// The kernel's message (`NLMSGERR_ATTR_MSG`), empty if there is none.
        words: String,
        /// The part of the request that the kernel returned, after the netlink header; usually empty.
        shown: Vec<u8>,
    },
    /// The kernel's answer cannot be decoded.
    #[error("cannot decode the kernel's netlink answer")]
    Malformed,
    /// An attribute or message exceeds its length field.
    #[error("netlink message or attribute is too long")]
    TooLong,
    /// Every attempt to dump a table was interrupted by changes.
    #[error("the table changed during every attempt to read it: another program writes to it continuously")]
    Interrupted,
    /// The socket failed.
    #[error(transparent)]
    Socket(#[from] io::Error),
}

fn in_words(words: &str) -> String {
    if words.is_empty() { String::new() } else { format!(": {words}") }
}

impl NetlinkError {
    /// The error number, if the kernel returned one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            Self::Socket(error) => error.raw_os_error(),
            Self::Malformed | Self::TooLong | Self::Interrupted => None,
        }
    }
}

impl From<NetlinkError> for io::Error {
    fn from(error: NetlinkError) -> Self {
        match error {
            NetlinkError::Socket(error) => error,
            NetlinkError::Refused { errno, words, .. } if words.is_empty() => Self::from_raw_os_error(errno),
            NetlinkError::Refused { errno, .. } => Self::new(Self::from_raw_os_error(errno).kind(), error),
            other => Self::other(other),
        }
    }
}
