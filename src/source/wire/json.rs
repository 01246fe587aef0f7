//! Splits a stream of JSON objects into their members, without decoding them.
//!
//! Only separators are checked here: brackets and strings are counted, and the member's decoder finds malformed JSON.
//! Within a
//! member, strings, arrays and objects must begin where one may: otherwise a truncated event would swallow all that
//! follow it.

use super::{MAX_OBJECT_BYTES, WireError};

/// A part of a stream of JSON objects.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum JsonPart<'a> {
    /// A member of the outermost object: its name and its JSON text.
    Member(&'a str, &'a [u8]),
    /// An element of the array that is split.
    Element(&'a [u8]),
    /// The end of an outermost object.
    End,
}

/// The state of a [`Splitter`]: what may come next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SplitterState {
    /// An object, or the end of the stream.
    Outside,
    /// Only the end of the stream.
    Done,
    /// A member or the end of the object.
    FirstName,
    Name,
    Colon,
    Value,
    AfterValue,
    /// An element or the end of the array.
    FirstElement,
    Element,
    AfterElement,
}

/// A value whose end is not yet known.
#[derive(Debug)]
enum Token {
    /// A number, `true`, `false` or `null`.
    Scalar,
    /// A string, an array or an object.
    Delimited {
        depth: usize,
        in_string: bool,
        escaped: bool,
        /// The last byte outside of strings that is no space; 0 at the beginning.
        previous: u8,
    },
}

impl Token {
    /// A token that begins with this byte, which is still to be scanned.
    fn beginning(byte: u8) -> Option<Self> {
        match byte {
            b'"' | b'{' | b'[' => Some(Self::Delimited { depth: 0, in_string: false, escaped: false, previous: 0 }),
            b'-' | b'0'..=b'9' | b't' | b'f' | b'n' => Some(Self::Scalar),
            _ => None,
        }
    }

    /// The offset behind the token's end, if that is among these bytes, which follow those scanned before.
    fn end(&mut self, bytes: &[u8]) -> Result<Option<usize>, WireError> {
        let Self::Delimited { depth, in_string, escaped, previous } = self else {
            return Ok(bytes.iter().position(|byte| matches!(byte, b',' | b'}' | b']') || is_space(*byte)));
        };
        let mut at = 0;
        while at < bytes.len() {
            if *escaped {
                *escaped = false;
            } else if *in_string {
                let Some(special) = bytes[at..].iter().position(|byte| matches!(byte, b'"' | b'\\')) else {
                    return Ok(None);
                };
                at += special;
                if bytes[at] == b'\\' {
                    *escaped = true;
                } else {
                    *in_string = false;
                    if *depth == 0 {
                        return Ok(Some(at + 1));
                    }
                }
            } else {
                let byte = bytes[at];
                let may_begin = match byte {
                    b'"' => matches!(previous, 0 | b'{' | b'[' | b',' | b':'),
                    b'{' | b'[' => matches!(previous, 0 | b'[' | b',' | b':'),
                    _ => true,
                };
                if !may_begin {
                    return Err(unexpected(byte));
                }
                match byte {
                    b'"' => *in_string = true,
                    b'{' | b'[' => *depth += 1,
                    b'}' | b']' if *depth <= 1 => return Ok(Some(at + 1)),
                    b'}' | b']' => *depth -= 1,
                    _ => {}
                }
                if !is_space(byte) {
                    *previous = byte;
                }
            }
            at += 1;
        }
        Ok(None)
    }
}

/// Splits JSON objects that follow one another.
#[derive(Debug)]
pub(super) struct Splitter {
    /// The member whose elements are split, of the only object in the stream.
    array: Option<&'static str>,
    state: SplitterState,
    token: Option<Token>,
    /// The bytes of the token from earlier chunks.
    buffer: Vec<u8>,
    name: String,
}

impl Splitter {
    /// For a stream of any number of objects.
    pub fn objects() -> Self {
        Self { array: None, state: SplitterState::Outside, token: None, buffer: Vec::new(), name: String::new() }
    }

