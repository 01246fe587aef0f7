//! Fixed-capacity names of kernel objects.
//!
//! A name is stored inline, because a rule set may contain hundreds of thousands of them.

use std::fmt;

/// A name of at most `MAX` bytes (`MAX` is at most 255).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name<const MAX: usize> {
    bytes: [u8; MAX],
    len: u8,
}

impl<const MAX: usize> Name<MAX> {
    /// Parses a name; `None` if it is empty, too long, or not printable ASCII without spaces.
    #[must_use]
    pub const fn parse(name: &str) -> Option<Self> {
        let source = name.as_bytes();
        if source.is_empty() || source.len() > MAX {
            return None;
        }
        let mut bytes = [0; MAX];
        let mut i = 0;
        while i < source.len() {
            if source[i] <= b' ' || source[i] >= 0x7f {
                return None;
            }
            bytes[i] = source[i];
            i += 1;
        }
        #[allow(clippy::cast_possible_truncation)] // at most MAX
        Some(Self { bytes, len: source.len() as u8 })
    }

    /// A name known at compile time.
    ///
    /// # Panics
    /// At compile time, if the kernel would reject the name.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        match Self::parse(name) {
            Some(name) => name,
            None => panic!("not a name the kernel would take"),
        }
    }

    /// A name of a prefix and a hash. A prefix that leaves no room for the hash is truncated.
    #[must_use]
    pub fn hashed(prefix: &'static str, hash: [u8; 16]) -> Self {
        let mut bytes = [0; MAX];
        let start = prefix.len().min(MAX - hash.len());
        bytes[..start].copy_from_slice(&prefix.as_bytes()[..start]);
        bytes[start..start + hash.len()].copy_from_slice(&hash);
        #[allow(clippy::cast_possible_truncation)] // at most MAX
        Self { bytes, len: (start + hash.len()) as u8 }
    }

    /// The name as a string.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // parse() accepts only printable ASCII.
        std::str::from_utf8(&self.bytes[..usize::from(self.len)]).unwrap_or_default()
    }
}

impl<const MAX: usize> fmt::Display for Name<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl<const MAX: usize> fmt::Debug for Name<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
