//! Kubernetes' envelope around protobuf messages, and the frames of a watch.
//!
//! A response begins with the four bytes `k8s\0`, then `runtime.Unknown`: the API version and kind (1), the message
//! (2).
//! A frame of a watch is a big-endian length of 4 bytes and a `metav1.WatchEvent` without envelope; the object in it
//! has one.

use proxier::protobuf::{self, Fault, Message, Reader, Value};

use super::{MAX_OBJECT_BYTES, WireError};

/// The first bytes of an enveloped message.
pub(super) const MAGIC: [u8; 4] = *b"k8s\0";

/// `runtime.TypeMeta`
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct TypeMeta {
    pub api_version: String,
    pub kind: String,
}

impl Message for TypeMeta {
    fn field(&mut self, number: u32, value: Value<'_>) -> Result<(), Fault> {
        match number {
            1 => value.text()?.clone_into(&mut self.api_version),
            2 => value.text()?.clone_into(&mut self.kind),
            _ => {}
        }
        Ok(())
    }
}

/// `runtime.Unknown`
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Envelope<'a> {
    pub type_meta: TypeMeta,
    pub raw: &'a [u8],
}

impl<'a> Envelope<'a> {
    /// Opens the envelope of a complete message.
    pub fn open(bytes: &'a [u8]) -> Result<Self, String> {
        let unknown = bytes.strip_prefix(&MAGIC).ok_or("there is no envelope: it does not begin with k8s\\0")?;
        let mut envelope = Self::default();
        let mut reader = Reader::new(unknown);
        while let Some((number, value)) = reader.field().map_err(|error| error.to_string())? {
            let taken = match number {
                1 => value.bytes().and_then(|bytes| protobuf::merge(&mut envelope.type_meta, bytes)),
                2 => value.bytes().map(|bytes| envelope.raw = bytes),
                _ => Ok(()),
            };
            taken.map_err(|fault| fault.to_string())?;
        }
        Ok(envelope)
    }
}

/// `metav1.WatchEvent`
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Event<'a> {
    pub name: &'a str,
    /// An object in its envelope.
    pub object: &'a [u8],
}

impl<'a> Event<'a> {
    pub fn decode(bytes: &'a [u8]) -> Result<Self, Fault> {
        let mut event = Self::default();
        let mut reader = Reader::new(bytes);
        while let Some((number, value)) = reader.field()? {
            match number {
                1 => event.name = value.text()?,
                2 => {
                    // RawExtension, of which only field 1 exists.
                    let mut reader = Reader::new(value.bytes()?);
                    while let Some((number, value)) = reader.field()? {
                        if number == 1 {
                            event.object = value.bytes()?;
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(event)
    }
}

/// Splits a watch into frames.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// The received part of the frame, with its length.
    buffer: Vec<u8>,
}

impl Frames {
    /// Whether the stream may end here: not inside of a frame.
    pub fn is_between_frames(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Handles the next bytes.
    pub fn push(&mut self, chunk: &[u8], take: &mut dyn FnMut(&[u8])) -> Result<(), WireError> {
        let mut rest = chunk;
        while !self.buffer.is_empty() {
            // First the length, then as much as it says.
            let missing = length(&self.buffer)?.map_or(4, |length| 4 + length) - self.buffer.len();
            let (next, after) = rest.split_at(missing.min(rest.len()));
            self.buffer.extend_from_slice(next);
            rest = after;
            if next.len() < missing {
                return Ok(());
            }
            if length(&self.buffer)?.is_some_and(|length| self.buffer.len() == 4 + length) {
                take(&self.buffer[4..]);
                self.buffer.clear();
            }
        }
        while let Some(length) = length(rest)? {
            let Some((frame, after)) = rest[4..].split_at_checked(length) else { break };
            take(frame);
            rest = after;
        }
        self.buffer.extend_from_slice(rest);
        Ok(())
    }
}

/// The length of the frame that begins here, once it is known.
fn length(frame: &[u8]) -> Result<Option<usize>, WireError> {
    let Some(length) = frame.first_chunk() else { return Ok(None) };
    match usize::try_from(u32::from_be_bytes(*length)) {
        Ok(length) if length <= MAX_OBJECT_BYTES => Ok(Some(length)),
        _ => Err(WireError::TooLarge),
    }
}

/// The error of bytes that are not protobuf.
pub(super) fn malformed(error: impl ToString) -> WireError {
    WireError::Malformed("protobuf", error.to_string())
}
