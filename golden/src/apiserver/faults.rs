//! What a test does to the server.
//!
//! In: a wish for trouble. Out: a server that refuses, breaks off, forgets, stalls or talks nonsense.
//! Must not know: how any of that is done on the wire.

use std::time::Duration;

use super::ApiServer;
use super::cluster::served;
use super::http::Pace;
use super::serve::Control;
use super::shared::Failure;
use super::watch::{Command, End};

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
        self.shared.state().failures.push(Failure { kind: None, left: count, code });
    }

    /// Answers the next `count` requests for a kind with an error status; `usize::MAX` for good.
    ///
    /// # Panics
    /// When the kind is not served.
    #[track_caller]
    pub fn fail_next_of(&self, kind: &str, count: usize, code: u16) {
        let kind = Some(served(kind).kind.to_owned());
        self.shared.state().failures.push(Failure { kind, left: count, code });
    }

    /// Takes back all failures still due.
    pub fn fail_no_more(&self) {
        self.shared.state().failures.clear();
    }

    /// Refuses streaming lists with 422, like a server without the WatchList feature gate.
    pub fn refuse_streaming_lists(&self, refuse: bool) {
        self.shared.state().refuse_streaming = refuse;
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
