//! Which resource version to list and watch from.

use super::failure::Failure;

/// The last version seen of a kind, opaque but for equality.
#[derive(Debug, Default)]
pub struct Version {
    last: String,
    /// The server said that it does not have `last`: too old for its history, or newer than its newest.
    unavailable: bool,
}

impl Version {
    /// Records that a list is complete at `version`.
    pub fn listed(&mut self, version: String) {
        self.last = version;
        self.unavailable = false;
    }

    /// Records the version of a watch event.
    pub fn seen(&mut self, version: &str) {
        if !version.is_empty() {
            version.clone_into(&mut self.last);
        }
    }

    /// The last version seen.
    pub fn last(&self) -> &str {
        &self.last
    }

    /// Records a failure. Returns whether the server does not have the version, so that a request for the newest one
    /// may succeed.
    pub fn lost(&mut self, failure: &Failure) -> bool {
        let lost = (failure.is_expired() || failure.is_too_large()) && !self.unavailable && !self.last.is_empty();
        self.unavailable |= lost;
        lost
    }

    /// For a streamed list: at least as new as the last version, or the newest.
    pub fn for_watch(&self) -> String {
        if self.unavailable { String::new() } else { self.last.clone() }
    }

    /// For a plain list: the first may be as old as the watch cache, which spares etcd.
    pub fn for_list(&self) -> String {
        match self.for_watch() {
            version if version.is_empty() && !self.unavailable => "0".to_owned(),
            version => version,
        }
    }
}
