//! The kernel structure of one xtables match or target.

/// The largest structure: `xt_sctp_info`.
const MAX: usize = 296;

/// A match or target extension: its name, revision and structure, padded to eight bytes.
#[derive(Clone)]
pub(super) struct Extension {
    pub name: &'static str,
    pub revision: u32,
    bytes: [u8; MAX],
    size: usize,
}

impl Extension {
    /// A structure of `size` bytes, padding included, all zero.
    pub fn new(name: &'static str, revision: u32, size: usize) -> Self {
        Self { name, revision, bytes: [0; MAX], size: size.min(MAX) }
    }

    /// Writes bytes at an offset.
    pub fn put(mut self, at: usize, bytes: &[u8]) -> Self {
        if let Some(place) = self.bytes[..self.size].get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
        self
    }

    /// The structure.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.size]
    }

    /// Whether the kernel's structure is this one.
    pub fn is(&self, name: &str, revision: u32, bytes: &[u8]) -> bool {
        self.name == name && self.revision == revision && self.bytes() == bytes
    }
}

/// `N` bytes of a structure; zeros beyond its end.
pub(super) fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..at + N).and_then(|part| part.try_into().ok()).unwrap_or([0; N])
}

/// A number in host byte order, of four bytes.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(array(bytes, at))
}

/// A number in host byte order, of two bytes.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes(array(bytes, at))
}

/// The NUL-terminated string in a field of `length` bytes; `None` if it is not UTF-8 or not terminated.
pub(super) fn text_at(bytes: &[u8], at: usize, length: usize) -> Option<&str> {
    let field = bytes.get(at..at + length)?;
    let end = field.iter().position(|byte| *byte == 0)?;
    std::str::from_utf8(&field[..end]).ok()
}