    /// For one object whose member of that name is an array of any length.
    pub fn elements_of(array: &'static str) -> Self {
        Self { array: Some(array), ..Self::objects() }
    }

    /// Whether the stream may end here: not inside of an object.
    pub fn is_between_objects(&self) -> bool {
        self.state == SplitterState::Outside
    }

    /// Whether the only object is complete.
    pub fn is_done(&self) -> bool {
        self.state == SplitterState::Done
    }

    /// Takes the next bytes.
    pub fn push(
        &mut self,
        chunk: &[u8],
        take: &mut dyn FnMut(JsonPart<'_>) -> Result<(), WireError>,
    ) -> Result<(), WireError> {
        let mut at = 0;
        while at < chunk.len() {
            let rest = &chunk[at..];
            if let Some(token) = &mut self.token {
                let Some(end) = token.end(rest)? else {
                    if self.buffer.len() + rest.len() > MAX_OBJECT_BYTES {
                        return Err(WireError::TooLarge);
                    }
                    self.buffer.extend_from_slice(rest);
                    return Ok(());
                };
                at += end;
                self.token = None;
                if self.buffer.is_empty() {
                    self.complete(&rest[..end], take)?;
                } else {
                    let mut buffer = std::mem::take(&mut self.buffer);
                    buffer.extend_from_slice(&rest[..end]);
                    self.complete(&buffer, take)?;
                    buffer.clear();
                    self.buffer = buffer;
                }
            } else if is_space(rest[0]) || self.separator(rest[0], take)? {
                at += 1;
            } else {
                self.token = Some(Token::beginning(rest[0]).ok_or_else(|| unexpected(rest[0]))?);
            }
        }
        Ok(())
    }

    /// Consumes a separator. Returns false if the byte begins a token instead.
    fn separator(
        &mut self,
        byte: u8,
        take: &mut dyn FnMut(JsonPart<'_>) -> Result<(), WireError>,
    ) -> Result<bool, WireError> {
        self.state = match (self.state, byte) {
            (SplitterState::Outside, b'{') => SplitterState::FirstName,
            (SplitterState::FirstName | SplitterState::AfterValue, b'}') => {
                take(JsonPart::End)?;
                if self.array.is_some() { SplitterState::Done } else { SplitterState::Outside }
            }
            (SplitterState::FirstName | SplitterState::Name, b'"') => return Ok(false),
            (SplitterState::Colon, b':') => SplitterState::Value,
            (SplitterState::Value, b'[') if self.array == Some(&self.name) => SplitterState::FirstElement,
            (SplitterState::AfterValue, b',') => SplitterState::Name,
            (SplitterState::FirstElement | SplitterState::AfterElement, b']') => SplitterState::AfterValue,
            (SplitterState::AfterElement, b',') => SplitterState::Element,
            (SplitterState::Value | SplitterState::FirstElement | SplitterState::Element, _) => return Ok(false),
            _ => return Err(unexpected(byte)),
        };
        Ok(true)
    }

    fn complete(
        &mut self,
        token: &[u8],
        take: &mut dyn FnMut(JsonPart<'_>) -> Result<(), WireError>,
    ) -> Result<(), WireError> {
        self.state = match self.state {
            SplitterState::FirstName | SplitterState::Name => {
                self.name = serde_json::from_slice(token).map_err(|error| malformed(&error))?;
                SplitterState::Colon
            }
            SplitterState::Value => {
                take(JsonPart::Member(&self.name, token))?;
                SplitterState::AfterValue
            }
            _ => {
                take(JsonPart::Element(token))?;
                SplitterState::AfterElement
            }
        };
        Ok(())
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

fn unexpected(byte: u8) -> WireError {
    WireError::Malformed("JSON", format!("unexpected {:?}", char::from(byte)))
}

/// The error of a member that is not JSON.
pub(super) fn malformed(error: &serde_json::Error) -> WireError {
    WireError::Malformed("JSON", error.to_string())
}
