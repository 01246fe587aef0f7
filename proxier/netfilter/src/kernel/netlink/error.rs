//! What can go wrong with netlink.
//!
//! In: error numbers, and the words the kernel may add to them. Out: one error type that prints both.
//! Must not know: what was asked.

use std::io;

use thiserror::Error;

/// Why a request came to nothing.
#[derive(Debug, Error)]
pub enum NetlinkError {
    /// The kernel said no.
    #[error("{}{}", io::Error::from_raw_os_error(*errno), in_words(words))]
    Refused {
        /// Its error number.
        errno: i32,
        /// Its own words (`NLMSGERR_ATTR_MSG`), if it had any.
        words: String,
        /// What it shows of the request after the netlink header; mostly nothing.
        shown: Vec<u8>,
    },
    /// The kernel's answer cannot be read.
    #[error("the kernel's netlink answer was cut off or garbled")]
    Malformed,
    /// An attribute or message is longer than its length field can say.
    #[error("a netlink attribute is too long")]
    TooLong,
    /// Each try to read a table to its end was interrupted by changes to it.
    #[error("the kernel's table changed whenever it was read: something else writes to it all the time")]
    Interrupted,
    /// The socket failed.
    #[error(transparent)]
    Socket(#[from] io::Error),
}

fn in_words(words: &str) -> String {
    if words.is_empty() { String::new() } else { format!(": {words}") }
}

impl NetlinkError {
    /// The kernel's error number, if it was the kernel.
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
