//! A failure to read the kernel's counters.

use std::fmt;
use std::io;

use netfilter::IpFamily;

/// A failure to read counters.
#[derive(Debug)]
pub struct ReadError {
    /// The object and the cause.
    message: String,
    /// Whether the kernel refused for want of rights: trying again is of no use.
    pub is_denied: bool,
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hint = if self.is_denied { "; run it as root in the host's network namespace" } else { "" };
        write!(f, "{}{hint}", self.message)
    }
}

impl ReadError {
    /// A failure to read an object of a family.
    pub fn new(family: IpFamily, object: &str, error: impl fmt::Display, is_denied: bool) -> Self {
        Self { message: format!("cannot read {family} {object}: {error}"), is_denied }
    }

    /// The same for an error of the kernel.
    pub fn of_io(family: IpFamily, object: &str, error: &io::Error) -> Self {
        Self::new(family, object, error, error.kind() == io::ErrorKind::PermissionDenied)
    }
}

impl From<ReadError> for String {
    fn from(error: ReadError) -> Self {
        error.to_string()
    }
}
