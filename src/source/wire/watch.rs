//! Watches, decoded event by event.

use proxier::track::{Bookmark, DecodeError, Kind, Object};

use super::json::{JsonPart, Splitter};
use super::protobuf::{Envelope, Event, Frames};
use super::status::{Status, decode_status};
use super::{Encoding, WireError};

/// An event of a watch.
#[derive(Debug)]
pub enum WatchEvent {
    /// An object exists: a new one, or one of a streamed list.
    Added(Object),
    /// An object has changed.
    Modified(Object),
    /// An object was deleted; this was its last state.
    Deleted(Object),
    /// A resource version from which a watch can continue.
    Bookmark {
        /// The version.
        resource_version: String,
        /// Whether all objects that existed when a streamed list began have arrived.
        initial_events_end: bool,
    },
    /// The API server ends the watch.
    Error(Status),
    /// An event that could not be decoded. It was complete, so the watch continues after it.
    Unreadable(DecodeError),
}

/// Decodes the response to a watch request.
#[derive(Debug)]
pub struct WatchDecoder {
    kind: Kind,
    decoder: Decoder,
}

#[derive(Debug)]
enum Decoder {
    Json(Splitter, Box<PartialEvent>),
    Protobuf(Frames),
}

/// The members of a JSON event that have arrived.
#[derive(Debug, Default)]
struct PartialEvent {
    name: Option<String>,
    /// The object, if it came before the name.
    object: Vec<u8>,
    event: Option<WatchEvent>,
}

impl WatchDecoder {
    /// A decoder for a watch of that kind.
    #[must_use]
    pub fn new(kind: Kind, encoding: Encoding) -> Self {
        let decoder = match encoding {
            Encoding::Json => Decoder::Json(Splitter::objects(), Box::default()),
            Encoding::Protobuf => Decoder::Protobuf(Frames::default()),
        };
        Self { kind, decoder }
    }

    /// Decodes the next bytes of the response; `take` receives each event that they complete.
    ///
    /// # Errors
    /// The start of the next event is unknown.
    pub fn push(&mut self, chunk: &[u8], take: &mut dyn FnMut(WatchEvent)) -> Result<(), WireError> {
        let kind = self.kind;
        match &mut self.decoder {
            Decoder::Json(splitter, pending) => splitter.push(chunk, &mut |part| {
                if let Some(event) = pending.part(kind, &part) {
                    take(event);
                }
                Ok(())
            }),
            Decoder::Protobuf(frames) => frames.push(chunk, &mut |frame| take(decode_frame(kind, frame))),
        }
    }

    /// Ends the watch with the response.
    ///
    /// # Errors
    /// If it ended inside of an event.
    pub fn finish(self) -> Result<(), WireError> {
        let complete = match &self.decoder {
            Decoder::Json(splitter, _) => splitter.is_between_objects(),
            Decoder::Protobuf(frames) => frames.is_between_frames(),
        };
        if complete { Ok(()) } else { Err(WireError::Incomplete("an event")) }
    }
}

impl PartialEvent {
    /// Handles a part of an event. Returns the event once it is complete.
    fn part(&mut self, kind: Kind, part: &JsonPart<'_>) -> Option<WatchEvent> {
        match *part {
            JsonPart::Member("type", text) => {
                // A value of another type counts as an unknown name.
                self.name = Some(serde_json::from_slice(text).unwrap_or_default());
            }
            JsonPart::Member("object", text) => match &self.name {
                Some(name) => self.event = Some(decode(kind, Encoding::Json, name, text)),
                None => self.object = text.to_owned(),
            },
            JsonPart::Member(..) | JsonPart::Element(_) => {}
            JsonPart::End => {
                let Self { name, object, event } = std::mem::take(self);
                let name = name.unwrap_or_default();
                return Some(event.unwrap_or_else(|| decode(kind, Encoding::Json, &name, &object)));
            }
        }
        None
    }
}

fn decode_frame(kind: Kind, frame: &[u8]) -> WatchEvent {
    match Event::decode(frame) {
        Ok(event) => decode(kind, Encoding::Protobuf, event.name, event.object),
        Err(fault) => WatchEvent::Unreadable(DecodeError { kind, reason: format!("a watch event: {fault}") }),
    }
}

/// Decodes an event by its type, in the API's spelling, and its object.
fn decode(kind: Kind, encoding: Encoding, name: &str, object: &[u8]) -> WatchEvent {
    let made = match name {
        "ADDED" => decode_object(kind, encoding, object).map(WatchEvent::Added),
        "MODIFIED" => decode_object(kind, encoding, object).map(WatchEvent::Modified),
        "DELETED" => decode_object(kind, encoding, object).map(WatchEvent::Deleted),
        "BOOKMARK" => decode_bookmark(kind, encoding, object),
        "ERROR" => {
            let unreadable = || Status { message: "the error is not a Status".to_owned(), ..Status::default() };
            Ok(WatchEvent::Error(decode_status(encoding, object).unwrap_or_else(unreadable)))
        }
        other => Err(DecodeError { kind, reason: format!("a watch event has the unknown type {other:?}") }),
    };
    made.unwrap_or_else(WatchEvent::Unreadable)
}

fn decode_object(kind: Kind, encoding: Encoding, bytes: &[u8]) -> Result<Object, DecodeError> {
    match encoding {
        Encoding::Json => Object::from_json(kind, bytes),
        Encoding::Protobuf => Object::from_protobuf(kind, open(kind, bytes)?),
    }
}

fn decode_bookmark(kind: Kind, encoding: Encoding, bytes: &[u8]) -> Result<WatchEvent, DecodeError> {
    let Bookmark { resource_version, initial_events_end } = match encoding {
        Encoding::Json => Bookmark::from_json(kind, bytes)?,
        Encoding::Protobuf => Bookmark::from_protobuf(kind, open(kind, bytes)?)?,
    };
    Ok(WatchEvent::Bookmark { resource_version, initial_events_end })
}

/// Opens the envelope of an object of that kind.
fn open(kind: Kind, bytes: &[u8]) -> Result<&[u8], DecodeError> {
    let envelope = Envelope::open(bytes).map_err(|reason| DecodeError { kind, reason })?;
    let named = &envelope.type_meta;
    if named.kind != kind.name() || named.api_version != kind.api_version() {
        let reason = format!("it is of the kind {:?} of {:?}", named.kind, named.api_version);
        return Err(DecodeError { kind, reason });
    }
    Ok(envelope.raw)
}
