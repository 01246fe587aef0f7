//! An object at one version, and its encodings.

use std::io::Write as _;
use std::sync::{Arc, OnceLock};

use serde_json::{Value, json};

use super::protobuf;
use super::resource::Resource;
use super::selector::Filter;
use super::synthetic::Synthetic;

/// An object; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Object {
    content: Content,
    /// The protobuf message, encoded at first use.
    message: Arc<OnceLock<Box<[u8]>>>,
}

#[derive(Clone, Debug)]
enum Content {
    /// Applied by a test, without `kind` and `apiVersion`, with its resourceVersion.
    Stored(Arc<Value>),
    /// Generated whenever it is sent.
    Synthetic(Synthetic),
}

impl Object {
    pub(super) fn stored(value: Value) -> Self {
        Self::of(Content::Stored(Arc::new(value)))
    }

    pub(super) fn synthetic(synthetic: Synthetic) -> Self {
        Self::of(Content::Synthetic(synthetic))
    }

    fn of(content: Content) -> Self {
        Self { content, message: Arc::default() }
    }

    /// The same content with another resourceVersion.
    pub(super) fn at(&self, version: u64) -> Self {
        match &self.content {
            Content::Stored(object) => {
                let mut object = Value::clone(object);
                object["metadata"]["resourceVersion"] = json!(version.to_string());
                Self::stored(object)
            }
            Content::Synthetic(synthetic) => Self::synthetic(Synthetic { version, ..*synthetic }),
        }
    }

    pub(super) fn matches(&self, filter: &Filter) -> bool {
        if filter.is_empty() {
            return true;
        }
        match &self.content {
            Content::Stored(object) => filter.matches(object),
            Content::Synthetic(synthetic) => filter.matches(&synthetic.head()),
        }
    }

    /// The object without `kind` and `apiVersion`.
    pub(super) fn value(&self) -> Value {
        match &self.content {
            Content::Stored(object) => Value::clone(object),
            Content::Synthetic(_) => {
                let mut text = Vec::new();
                self.write_item(&mut text);
                serde_json::from_slice(&text).expect("synthetic objects are JSON")
            }
        }
    }

    /// Appends its JSON as a list item, without `kind` and `apiVersion`.
    pub(super) fn write_item(&self, out: &mut Vec<u8>) {
        match &self.content {
            Content::Stored(object) => serde_json::to_writer(out, object.as_ref()).expect("a Value can be written"),
            Content::Synthetic(synthetic) => synthetic.write(out),
        }
    }

    /// Appends its JSON with `kind` and `apiVersion`.
    pub(super) fn write(&self, resource: &Resource, out: &mut Vec<u8>) {
        write!(out, r#"{{"kind":"{}","apiVersion":"{}","#, resource.kind, resource.api_version())
            .expect("memory can be written");
        let brace = out.len();
        self.write_item(out);
        out.remove(brace);
    }

    /// Its protobuf message without envelope, as in lists; encoded once.
    pub(super) fn message(&self, resource: &Resource) -> &[u8] {
        self.message.get_or_init(|| match &self.content {
            Content::Stored(object) => protobuf::message(resource.message, object).into(),
            Content::Synthetic(_) => protobuf::message(resource.message, &self.value()).into(),
        })
    }

    /// Appends its protobuf message in an envelope.
    pub(super) fn write_enveloped(&self, resource: &Resource, out: &mut Vec<u8>) {
        protobuf::envelope(&resource.api_version(), resource.kind, self.message(resource), out);
    }
}
