//! Objects as an API server or a file holds them, decoded from JSON or protobuf.

use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;

use super::change::{Kind, ObjectError, ObjectKey, key_of};
use super::objects::{EndpointSlice, Meta, Node, Service, ServiceCidr};
use crate::protobuf::{self, Fault, Message, Reader};

/// A decoded object: its key, and its fields or the error in one of them.
///
/// A field that cannot be decoded does not hide whose it is: [`Translator::applied`](super::Translator::applied)
/// returns the error, and the stream of the object's kind goes on.
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

/// Why bytes are not an object of a kind, or of none that can be named.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("cannot decode {}: {reason}", kind.name())]
pub struct DecodeError {
    /// The kind that was expected.
    pub kind: Kind,
    /// What is wrong.
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
            serde_path_to_error::deserialize(value).map_err(|error| format!("{}: {}", error.path(), error.inner()))
        }
        let key = key_of(kind, &value);
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

    /// Which object it is.
    #[must_use]
    pub fn key(&self) -> &ObjectKey {
        &self.key
    }

    /// The version of the object, opaque; empty if it has none.
    #[must_use]
    pub fn resource_version(&self) -> &str {
        &self.resource_version
    }

    fn new(kind: Kind, mut content: Content) -> Result<Self, DecodeError> {
        let metadata = match &mut content {
            Content::Service(object) => &mut object.metadata,
            Content::EndpointSlice(object) => &mut object.metadata,
            Content::Node(object) => &mut object.metadata,
            Content::ServiceCidr(object) => &mut object.metadata,
        };
        let key = ObjectKey::new(kind, &metadata.namespace, &metadata.name);
        named(&key)?;
        let resource_version = std::mem::take(&mut metadata.resource_version);
        Ok(Self { key, resource_version, content: Ok(content) })
    }

    fn faulty(key: ObjectKey, resource_version: String, reason: String) -> Result<Self, DecodeError> {
        named(&key).map_err(|error| DecodeError { reason: format!("{}; {reason}", error.reason), ..error })?;
        let content = Err(key.error(reason));
        Ok(Self { key, resource_version, content })
    }
}

fn named(key: &ObjectKey) -> Result<(), DecodeError> {
    if key.name.name.is_empty() { Err(DecodeError::new(key.kind, "metadata.name is missing")) } else { Ok(()) }
}

/// The part of a protobuf object's metadata that names it.
#[derive(Default)]
struct Named<'a> {
    namespace: &'a str,
    name: &'a str,
    resource_version: &'a str,
}

impl<'a> Named<'a> {
    /// Finds it in an object some other field of which has a fault.
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

/// What the object of a BOOKMARK event says: an object of the watched kind with nothing but metadata, and no name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bookmark {
    /// From where a watch can go on.
    pub resource_version: String,
    /// Whether the objects that existed when a streamed list began have all come.
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
        let Meta { resource_version, annotations, .. } = object.metadata;
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
