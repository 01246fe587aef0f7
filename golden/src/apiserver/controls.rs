//! Controls for tests: faults, restarts, expired history, encodings and paces.

use std::time::Duration;

use serde_json::Value;

use super::ApiServer;
use super::cluster::served;
use super::delivery::Pace;
use super::encoding::MediaTypes;
use super::event::{Command, End};
use super::fault::{Fault, Injection, Requests};
use super::serve::Control;
use super::status::Status;

impl ApiServer {
    /// Stops listening and closes every connection before it returns; clients get "connection refused".
    pub fn down(&self) {
        self.control(Control::Down);
    }

    /// Listens again, at the same address in the same namespace.
    pub fn up(&self) {
        self.control(Control::Up);
    }

    /// Ends all open watches after the events that they still have to send.
    pub fn end_watches(&self, end: End) {
        self.command(None, &Command::End(end));
    }

    /// Ends the open watches of one kind.
    ///
    /// # Panics
    /// If the kind is not served.
    #[track_caller]
    pub fn end_watches_of(&self, kind: &str, end: End) {
        self.command(Some(served(kind).kind), &Command::End(end));
    }

    /// Injects a fault. Of several that match a request, the first injected one applies.
    ///
    /// # Panics
    /// If its kind is not served.
    #[track_caller]
    pub fn inject(&self, injection: Injection) {
        if let Some(kind) = injection.kind() {
            served(kind);
        }
        self.shared.state().faults.push(injection);
    }

    /// Sends bytes unchanged on the open watches of a kind.
    ///
    /// # Panics
    /// If the kind is not served.
    #[track_caller]
    pub fn send_bytes(&self, kind: &str, bytes: &[u8]) {
        self.command(Some(served(kind).kind), &Command::Raw(bytes.to_vec()));
    }

    /// Sends an event of any type with any object on the open watches of a kind, in their encoding.
    ///
    /// # Panics
    /// If the kind is not served.
    #[track_caller]
    pub fn send_event(&self, kind: &str, what: &str, object: Value) {
        self.command(Some(served(kind).kind), &Command::Custom(what.to_owned(), object));
    }

    /// Sends an ERROR event with a code on the open watches of a kind and ends them.
    ///
    /// kube-apiserver ends a watch that fell behind its watch cache with 410.
    ///
    /// # Panics
    /// If the kind is not served.
    #[track_caller]
    pub fn end_watches_with_error(&self, kind: &str, code: u16) {
        self.send_event(kind, "ERROR", Status::of_code(code).json());
        self.end_watches_of(kind, End::Clean);
    }

    /// Sets the offered encodings.
    pub fn offer(&self, media_types: MediaTypes) {
        self.shared.state().media_types = media_types;
    }

    /// Enables or disables the watch cache, which answers `resourceVersion=0` without paging (`--watch-cache`).
    pub fn set_watch_cache(&self, cache: bool) {
        self.shared.state().features.watch_cache = cache;
    }

    /// Compresses streamed lists for clients that accept gzip, like kube-apiserver 1.37.
    ///
    /// The feature gate is WatchListCompression (kubernetes#139308). Each flush is a gzip member, so decoders that
    /// stop after the first one fail (kube-rs/kube#2079). Other watches are not compressed.
    pub fn compress_streamed_lists(&self, compress: bool) {
        self.shared.state().compress_streamed_lists = compress;
    }

    /// Sends a line unchanged on the open watches of a kind.
    ///
    /// # Panics
    /// If the kind is not served.
    #[track_caller]
    pub fn send_line(&self, kind: &str, line: &[u8]) {
        let mut line = line.to_vec();
        line.push(b'\n');
        self.command(Some(served(kind).kind), &Command::Raw(line));
    }

    /// Sends a bookmark on all watches that allow them.
    pub fn send_bookmarks(&self) {
        let store = &self.shared.state().store;
        store.command(None, &Command::Bookmark(store.version()));
    }

    /// Sets the interval of bookmarks, initially 60 s.
    pub fn bookmark_every(&self, interval: Duration) {
        self.shared.bookmark_every.send_replace(interval);
    }

    /// Expires all history: watches and continued lists from earlier versions get 410.
    ///
    /// Open watches continue.
    pub fn expire_history(&self) {
        self.shared.state().store.expire();
    }

    /// Sets the number of events kept for each collection.
    pub fn keep_history(&self, events: usize) {
        self.shared.state().store.keep(events);
    }

    /// Answers the next `count` requests of any kind with an error status.
    pub fn fail_next(&self, count: usize, code: u16) {
        self.inject(Fault::Refuse(code).on(Requests::All).times(count));
    }

    /// Answers the next `count` requests for a kind with an error status; `usize::MAX` for all.
    ///
    /// # Panics
    /// If the kind is not served.
    #[track_caller]
    pub fn fail_next_of(&self, kind: &str, count: usize, code: u16) {
        self.inject(Fault::Refuse(code).on(Requests::All).of(kind).times(count));
    }

    /// Removes all injected faults.
    pub fn fail_no_more(&self) {
        self.shared.state().faults.clear();
    }

    /// Refuses streamed lists with 422, like a server without the WatchList feature gate.
    pub fn refuse_streaming_lists(&self, refuse: bool) {
        self.shared.state().features.streamed_lists = !refuse;
    }

    /// Requires this bearer token; requests without it get 401.
    pub fn require_token(&self, token: Option<&str>) {
        self.shared.state().token = token.map(str::to_owned);
    }

    /// Sets the pace of answers, including those in progress.
    pub fn set_pace(&self, pace: Pace) {
        self.shared.pace.send_replace(pace);
    }

    fn command(&self, kind: Option<&str>, command: &Command) {
        self.shared.state().store.command(kind, command);
    }
}
