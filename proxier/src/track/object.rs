//! Objects from an API server or a file, decoded from JSON or protobuf.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;

use super::change::{Kind, ObjectError, ObjectKey, key_of};
use super::objects::{EndpointSlice, Meta, Node, Service, ServiceCidr};
use crate::protobuf::{self, Fault, Message, Reader};

/// A decoded object: its key, and its fields or a decoding error.
///
/// A field that cannot be decoded does not hide the key: [`Translator::applied`](super::Translator::applied) returns
/// the error, and the stream of the object's kind goes on.
#[derive(Debug)]
pub struct Object {
    pub(super) key: ObjectKey,
    resource_version: String,
    pub(super) content: Result<Content, ObjectError>,
}

/// The fields of an object that matter.
#[derive(Debug)]
pub(super) enum Content {
    Service(Box<Service>),
    EndpointSlice(EndpointSlice),
    Node(Node),
    ServiceCidr(ServiceCidr),
}

/// Why bytes could not be decoded as an object with a name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("cannot decode {}: {reason}", kind.name())]
pub struct DecodeError {
    /// The kind that was expected.
    pub kind: Kind,
    /// The error.
    pub reason: String,
}

impl DecodeError {
    fn new(kind: Kind, reason: impl ToString) -> Self {
        Self { kind, reason: reason.to_string() }
    }
}

impl Object {
    /// Decodes the JSON text of one object.
    ///
    /// # Errors
    /// If it is not JSON or has no name. A field of the wrong type is an error of [`Translator::applied`].
    ///
    /// [`Translator::applied`]: super::Translator::applied
    pub fn from_json(kind: Kind, bytes: &[u8]) -> Result<Self, DecodeError> {
        let decoded = match kind {
            Kind::Service => serde_json::from_slice(bytes).map(Content::Service),
            Kind::EndpointSlice => serde_json::from_slice(bytes).map(Content::EndpointSlice),
            Kind::Node => serde_json::from_slice(bytes).map(Content::Node),
            Kind::ServiceCidr => serde_json::from_slice(bytes).map(Content::ServiceCidr),
        };
        match decoded {
            Ok(content) => Self::new(kind, content),
            Err(_) => Self::from_value(kind, serde_json::from_slice(bytes).map_err(|e| DecodeError::new(kind, e))?),
        }
    }

    /// Decodes an object from a JSON value.
    ///
    /// # Errors
    /// If it has no name. A field of the wrong type is an error of [`Translator::applied`].
    ///
    /// [`Translator::applied`]: super::Translator::applied
    pub fn from_value(kind: Kind, value: Value) -> Result<Self, DecodeError> {
        fn decode<T: DeserializeOwned>(value: Value) -> Result<T, String> {
            serde_path_to_error::deserialize(value)
                .map_err(|error| format!("{}: {}", error.path(), plain_words(&error.inner().to_string())))
        }
        let key = key_of(kind, &value);
        of_kind(kind, value.get("kind").and_then(Value::as_str).unwrap_or_default())?;
        let resource_version = value.pointer("/metadata/resourceVersion").and_then(Value::as_str).map(str::to_owned);
        let decoded = match kind {
            Kind::Service => decode(value).map(Content::Service),
            Kind::EndpointSlice => decode(value).map(Content::EndpointSlice),
            Kind::Node => decode(value).map(Content::Node),
            Kind::ServiceCidr => decode(value).map(Content::ServiceCidr),
        };
        match decoded {
            Ok(content) => Self::new(kind, content),
            Err(reason) => Self::faulty(key, resource_version.unwrap_or_default(), reason),
        }
    }

    /// Decodes the protobuf message of the kind, without the envelope that API servers put around it.
    ///
    /// # Errors
    /// If it is not protobuf or has no name. A field of the wrong type is an error of [`Translator::applied`].
    ///
    /// [`Translator::applied`]: super::Translator::applied
    pub fn from_protobuf(kind: Kind, bytes: &[u8]) -> Result<Self, DecodeError> {
        let decoded = match kind {
            Kind::Service => protobuf::decode(bytes).map(|service| Content::Service(Box::new(service))),
            Kind::EndpointSlice => protobuf::decode(bytes).map(Content::EndpointSlice),
            Kind::Node => protobuf::decode(bytes).map(Content::Node),
            Kind::ServiceCidr => protobuf::decode(bytes).map(Content::ServiceCidr),
        };
        match decoded {
            Ok(content) => Self::new(kind, content),
            Err(Fault::Wire(error)) => Err(DecodeError::new(kind, error)),
            Err(fault @ Fault::Field { .. }) => {
                let Named { namespace, name, resource_version } =
                    Named::find(bytes).map_err(|fault| DecodeError::new(kind, fault))?;
                Self::faulty(ObjectKey::new(kind, namespace, name), resource_version.to_owned(), fault.to_string())
            }
        }
    }

