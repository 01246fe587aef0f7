//! A zero-copy reader of protobuf messages (proto2 wire format).
//!
//! Kubernetes uses few features: strings, integers, booleans and messages, no extensions or groups. A message type
//! implements [`Message`]; unknown fields are skipped without copying.

use std::fmt;

use thiserror::Error;

/// Why bytes are not a valid protobuf message.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WireError {
    /// The message ends inside a field.
    #[error("the message is truncated")]
    Truncated,
    /// A varint is longer than 10 bytes or does not fit into 64 bits.
    #[error("a varint does not fit into 64 bits")]
    Varint,
    /// A field number is not in 1..2^29.
    #[error("{0} is not a field number")]
    FieldNumber(u64),
    /// Groups (wire types 3 and 4) are not supported; 6 and 7 do not exist.
    #[error("field {0} has wire type {1}")]
    WireType(u32, u8),
    /// A string is not UTF-8.
    #[error("field {0} is not UTF-8")]
    Utf8(String),
}

/// Why a message could not be decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The bytes are not a message.
    Wire(WireError),
    /// A field has an invalid value.
    Field {
        /// The field's JSON path: `spec.ports[0].port`.
        path: String,
        /// The error.
        reason: String,
    },
}

impl From<WireError> for Fault {
    fn from(error: WireError) -> Self {
        Self::Wire(error)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wire(error) => error.fmt(f),
            Self::Field { path, reason } => write!(f, "{path}: {reason}"),
        }
    }
}

impl Fault {
    /// Prefixes the path with the name of the surrounding field.
    #[must_use]
    pub fn within(self, field: &str) -> Self {
        let inside = |path: String| if path.is_empty() { field.to_owned() } else { format!("{field}.{path}") };
        match self {
            Self::Field { path, reason } => Self::Field { path: inside(path), reason },
            Self::Wire(WireError::Utf8(path)) => Self::Wire(WireError::Utf8(inside(path))),
            wire @ Self::Wire(_) => wire,
        }
    }
}

/// The wire value of one field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// Integers and booleans.
    Varint(u64),
    /// A fixed-size number of 32 or 64 bits, which no decoded Kubernetes message has.
    Fixed,
    /// Strings, bytes and messages.
    Bytes(&'a [u8]),
}

impl<'a> Value<'a> {
    /// The bytes of a length-delimited field.
    ///
    /// # Errors
    /// If the field has another wire type.
    pub fn bytes(self) -> Result<&'a [u8], Fault> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            _ => Err(self.not("a length-delimited field")),
        }
    }

    /// A string.
    ///
    /// # Errors
    /// If the field has another wire type or is not UTF-8.
    pub fn text(self) -> Result<&'a str, Fault> {
        std::str::from_utf8(self.bytes()?).map_err(|_| WireError::Utf8(String::new()).into())
    }

    /// A boolean.
    ///
    /// # Errors
    /// If the field has another wire type.
    pub fn boolean(self) -> Result<bool, Fault> {
        match self {
            Self::Varint(value) => Ok(value != 0),
            _ => Err(self.not("a boolean")),
        }
    }

    /// An `int32` that must fit into `T`; `name` names the expected range in the error.
    ///
    /// # Errors
    /// If the field has another wire type or does not fit.
    pub fn number<T: TryFrom<i32>>(self, name: &str) -> Result<T, Fault> {
        let Self::Varint(value) = self else { return Err(self.not(name)) };
        // protobuf decodes an int32 from the low 32 bits.
        #[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)]
        let value = value as i32;
        let reason = || format!("invalid value: integer `{value}`, expected {name}");
        T::try_from(value).map_err(|_| Fault::Field { path: String::new(), reason: reason() })
    }

    fn not(self, expected: &str) -> Fault {
        let found = match self {
            Self::Varint(_) => "a varint",
            Self::Fixed => "a fixed-size number",
            Self::Bytes(_) => "a length-delimited field",
        };
        Fault::Field { path: String::new(), reason: format!("invalid type: {found}, expected {expected}") }
    }
}

/// Reads the fields of a message.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Creates a reader at the first field of a message.
    #[must_use]
    pub fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    /// The next field's number and value; `None` at the end of the message.
    ///
    /// # Errors
    /// If the rest is not a field.
    #[inline]
    pub fn field(&mut self) -> Result<Option<(u32, Value<'a>)>, WireError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let (number, wire_type) = tag(self.varint()?)?;
        let value = match wire_type {
            0 => Value::Varint(self.varint()?),
            1 => self.take(8).map(|_| Value::Fixed)?,
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.take(usize::try_from(length).map_err(|_| WireError::Truncated)?)?)
            }
            5 => self.take(4).map(|_| Value::Fixed)?,
            other => return Err(WireError::WireType(number, other)),
        };
        Ok(Some((number, value)))
    }

    #[inline]
    fn varint(&mut self) -> Result<u64, WireError> {
        let (value, length) = varint(self.rest)?.ok_or(WireError::Truncated)?;
        self.rest = &self.rest[length..];
        Ok(value)
    }

    #[inline]
    fn take(&mut self, length: usize) -> Result<&'a [u8], WireError> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(WireError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }
}

/// Splits a field's tag into the field's number and wire type.
///
/// # Errors
/// If there is no such field number.
pub fn tag(tag: u64) -> Result<(u32, u8), WireError> {
    let number = tag >> 3;
    match u32::try_from(number) {
        #[allow(clippy::cast_possible_truncation)] // three bits
        Ok(number @ 1..0x2000_0000) => Ok((number, (tag & 7) as u8)),
        _ => Err(WireError::FieldNumber(number)),
    }
}

