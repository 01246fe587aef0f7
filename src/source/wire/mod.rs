//! Decoders of API server responses: lists, watches and statuses, in JSON and protobuf, as their bytes arrive.
//!
//! They take chunks of any size and know no connections. A list or a watch is never in memory as a whole: at most one
//! object
//! is buffered, and an object within one chunk is decoded in place.

mod json;
mod list;
mod protobuf;
mod status;
#[cfg(test)]
mod tests;
mod watch;

pub use list::{ListDecoder, ListMeta};
pub use status::{Status, decode_status};
pub use watch::{WatchDecoder, WatchEvent};

use thiserror::Error;

/// The most bytes of one object or event. An API server accepts objects of up to 3 MiB; client-go gives up at 16 MiB.
const MAX_OBJECT_BYTES: usize = 64 << 20;

/// How a response is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// `application/json`
    Json,
    /// `application/vnd.kubernetes.protobuf`
    Protobuf,
}

impl Encoding {
    /// The encoding that a `Content-Type` header names; parameters such as `stream=watch` are ignored. `None` if it is
    /// neither.
    #[must_use]
    pub fn of(content_type: &str) -> Option<Self> {
        let media_type = content_type.split(';').next().unwrap_or_default().trim();
        let is = |name: &str| media_type.eq_ignore_ascii_case(name);
        match () {
            () if is("application/json") => Some(Self::Json),
            () if is("application/vnd.kubernetes.protobuf") => Some(Self::Protobuf),
            () => None,
        }
    }
}

/// Why a response cannot be decoded any further.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum WireError {
    /// The response ended early.
    #[error("the response ends in the middle of {0}")]
    Incomplete(&'static str),
    /// An object is larger than any that an API server stores.
    #[error("an object or event has more than {MAX_OBJECT_BYTES} bytes")]
    TooLarge,
    /// The response is something else, such as a `Status` or a `Table`.
    #[error("expected {expected}, got {got}")]
    Kind {
        /// The API version and kind that were requested.
        expected: String,
        /// The API version and kind in the response.
        got: String,
    },
    /// The bytes are not in the encoding that the response names.
    #[error("malformed {0}: {1}")]
    Malformed(&'static str, String),
}