    /// The key of the object.
    #[must_use]
    pub fn key(&self) -> &ObjectKey {
        &self.key
    }

    /// The version of the object, opaque; empty if it has none.
    #[must_use]
    pub fn resource_version(&self) -> &str {
        &self.resource_version
    }

    /// All labels of a Service; `None` for other kinds, and for an object with an invalid field.
    #[must_use]
    pub fn service_labels(&self) -> Option<&BTreeMap<String, String>> {
        match &self.content {
            Ok(Content::Service(service)) => Some(&service.metadata.labels.0),
            _ => None,
        }
    }

    fn new(kind: Kind, mut content: Content) -> Result<Self, DecodeError> {
        let (said, (key, resource_version)) = match &mut content {
            Content::Service(object) => (&object.kind, identity(kind, &mut object.metadata)),
            Content::EndpointSlice(object) => (&object.kind, identity(kind, &mut object.metadata)),
            Content::Node(object) => (&object.kind, identity(kind, &mut object.metadata)),
            Content::ServiceCidr(object) => (&object.kind, identity(kind, &mut object.metadata)),
        };
        of_kind(kind, said)?;
        named(&key)?;
        Ok(Self { key, resource_version, content: Ok(content) })
    }

    fn faulty(key: ObjectKey, resource_version: String, reason: String) -> Result<Self, DecodeError> {
        named(&key).map_err(|error| DecodeError { reason: format!("{}; {reason}", error.reason), ..error })?;
        let content = Err(key.error(reason));
        Ok(Self { key, resource_version, content })
    }
}

/// The key of an object, and its version.
fn identity<L>(kind: Kind, metadata: &mut Meta<L>) -> (ObjectKey, String) {
    let key = ObjectKey::new(kind, &metadata.namespace, &metadata.name);
    (key, std::mem::take(&mut metadata.resource_version))
}

/// Checks the `kind` of an object, which items of lists omit.
fn of_kind(kind: Kind, said: &str) -> Result<(), DecodeError> {
    match said {
        "" => Ok(()),
        said if said == kind.name() => Ok(()),
        other => Err(DecodeError::new(kind, format!("kind is {other:?}"))),
    }
}

/// Rewrites a JSON or YAML decoder's error without Rust type names and parser limits.
#[must_use]
pub fn plain_words(error: &str) -> String {
    const RANGES: [(&str, &str); 8] = [
        ("u8", "a number from 0 to 255"),
        ("u16", "a number from 0 to 65535"),
        ("u32", "a number from 0 to 4294967295"),
        ("i32", "a number from -2147483648 to 2147483647"),
        ("f32", "a number"),
        ("u64", "a number of at least 0"),
        ("i64", "a number"),
        ("usize", "a number of at least 0"),
    ];
    if let Some((before, limit)) = error.split_once("budget breached: ") {
        let reason = match limit {
            limit if limit.contains("Anchor") || limit.contains("Alias") => {
                "too many YAML anchors and aliases, or what they expand to is too large"
            }
            limit if limit.contains("Depth") => "it is nested too deeply",
            _ => "it is too large",
        };
        let rest = limit.split_once('}').map_or("", |(_, rest)| rest);
        return format!("{before}{reason}{rest}");
    }
    let Some((before, expected)) = error.rsplit_once("expected ") else { return error.to_owned() };
    let end = expected.find([' ', ',', ';']).unwrap_or(expected.len());
    let (word, rest) = expected.split_at(end);
    if let Some((_, range)) = RANGES.into_iter().find(|(name, _)| *name == word) {
        return format!("{before}expected {range}{rest}");
    }
    match rest.strip_prefix(' ') {
        Some(name) if matches!(word, "struct" | "enum") => {
            let rest = name.find([' ', ',', ';']).map_or("", |end| &name[end..]);
            let what = if word == "struct" { "a mapping" } else { "one of its values" };
            format!("{before}expected {what}{rest}")
        }
        _ => error.to_owned(),
    }
}

fn named(key: &ObjectKey) -> Result<(), DecodeError> {
    if key.name.name.is_empty() { Err(DecodeError::new(key.kind, "metadata.name is missing")) } else { Ok(()) }
}

