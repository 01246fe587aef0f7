//! Events of the store and the commands that open watches receive.

use serde_json::Value;

use super::object::Object;

/// Namespace (empty for cluster-scoped kinds) and name.
pub(super) type Key = (String, String);

/// One change of one object.
#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) version: u64,
    pub(super) key: Key,
    pub(super) old: Option<Object>,
    pub(super) new: Option<Object>,
}

/// What an open watch is told.
#[derive(Clone, Debug)]
pub(super) enum Command {
    Event(Event),
    /// Everything up to this version has been sent.
    Bookmark(u64),
    /// Bytes that go out as they are.
    Raw(Vec<u8>),
    /// An event of any type around any object, with its `kind` and `apiVersion`, in the encoding of the watch.
    Custom(String, Value),
    End(End),
}

/// How watches end when a test says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// As at a timeout: the body ends properly, the connection stays.
    Clean,
    /// In the middle of a line and of a chunk; the connection is closed.
    Torn,
    /// With a TCP reset.
    Reset,
}
