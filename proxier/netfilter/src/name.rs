//! Names of things in the kernel, stored inline: rule sets name hundreds of thousands.
//!
//! In: printable ASCII without blanks, up to a length that depends on the kind of thing. Out: the same text.
//! Must not know: what is named.

use std::fmt;

/// A name of at most `MAX` (at most 255) bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name<const MAX: usize> {
    bytes: [u8; MAX],
    len: u8,
}

impl<const MAX: usize> Name<MAX> {
    /// A thing of that name; `None` if the kernel would not take it for its length or for blanks in it.
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

    /// A thing whose name is known when this is compiled.
    ///
    /// # Panics
    /// At compile time, for a name the kernel would not take.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        match Self::parse(name) {
            Some(name) => name,
            None => panic!("not a name the kernel would take"),
        }
    }

    /// A family of names' common beginning and the hash that tells this one.
    #[must_use]
    pub fn hashed(prefix: &'static str, hash: [u8; 16]) -> Self {
        let mut bytes = [0; MAX];
        let start = prefix.len().min(MAX - hash.len());
        bytes[..start].copy_from_slice(&prefix.as_bytes()[..start]);
        bytes[start..start + hash.len()].copy_from_slice(&hash);
        #[allow(clippy::cast_possible_truncation)] // at most MAX
        Self { bytes, len: (start + hash.len()) as u8 }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Only printable ASCII gets in.
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