/// The metadata fields that identify a protobuf object.
#[derive(Default)]
struct Named<'a> {
    namespace: &'a str,
    name: &'a str,
    resource_version: &'a str,
}

impl<'a> Named<'a> {
    /// Finds them in an object with a fault in another field.
    fn find(object: &'a [u8]) -> Result<Self, Fault> {
        let mut named = Self::default();
        let mut reader = Reader::new(object);
        while let Some((number, value)) = reader.field()? {
            let (1, Ok(metadata)) = (number, value.bytes()) else { continue };
            let mut reader = Reader::new(metadata);
            while let Some((number, value)) = reader.field()? {
                let Ok(text) = value.text() else { continue };
                match number {
                    1 => named.name = text,
                    3 => named.namespace = text,
                    6 => named.resource_version = text,
                    _ => {}
                }
            }
        }
        Ok(named)
    }
}

/// The content of a BOOKMARK event: an object of the watched kind with only metadata and no name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bookmark {
    /// The version from which a watch can resume.
    pub resource_version: String,
    /// Whether all initial objects of a streamed list have been sent.
    pub initial_events_end: bool,
}

impl Bookmark {
    /// Decodes a bookmark from JSON.
    ///
    /// # Errors
    /// If it is not JSON, or has no resource version.
    pub fn from_json(kind: Kind, bytes: &[u8]) -> Result<Self, DecodeError> {
        let object = serde_json::from_slice(bytes).map_err(|error| DecodeError::new(kind, error))?;
        Self::new(kind, object)
    }

    /// Decodes a bookmark from the protobuf message of its kind, without an envelope.
    ///
    /// # Errors
    /// If it is not protobuf, or has no resource version.
    pub fn from_protobuf(kind: Kind, bytes: &[u8]) -> Result<Self, DecodeError> {
        let object = protobuf::decode(bytes).map_err(|fault| DecodeError::new(kind, fault))?;
        Self::new(kind, object)
    }

    fn new(kind: Kind, object: MetaOnly) -> Result<Self, DecodeError> {
        let Meta { resource_version, annotations, .. }: Meta = object.metadata;
        if resource_version.is_empty() {
            return Err(DecodeError::new(kind, "a bookmark without metadata.resourceVersion"));
        }
        Ok(Self { resource_version, initial_events_end: annotations.initial_events_end == "true" })
    }
}

/// An object of which only the metadata matters.
#[derive(Default, serde::Deserialize)]
struct MetaOnly {
    metadata: Meta,
}

impl Message for MetaOnly {
    fn field(&mut self, number: u32, value: protobuf::Value<'_>) -> Result<(), Fault> {
        match number {
            1 => protobuf::merge(&mut self.metadata, value.bytes()?).map_err(|fault| fault.within("metadata")),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decoder_errors_when_rewritten_have_no_type_names() {
        for (error, shown) in [
            (
                "invalid value: integer `-1`, expected u16",
                "invalid value: integer `-1`, expected a number from 0 to 65535",
            ),
            ("invalid type: sequence, expected struct Kubeconfig", "invalid type: sequence, expected a mapping"),
            (
                "invalid type: string \"x\", expected struct Conntrack at line 3",
                "invalid type: string \"x\", expected a mapping at line 3",
            ),
            ("invalid type: map, expected a string", "invalid type: map, expected a string"),
            (
                "budget breached: RecordedAnchorEvents { recorded_anchor_events: 1000001 } at line 2",
                "too many YAML anchors and aliases, or what they expand to is too large at line 2",
            ),
            ("end of file", "end of file"),
        ] {
            assert_eq!(plain_words(error), shown);
        }
    }

    #[test]
    fn an_object_of_another_kind_is_not_decoded() {
        let slice = br#"{"kind":"EndpointSlice","metadata":{"name":"a"}}"#;
        let error = Object::from_json(Kind::Service, slice).expect_err("another kind");
        assert_eq!(error.to_string(), "cannot decode Service: kind is \"EndpointSlice\"");
        let faulty = br#"{"kind":"EndpointSlice","metadata":{"name":"a"},"spec":{"ports":3}}"#;
        assert!(Object::from_json(Kind::Service, faulty).is_err());
        for text in [r#"{"metadata":{"name":"a"}}"#, r#"{"kind":"Service","metadata":{"name":"a"}}"#] {
            assert!(Object::from_json(Kind::Service, text.as_bytes()).is_ok(), "{text}");
        }
    }
}
