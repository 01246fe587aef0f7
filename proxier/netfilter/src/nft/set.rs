//! Sets, maps and elements.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::field::{Field, Fields};
use super::rule::{Duration, Verdict};
use super::{Name, Quoted, write_comment};

/// The value of a map element.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Value {
    /// A verdict.
    Verdict(Verdict),
    /// Data, in the map's value fields.
    Data(Bytes),
}

/// An encoded key or value, with each field padded to 4 bytes.
pub type Bytes = Box<[u8]>;

/// The longest key or value in bytes (`NFT_DATA_VALUE_MAXLEN`).
const KEY_MAX: usize = 64;

/// Builds a key or value field by field, and truncates it at the kernel's limit.
#[derive(Clone, Debug)]
pub struct Key {
    bytes: [u8; KEY_MAX],
    length: usize,
}

impl Default for Key {
    fn default() -> Self {
        Self { bytes: [0; KEY_MAX], length: 0 }
    }
}

impl From<&Bytes> for Key {
    /// Continues after the fields of `bytes`.
    fn from(bytes: &Bytes) -> Self {
        Self::default().and(bytes)
    }
}

impl Key {
    fn and(mut self, field: &[u8]) -> Self {
        let end = (self.length + field.len()).min(KEY_MAX);
        self.bytes[self.length..end].copy_from_slice(&field[..end - self.length]);
        self.length = end;
        self
    }

    /// Appends an address.
    #[must_use]
    pub fn address(self, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => self.and(&address.octets()),
            IpAddr::V6(address) => self.and(&address.octets()),
        }
    }

    /// Appends a transport protocol number.
    #[must_use]
    pub fn protocol(self, protocol: u8) -> Self {
        self.and(&[protocol, 0, 0, 0])
    }

    /// Appends a port.
    #[must_use]
    pub fn port(self, port: u16) -> Self {
        let [high, low] = port.to_be_bytes();
        self.and(&[high, low, 0, 0])
    }

    /// Appends an address and a port.
    #[must_use]
    pub fn socket(self, address: SocketAddr) -> Self {
        self.address(address.ip()).port(address.port())
    }

    /// Appends a 32-bit number in host byte order.
    #[must_use]
    pub fn number(self, number: u32) -> Self {
        self.and(&number.to_ne_bytes())
    }

    /// The encoded bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// The encoded bytes, as an owned value.
    #[must_use]
    pub fn build(self) -> Bytes {
        self.bytes().into()
    }
}

/// A set, or a map if `value` is set.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Set {
    /// Its name.
    pub name: Name,
    /// The fields of the keys.
    pub key: Vec<Field>,
    /// The fields of the values; empty for verdicts.
    pub value: Option<Vec<Field>>,
    /// `flags interval`: keys may be intervals.
    pub interval: bool,
    /// `flags dynamic,timeout`: rules add elements that expire.
    pub dynamic: bool,
    /// `size`: the maximum number of elements.
    pub size: Option<u32>,
    /// `counter`: every element counts the packets that match it.
    pub counter: bool,
    /// `comment`
    pub comment: Option<Name>,
}

impl Set {
    /// A set of keys.
    #[must_use]
    pub fn of(name: impl Into<Name>, key: impl Into<Vec<Field>>) -> Self {
        let (name, key) = (name.into(), key.into());
        Self { name, key, value: None, interval: false, dynamic: false, size: None, counter: false, comment: None }
    }

    /// A map from keys to verdicts.
    #[must_use]
    pub fn verdicts(name: impl Into<Name>, key: impl Into<Vec<Field>>) -> Self {
        Self { value: Some(Vec::new()), ..Self::of(name, key) }
    }

    /// A map from keys to values.
    #[must_use]
    pub fn map(name: impl Into<Name>, key: impl Into<Vec<Field>>, value: impl Into<Vec<Field>>) -> Self {
        Self { value: Some(value.into()), ..Self::of(name, key) }
    }

    /// The set with a comment.
    #[must_use]
    pub fn comment(self, text: &str) -> Self {
        Self { comment: Some(text.into()), ..self }
    }

    /// The set with a counter in each element.
    #[must_use]
    pub fn counting(self) -> Self {
        Self { counter: true, ..self }
    }

    /// `set` or `map`.
    #[must_use]
    pub fn keyword(&self) -> &'static str {
        if self.value.is_some() { "map" } else { "set" }
    }

    /// Whether it is a map to verdicts.
    #[must_use]
    pub fn is_verdict_map(&self) -> bool {
        self.value.as_ref().is_some_and(Vec::is_empty)
    }

    /// Whether a definition needs `typeof` instead of `type`.
    #[must_use]
    pub fn uses_typeof(&self) -> bool {
        self.key.iter().chain(self.value.iter().flatten()).any(|field| field.type_name().is_none())
    }

    /// The length of concatenated fields in bytes.
    #[must_use]
    pub fn length(fields: &[Field]) -> usize {
        fields.iter().map(|field| field.padded()).sum()
    }

    fn types(&self, f: &mut fmt::Formatter<'_>, fields: &[Field]) -> fmt::Result {
        if self.uses_typeof() {
            return write!(f, "{}", Fields(fields));
        }
        for (at, field) in fields.iter().enumerate() {
            write!(f, "{}{}", if at > 0 { " . " } else { "" }, field.type_name().unwrap_or_default())?;
        }
        Ok(())
    }
}

