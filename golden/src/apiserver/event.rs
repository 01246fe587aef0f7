//! Events of the store and the commands that open watches receive.

use serde_json::Value;

use super::object::Object;

/// The namespace (empty for cluster-scoped kinds) and name.
pub(super) type Key = (String, String);

/// A change of one object.
#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) version: u64,
    pub(super) key: Key,
    pub(super) old: Option<Object>,
    pub(super) new: Option<Object>,
}

/// A command to an open watch.
#[derive(Clone, Debug)]
pub(super) enum Command {
    Event(Event),
    /// Sends a bookmark with this version.
    Bookmark(u64),
    /// Sends these bytes unchanged.
    Raw(Vec<u8>),
    /// Sends an event of any type with any object, including `kind` and `apiVersion`, in the watch's encoding.
    Custom(String, Value),
    End(End),
}

/// How a test ends watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// As at a timeout: the body ends properly, and the connection stays open.
    Clean,
    /// In the middle of a line and of a chunk; the connection is closed.
    Torn,
    /// With a TCP reset.
    Reset,
}
