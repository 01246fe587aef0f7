//! Lists, decoded object by object.

use proxier::protobuf::{self, Fault, FieldSpan, Message, Value};
use proxier::track::{DecodeError, Kind, Object};
use serde::Deserialize;

use super::json::{self, JsonPart, Splitter};
use super::protobuf::{MAGIC, TypeMeta, malformed};
use super::{Encoding, MAX_OBJECT_BYTES, WireError};

/// The metadata of a list: `metav1.ListMeta`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ListMeta {
    /// The version from which a watch can continue.
    pub resource_version: String,
    /// The token of the next page; empty on the last one.
    #[serde(rename = "continue")]
    pub continue_token: String,
    /// How many items could not be decoded, and the error of the first one.
    #[serde(skip)]
    pub unreadable: Option<(usize, DecodeError)>,
}

impl Message for ListMeta {
    /// Handles a part of a protobuf list.
    fn field(&mut self, number: u32, value: Value<'_>) -> Result<(), Fault> {
        match number {
            2 => value.text()?.clone_into(&mut self.resource_version),
            3 => value.text()?.clone_into(&mut self.continue_token),
            _ => {}
        }
        Ok(())
    }
}

/// Decodes the response to a list request, or one page of it.
#[derive(Debug)]
pub struct ListDecoder {
    list: List,
    encoding: Decoder,
}

#[derive(Debug)]
enum Decoder {
    Json(Splitter),
    Protobuf(Unwrapper),
}

/// The parts of a list that have arrived.
#[derive(Debug)]
struct List {
    kind: Kind,
    /// Its own API version and kind.
    type_meta: TypeMeta,
    meta: ListMeta,
    unreadable: Option<(usize, DecodeError)>,
}

impl ListDecoder {
    /// A decoder for a list of that kind.
    #[must_use]
    pub fn new(kind: Kind, encoding: Encoding) -> Self {
        let list = List { kind, type_meta: TypeMeta::default(), meta: ListMeta::default(), unreadable: None };
        let encoding = match encoding {
            Encoding::Json => Decoder::Json(Splitter::elements_of("items")),
            Encoding::Protobuf => Decoder::Protobuf(Unwrapper::default()),
        };
        Self { list, encoding }
    }

    /// Decodes the next bytes of the response; `take` receives each object that they complete.
    ///
    /// # Errors
    /// The response is not such a list. Objects that `take` received before are not a list then.
    pub fn push(&mut self, chunk: &[u8], take: &mut dyn FnMut(Object)) -> Result<(), WireError> {
        let list = &mut self.list;
        match &mut self.encoding {
            Decoder::Json(splitter) => splitter.push(chunk, &mut |part| list.part(&part, take)),
            Decoder::Protobuf(unwrapper) => unwrapper.push(chunk, &mut |part| list.field(part, take)),
        }
    }

    /// Ends the list with the response.
    ///
    /// # Errors
    /// The list is incomplete.
    pub fn finish(self) -> Result<ListMeta, WireError> {
        let complete = match &self.encoding {
            Decoder::Json(splitter) => splitter.is_done(),
            Decoder::Protobuf(unwrapper) => unwrapper.is_done(),
        };
        if !complete {
            return Err(WireError::Incomplete("a list"));
        }
        self.list.check()?;
        Ok(ListMeta { unreadable: self.list.unreadable, ..self.list.meta })
    }
}

impl List {
    /// Handles a part of a JSON list. Its metadata may follow its items.
    fn part(&mut self, part: &JsonPart<'_>, take: &mut dyn FnMut(Object)) -> Result<(), WireError> {
        fn parse<'a, T: Deserialize<'a> + Default>(text: &'a [u8]) -> Result<T, WireError> {
            let value: Option<T> = serde_json::from_slice(text).map_err(|error| json::malformed(&error))?;
            Ok(value.unwrap_or_default())
        }
        match *part {
            JsonPart::Element(text) => {
                self.item(Object::from_json(self.kind, text), take);
                Ok(())
            }
            JsonPart::Member("kind", text) => {
                self.type_meta.kind = parse(text)?;
                self.check_kind()
            }
            JsonPart::Member("apiVersion", text) => {
                self.type_meta.api_version = parse(text)?;
                Ok(())
            }
            JsonPart::Member("metadata", text) => {
                self.meta = parse(text)?;
                Ok(())
            }
            JsonPart::Member("items", b"null") | JsonPart::End => Ok(()),
            JsonPart::Member("items", _) => Err(WireError::Malformed("JSON", "items is not an array".to_owned())),
            JsonPart::Member(..) => Ok(()),
        }
    }

    /// Takes a part of a protobuf list.
    fn field(&mut self, part: &ListPart<'_>, take: &mut dyn FnMut(Object)) -> Result<(), WireError> {
        match *part {
            ListPart::TypeMeta(bytes) => protobuf::merge(&mut self.type_meta, bytes).map_err(malformed),
            // Protobuf has no field names, so objects of another kind could be decoded as ours.
            ListPart::Begin => self.check(),
            ListPart::Metadata(bytes) => protobuf::merge(&mut self.meta, bytes).map_err(malformed),
            ListPart::Item(bytes) => {
                self.item(Object::from_protobuf(self.kind, bytes), take);
                Ok(())
            }
        }
    }

