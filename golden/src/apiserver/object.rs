//! One object at one version, as it is kept and as it is written.
//!
//! In: JSON given by a test, or a place in the synthetic load. Out: the bytes of the object, and what selectors look at.
//! Must not know: collections, watches, HTTP.

use std::io::Write as _;
use std::sync::Arc;

use serde_json::{Value, json};

use super::resource::Resource;
use super::selector::Filter;
use super::synthetic::Synthetic;

/// An object; cheap to clone.
#[derive(Clone, Debug)]
pub(super) enum Object {
    /// Given by a test, without `kind` and `apiVersion`, with its resourceVersion.
    Stored(Arc<Value>),
    /// Written afresh each time it is asked for.
    Synthetic(Synthetic),
}

impl Object {
    /// The same content under another resourceVersion.
    pub(super) fn at(&self, version: u64) -> Self {
        match self {
            Self::Stored(object) => {
                let mut object = Value::clone(object);
                object["metadata"]["resourceVersion"] = json!(version.to_string());
                Self::Stored(Arc::new(object))
            }
            Self::Synthetic(synthetic) => Self::Synthetic(Synthetic { version, ..*synthetic }),
        }
    }

    pub(super) fn matches(&self, filter: &Filter) -> bool {
        if filter.is_empty() {
            return true;
        }
        match self {
            Self::Stored(object) => filter.matches(object),
            Self::Synthetic(synthetic) => filter.matches(&synthetic.head()),
        }
    }

    /// The whole object, without `kind` and `apiVersion`.
    pub(super) fn value(&self) -> Value {
        match self {
            Self::Stored(object) => Value::clone(object),
            Self::Synthetic(_) => {
                let mut text = Vec::new();
                self.write_item(&mut text);
                serde_json::from_slice(&text).expect("synthetic objects are JSON")
            }
        }
    }

    /// Appends it the way lists show it: without `kind` and `apiVersion`.
    pub(super) fn write_item(&self, out: &mut Vec<u8>) {
        match self {
            Self::Stored(object) => serde_json::to_writer(out, object.as_ref()).expect("a Value can be written"),
            Self::Synthetic(synthetic) => synthetic.write(out),
        }
    }

    /// Appends it with `kind` and `apiVersion`, the way it stands alone.
    pub(super) fn write(&self, resource: &Resource, out: &mut Vec<u8>) {
        write!(out, r#"{{"kind":"{}","apiVersion":"{}","#, resource.kind, resource.api_version())
            .expect("memory can be written");
        let brace = out.len();
        self.write_item(out);
        out.remove(brace);
    }
}
