//! What a test does to the server, which then refuses, breaks off, forgets, stalls or talks nonsense.

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
    /// Stops listening and cuts every connection: clients get "connection refused". Done when it returns.
    pub fn down(&self) {
        self.control(Control::Down);
    }

    /// Listens again, at the same address in the same namespace.
    pub fn up(&self) {
        self.control(Control::Up);
    }

    /// Ends all open watches, after the events they still have to send.
    pub fn end_watches(&self, end: End) {
        self.command(None, &Command::End(end));
    }

    /// Ends the open watches of one kind.
    ///
    /// # Panics
    /// When the kind is not served.
    #[track_caller]
    pub fn end_watches_of(&self, kind: &str, end: End) {
        self.command(Some(served(kind).kind), &Command::End(end));
    }

    /// Lets a fault happen from now on; of several that apply to a request, the one that was injected first.
    ///
    /// # Panics
    /// When it is for a kind that is not served.
    #[track_caller]
    pub fn inject(&self, injection: Injection) {
        if let Some(kind) = injection.kind() {
            served(kind);
        }
        self.shared.state().faults.push(injection);
    }

    /// Sends bytes as they are on the open watches of a kind.
    ///
    /// # Panics
    /// When the kind is not served.
    #[track_caller]
    pub fn send_bytes(&self, kind: &str, bytes: &[u8]) {
        self.command(Some(served(kind).kind), &Command::Raw(bytes.to_vec()));
    }

    /// Sends an event of any type around any object on the open watches of a kind, each in its encoding.
    ///
    /// # Panics
    /// When the kind is not served.
    #[track_caller]
    pub fn send_event(&self, kind: &str, what: &str, object: Value) {
        self.command(Some(served(kind).kind), &Command::Custom(what.to_owned(), object));
    }

    /// Sends an ERROR event of a code on the open watches of a kind, and ends them: 410 is how a real server ends a
    /// watch that fell behind its watch cache.
    ///
    /// # Panics
    /// When the kind is not served.
    #[track_caller]
    pub fn end_watches_with_error(&self, kind: &str, code: u16) {
        self.send_event(kind, "ERROR", Status::of_code(code).json());
        self.end_watches_of(kind, End::Clean);
    }

    /// Offers these encodings from now on.
    pub fn offer(&self, media_types: MediaTypes) {
        self.shared.state().media_types = media_types;
    }

    /// Has a watch cache, which answers `resourceVersion=0` without pages, or not (`--watch-cache=false`).
    pub fn set_watch_cache(&self, cache: bool) {
        self.shared.state().serves.watch_cache = cache;
    }

    /// Compresses streamed lists for clients that take gzip, as kube-apiserver does from 1.37 on (the feature gate
    /// WatchListCompression, kubernetes#139308). Each flush is a gzip member of its own, so decoders that stop after
    /// the first one fail (kube-rs/kube#2079). Watches that are no streamed lists stay plain.
    pub fn compress_streamed_lists(&self, compress: bool) {
        self.shared.state().compress_streamed_lists = compress;
    }

    /// Sends bytes as they are, plus a newline, on the open watches of a kind.
    ///
    /// # Panics
    /// When the kind is not served.
    #[track_caller]
    pub fn send_line(&self, kind: &str, line: &[u8]) {
        let mut line = line.to_vec();
        line.push(b'\n');
        self.command(Some(served(kind).kind), &Command::Raw(line));
    }

    /// Sends a bookmark now, on all watches that allow them.
    pub fn send_bookmarks(&self) {
        let store = &self.shared.state().store;
        store.command(None, &Command::Bookmark(store.version()));
    }

    /// Sends bookmarks at this interval (60 s at first).
    pub fn bookmark_every(&self, interval: Duration) {
        self.shared.bookmark_every.send_replace(interval);
    }

    /// Forgets all history: from every version a client has seen so far, watches and continued lists get 410.
    /// Watches that are open live on.
    pub fn expire_history(&self) {
        self.shared.state().store.expire();
    }

    /// Keeps this many events of each collection.
    pub fn keep_history(&self, events: usize) {
        self.shared.state().store.keep(events);
    }

    /// Answers the next `count` requests, whatever they are for, with an error status.
    pub fn fail_next(&self, count: usize, code: u16) {
        self.inject(Fault::Refuse(code).on(Requests::All).times(count));
    }

    /// Answers the next `count` requests for a kind with an error status; `usize::MAX` for good.
    ///
    /// # Panics
    /// When the kind is not served.
    #[track_caller]
    pub fn fail_next_of(&self, kind: &str, count: usize, code: u16) {
        self.inject(Fault::Refuse(code).on(Requests::All).of(kind).times(count));
    }

    /// Takes back all faults that were injected.
    pub fn fail_no_more(&self) {
        self.shared.state().faults.clear();
    }

    /// Refuses streaming lists with 422, like a server without the WatchList feature gate.
    pub fn refuse_streaming_lists(&self, refuse: bool) {
        self.shared.state().serves.streamed_lists = !refuse;
    }

    /// Asks for this bearer token from now on; without it, 401.
    pub fn require_token(&self, token: Option<&str>) {
        self.shared.state().token = token.map(str::to_owned);
    }

    /// Sets how answers flow, also those already on their way.
    pub fn set_pace(&self, pace: Pace) {
        self.shared.pace.send_replace(pace);
    }

    fn command(&self, kind: Option<&str>, command: &Command) {
        self.shared.state().store.command(kind, command);
    }
}