/// Decodes a varint and its length in bytes; `None` if the bytes end before it does.
///
/// # Errors
/// If it does not fit into 64 bits.
#[inline]
pub fn varint(bytes: &[u8]) -> Result<Option<(u64, usize)>, WireError> {
    let mut value = 0;
    for (at, &byte) in bytes.iter().take(10).enumerate() {
        if at == 9 && byte > 1 {
            return Err(WireError::Varint);
        }
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte < 0x80 {
            return Ok(Some((value, at + 1)));
        }
    }
    Ok(None)
}

/// The position of the first field of a buffer, which may end beyond it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldSpan {
    /// The field's number.
    pub number: u32,
    /// Its wire type.
    pub wire_type: u8,
    /// The offset of its value, after the tag and any length.
    pub start: usize,
    /// The offset of the next field.
    pub end: usize,
}

impl FieldSpan {
    /// Locates the first field; `None` if the buffer ends before its length is known.
    ///
    /// # Errors
    /// If it is not a field.
    pub fn of(buffer: &[u8]) -> Result<Option<Self>, WireError> {
        let Some((value, start)) = varint(buffer)? else { return Ok(None) };
        let (number, wire_type) = tag(value)?;
        let length = varint(&buffer[start..]);
        let (start, end) = match wire_type {
            0 => match length? {
                Some((_, length)) => (start, start + length),
                None => return Ok(None),
            },
            1 => (start, start + 8),
            2 => match length? {
                Some((length, taken)) => {
                    let length = usize::try_from(length).map_err(|_| WireError::Truncated)?;
                    (start + taken, (start + taken).checked_add(length).ok_or(WireError::Truncated)?)
                }
                None => return Ok(None),
            },
            5 => (start, start + 4),
            other => return Err(WireError::WireType(number, other)),
        };
        Ok(Some(Self { number, wire_type, start, end }))
    }
}

/// A message that is decoded field by field.
pub trait Message {
    /// Decodes one field and ignores unknown ones.
    ///
    /// Of a repeated scalar field the last value counts, messages are merged, and lists are extended.
    ///
    /// # Errors
    /// If the field has an invalid value.
    fn field(&mut self, number: u32, value: Value<'_>) -> Result<(), Fault>;
}

/// Decodes a message into an existing one.
///
/// # Errors
/// If the bytes are not a message, or a field has an invalid value.
pub fn merge<M: Message>(message: &mut M, bytes: &[u8]) -> Result<(), Fault> {
    let mut reader = Reader::new(bytes);
    while let Some((number, value)) = reader.field()? {
        message.field(number, value)?;
    }
    Ok(())
}

/// Decodes a message.
///
/// # Errors
/// If the bytes are not a message, or a field has a value that it cannot have.
pub fn decode<M: Message + Default>(bytes: &[u8]) -> Result<M, Fault> {
    let mut message = M::default();
    merge(&mut message, bytes)?;
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(bytes: &[u8]) -> Result<Vec<(u32, Value<'_>)>, WireError> {
        let mut reader = Reader::new(bytes);
        std::iter::from_fn(|| reader.field().transpose()).collect()
    }

    #[test]
    fn every_wire_type_when_known_is_read_and_others_are_refused() {
        let message = [8, 150, 1, 18, 1, b'a', 25, 1, 2, 3, 4, 5, 6, 7, 8, 37, 1, 2, 3, 4];
        let expected = [(1, Value::Varint(150)), (2, Value::Bytes(b"a")), (3, Value::Fixed), (4, Value::Fixed)];
        assert_eq!(fields(&message), Ok(expected.to_vec()));
        for wire_type in [3, 4, 6, 7] {
            assert_eq!(fields(&[8 | wire_type]), Err(WireError::WireType(1, wire_type)));
        }
    }

    #[test]
    fn a_message_when_cut_anywhere_inside_a_field_is_truncated() {
        let message = [18, 3, b'a', b'b', b'c'];
        for end in 1..message.len() {
            assert_eq!(fields(&message[..end]), Err(WireError::Truncated), "{end}");
        }
        assert_eq!(fields(&[18, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1]), Err(WireError::Truncated));
    }

    #[test]
    fn varints_when_longer_than_64_bits_are_refused() {
        let longest = [255, 255, 255, 255, 255, 255, 255, 255, 255, 1];
        assert_eq!(varint(&longest), Ok(Some((u64::MAX, 10))));
        let mut too_long = longest;
        too_long[9] = 2;
        assert_eq!(varint(&too_long), Err(WireError::Varint));
        assert_eq!(varint(&longest[..9]), Ok(None));
    }

    #[test]
    fn field_numbers_when_out_of_range_are_refused() {
        assert_eq!(fields(&[0, 0]), Err(WireError::FieldNumber(0)));
        assert_eq!(tag(0x2000_0000 << 3), Err(WireError::FieldNumber(0x2000_0000)));
        assert_eq!(tag(u64::MAX), Err(WireError::FieldNumber(u64::MAX >> 3)));
    }

    #[test]
    fn negative_numbers_when_expected_unsigned_are_a_fault_of_the_field() {
        // An int32 is sign-extended to ten bytes.
        assert_eq!(Value::Varint(u64::MAX).number::<i32>("i32"), Ok(-1));
        let fault = Value::Varint(u64::MAX)
            .number::<u16>("a number from 0 to 65535")
            .expect_err("it is negative")
            .within("port");
        assert_eq!(fault.to_string(), "port: invalid value: integer `-1`, expected a number from 0 to 65535");
    }
}