    /// Handles an item. One that cannot be decoded is only counted.
    fn item(&mut self, object: Result<Object, DecodeError>, take: &mut dyn FnMut(Object)) {
        match object {
            Ok(object) => take(object),
            Err(error) => self.unreadable.get_or_insert((0, error)).0 += 1,
        }
    }

    fn check_kind(&self) -> Result<(), WireError> {
        if self.type_meta.kind.strip_suffix("List") == Some(self.kind.name()) { Ok(()) } else { Err(self.other()) }
    }

    fn check(&self) -> Result<(), WireError> {
        self.check_kind()?;
        if self.type_meta.api_version == self.kind.api_version() { Ok(()) } else { Err(self.other()) }
    }

    fn other(&self) -> WireError {
        let named = |api_version: &str, kind: &str| match (api_version, kind) {
            ("", "") => "something without a kind".to_owned(),
            ("", kind) => kind.to_owned(),
            (api_version, kind) => format!("{api_version} {kind}"),
        };
        let expected = named(self.kind.api_version(), &format!("{}List", self.kind.name()));
        WireError::Kind { expected, got: named(&self.type_meta.api_version, &self.type_meta.kind) }
    }
}

/// A part of a protobuf list.
enum ListPart<'a> {
    TypeMeta(&'a [u8]),
    /// The list itself begins.
    Begin,
    Metadata(&'a [u8]),
    Item(&'a [u8]),
}

/// The position of an [`Unwrapper`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum EnvelopePosition {
    #[default]
    Magic,
    /// In `runtime.Unknown`, before the list.
    Before,
    /// In the list, of which this many bytes are left.
    List(usize),
    /// In `runtime.Unknown`, after the list.
    After,
}

/// Splits a list in its envelope into fields.
#[derive(Debug, Default)]
struct Unwrapper {
    position: EnvelopePosition,
    /// A field that is not complete.
    buffer: Vec<u8>,
}

impl Unwrapper {
    fn is_done(&self) -> bool {
        self.position == EnvelopePosition::After && self.buffer.is_empty()
    }

    fn push(
        &mut self,
        chunk: &[u8],
        take: &mut dyn FnMut(&ListPart<'_>) -> Result<(), WireError>,
    ) -> Result<(), WireError> {
        if self.buffer.is_empty() {
            let taken = self.fields(chunk, take)?;
            self.buffer.extend_from_slice(&chunk[taken..]);
        } else {
            let mut buffer = std::mem::take(&mut self.buffer);
            buffer.extend_from_slice(chunk);
            let taken = self.fields(&buffer, take)?;
            buffer.drain(..taken);
            self.buffer = buffer;
        }
        Ok(())
    }

    /// Handles the complete fields at the start of these bytes. Returns their length.
    fn fields(
        &mut self,
        bytes: &[u8],
        take: &mut dyn FnMut(&ListPart<'_>) -> Result<(), WireError>,
    ) -> Result<usize, WireError> {
        let mut at = 0;
        loop {
            let rest = &bytes[at..];
            if self.position == EnvelopePosition::Magic {
                if !MAGIC.starts_with(&rest[..rest.len().min(4)]) {
                    return Err(malformed("the response does not begin with k8s\\0"));
                }
                if rest.len() < 4 {
                    return Ok(at);
                }
                self.position = EnvelopePosition::Before;
                at += 4;
                continue;
            }
            let Some(extent) = FieldSpan::of(rest).map_err(malformed)? else { return Ok(at) };
            let FieldSpan { number, wire_type, start, end } = extent;
            if (self.position, number, wire_type) == (EnvelopePosition::Before, 2, 2) {
                take(&ListPart::Begin)?;
                self.enter(end - start);
                at += start;
                continue;
            }
            if end > MAX_OBJECT_BYTES {
                return Err(WireError::TooLarge);
            }
            if let EnvelopePosition::List(left) = self.position
                && end > left
            {
                return Err(malformed("an item is longer than the list"));
            }
            let Some(value) = rest.get(start..end) else { return Ok(at) };
            match (self.position, number, wire_type) {
                (EnvelopePosition::Before, 1, 2) => take(&ListPart::TypeMeta(value))?,
                (EnvelopePosition::List(_), 1, 2) => take(&ListPart::Metadata(value))?,
                (EnvelopePosition::List(_), 2, 2) => take(&ListPart::Item(value))?,
                (EnvelopePosition::After, 2, _) => return Err(malformed("there are two lists")),
                _ => {}
            }
            at += end;
            if let EnvelopePosition::List(left) = self.position {
                self.enter(left - end);
            }
        }
    }

    /// Sets how many bytes of the list are left.
    fn enter(&mut self, left: usize) {
        self.position = if left == 0 { EnvelopePosition::After } else { EnvelopePosition::List(left) };
    }
}