/// The definition without braces, one line for each part.
impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.uses_typeof() { "\t\ttypeof " } else { "\t\ttype " })?;
        self.types(f, &self.key)?;
        match &self.value {
            Some(fields) if fields.is_empty() => f.write_str(" : verdict")?,
            Some(fields) => {
                f.write_str(" : ")?;
                self.types(f, fields)?;
            }
            None => {}
        }
        writeln!(f)?;
        if let Some(size) = self.size {
            writeln!(f, "\t\tsize {size}")?;
        }
        match (self.interval, self.dynamic) {
            (true, false) => writeln!(f, "\t\tflags interval")?,
            (false, true) => writeln!(f, "\t\tflags dynamic,timeout")?,
            (true, true) => writeln!(f, "\t\tflags interval,dynamic,timeout")?,
            (false, false) => {}
        }
        if self.counter {
            writeln!(f, "\t\tcounter")?;
        }
        write_comment(f, self.comment.as_deref())
    }
}

/// An element of a set or map.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Element {
    /// The key, or the first key of an interval.
    pub key: Bytes,
    /// The last key of an interval.
    pub end: Option<Bytes>,
    /// The value of a map element.
    pub value: Option<Value>,
    /// `comment`
    pub comment: Option<Name>,
    /// `timeout` in seconds.
    pub timeout: Option<u32>,
}

impl Element {
    /// An element of a set.
    #[must_use]
    pub fn member(key: Bytes) -> Self {
        Self { key, end: None, value: None, comment: None, timeout: None }
    }

    /// An element of a verdict map.
    #[must_use]
    pub fn verdict(key: Bytes, verdict: Verdict) -> Self {
        Self { value: Some(Value::Verdict(verdict)), ..Self::member(key) }
    }

    /// An element of a map.
    #[must_use]
    pub fn data(key: Bytes, value: Bytes) -> Self {
        Self { value: Some(Value::Data(value)), ..Self::member(key) }
    }

    /// The element in nft syntax, as an element of `set`.
    #[must_use]
    pub fn of<'a>(&'a self, set: &'a Set) -> impl fmt::Display + 'a {
        Printed { element: self, set }
    }

    /// The key in nft syntax, as a key of `set`.
    #[must_use]
    pub fn key_of<'a>(&'a self, set: &'a Set) -> impl fmt::Display + 'a {
        PrintedKey { element: self, set }
    }
}

struct Printed<'a> {
    element: &'a Element,
    set: &'a Set,
}

struct PrintedKey<'a> {
    element: &'a Element,
    set: &'a Set,
}

impl fmt::Display for PrintedKey<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut at = 0;
        for (nth, field) in self.set.key.iter().enumerate() {
            f.write_str(if nth > 0 { " . " } else { "" })?;
            let range = at..at + field.width();
            // A key of the wrong length is printed too, for the error about it.
            let first = self.element.key.get(range.clone()).unwrap_or_default();
            let last = self.element.end.as_ref().map_or(first, |end| end.get(range).unwrap_or_default());
            match prefix_length(first, last) {
                _ if first == last => field.write_value(f, first)?,
                Some(length) => {
                    field.write_value(f, first)?;
                    write!(f, "/{length}")?;
                }
                None => {
                    field.write_value(f, first)?;
                    f.write_str("-")?;
                    field.write_value(f, last)?;
                }
            }
            at += field.padded();
        }
        Ok(())
    }
}

/// The prefix length of a range; `None` if the range is not a network.
pub(super) fn prefix_length(first: &[u8], last: &[u8]) -> Option<u32> {
    let mut length = 0;
    let mut rest = first.iter().zip(last);
    for (a, b) in rest.by_ref() {
        if a == b {
            length += 8;
            continue;
        }
        let differing = (a ^ b).count_ones();
        let is_network = a ^ b == (0xff_u8 >> (8 - differing)) && a & (a ^ b) == 0;
        return (is_network && rest.all(|(a, b)| *a == 0 && *b == 0xff)).then_some(length + 8 - differing);
    }
    Some(length)
}

impl fmt::Display for Printed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { element, set } = self;
        write!(f, "{}", PrintedKey { element, set })?;
        if let Some(seconds) = element.timeout {
            write!(f, " timeout {}", Duration(seconds))?;
        }
        if let Some(comment) = &element.comment {
            write!(f, " comment {}", Quoted(comment))?;
        }
        match &element.value {
            None => Ok(()),
            Some(Value::Verdict(verdict)) => write!(f, " : {verdict}"),
            Some(Value::Data(value)) => {
                f.write_str(" : ")?;
                let mut at = 0;
                for (nth, field) in set.value.iter().flatten().enumerate() {
                    f.write_str(if nth > 0 { " . " } else { "" })?;
                    field.write_value(f, value.get(at..at + field.width()).unwrap_or_default())?;
                    at += field.padded();
                }
                Ok(())
            }
        }
    }
}
