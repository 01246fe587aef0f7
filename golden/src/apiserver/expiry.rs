//! Statuses about resource versions: too old, too new, and expired continue tokens.

use serde_json::json;

use super::status::Status;
use super::token::Continuation;

impl Status {
    /// A watch from before the kept history (storage/cacher/watch_cache.go).
    pub(super) fn too_old(asked: u64, oldest: u64) -> Self {
        Self::new(410, "Expired", format!("too old resource version: {asked} ({oldest})"))
    }

    /// A list at a compacted version (storage/etcd3/errors.go).
    pub(super) fn list_expired() -> Self {
        Self::new(410, "Expired", "The resourceVersion for the provided list is too old.")
    }

    /// A page at a compacted version, with a token for the rest at the current version (storage/etcd3/errors.go).
    pub(super) fn continue_expired(token: &str) -> Self {
        let message = "The provided continue parameter is too old to display a consistent list result. You can start a \
                       new list without the continue parameter, or use the continue token in this response to retrieve \
                       the remainder of the results. Continuing with the provided token results in an inconsistent list \
                       - objects that were created, modified, or deleted between the time the first chunk was returned \
                       and now may show up in the list.";
        let status = Self::new(410, "Expired", message);
        match Continuation::read(token) {
            Some(place) => status.with_token(Continuation { version: None, ..place }.write()),
            None => status,
        }
    }

    /// A version that this server has not reached (storage/errors.go). kube-apiserver waits for it for three seconds
    /// first.
    pub(super) fn too_large(asked: u64, current: u64) -> Self {
        let message = format!("Timeout: Too large resource version: {asked}, current: {current}");
        let cause = json!({ "reason": "ResourceVersionTooLarge", "message": "Too large resource version" });
        Self::new(504, "Timeout", message).with(json!({ "causes": [cause] })).retry_after(1)
    }

    /// A streamed list that an old etcd makes impossible (storage/cacher/cacher.go).
    pub(super) fn watch_progress_disabled() -> Self {
        let message = "a watch stream was requested by the client but the required storage feature RequestWatchProgress \
                       is disabled";
        Self::new(500, "InternalError", message)
    }
}
