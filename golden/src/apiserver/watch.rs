//! Answers watches: initial events, then changes, until the watch ends.

use std::future::pending;
use std::io;
use std::io::Write as _;

use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::{Instant, sleep_until};

use super::delivery::Encode;
use super::encoding::Encoding;
use super::event::{Command, End, Event};
use super::http::{Connection, Then};
use super::list::CHUNK_SIZE;
use super::object::Object;
use super::options::WatchOptions;
use super::protobuf;
use super::resource::Resource;
use super::selector::Filter;
use super::shared::Shared;
use super::status::Status;
use super::store::{Backlog, WatchStart};

/// How a watch is served, apart from its options.
#[derive(Clone, Debug)]
pub(super) struct WatchFaults {
    pub(super) encoding: Encoding,
    /// Whether a streamed list may be compressed.
    pub(super) gzip: bool,
    /// Whether the bookmark after the initial events is omitted.
    pub(super) no_bookmark: bool,
    /// Whether the stream ends after the initial events, with a status or without.
    pub(super) end: Option<Option<Status>>,
}

/// An open watch, which is counted until dropped.
#[derive(Debug)]
pub(super) struct OpenWatch<'a> {
    shared: &'a Shared,
    resource: &'static Resource,
    filter: Filter,
    options: WatchOptions,
    watch_faults: WatchFaults,
    id: u64,
    backlog: Backlog,
    commands: UnboundedReceiver<Command>,
}

impl Drop for OpenWatch<'_> {
    fn drop(&mut self) {
        self.shared.state().store.close_watch(self.id);
        self.shared.announce();
    }
}

impl<'a> OpenWatch<'a> {
    pub(super) fn new(
        shared: &'a Shared,
        resource: &'static Resource,
        filter: Filter,
        options: WatchOptions,
        watch_faults: WatchFaults,
    ) -> Result<Self, Status> {
        let (sender, commands) = unbounded_channel();
        let (id, backlog) = {
            let store = &mut shared.state().store;
            let current = store.version();
            if options.not_older > current {
                return Err(Status::too_large(options.not_older, current));
            }
            store.watch(resource, &filter, options.start.unwrap_or(WatchStart::After(current)), sender)?
        };
        shared.announce();
        Ok(Self { shared, resource, filter, options, watch_faults, id, backlog, commands })
    }

    /// Sends events until the watch ends.
    pub(super) async fn run(mut self, connection: &mut Connection) -> io::Result<Then> {
        let deadline = self.options.timeout.map(|timeout| Instant::now() + timeout);
        let gzip = self.watch_faults.gzip && self.options.streaming_list;
        let encode = if gzip { Encode::GzipMembers } else { Encode::Plain };
        connection.begin(self.watch_faults.encoding.stream_media_type(), encode).await?;
        self.send_backlog(connection).await?;
        if let Some(error) = self.watch_faults.end.take() {
            if let Some(status) = error {
                connection.body(&error_event(self.watch_faults.encoding, &status)).await?;
            }
            return self.end(connection, End::Clean).await;
        }
        loop {
            let timeout = async {
                match deadline {
                    Some(deadline) => sleep_until(deadline).await,
                    None => pending().await,
                }
            };
            let command = tokio::select! {
                biased;
                command = self.commands.recv() => command.unwrap_or(Command::End(End::Clean)),
                () = timeout => Command::End(End::Clean),
                () = connection.gone() => return Ok(Then::Close),
            };
            match command {
                Command::Event(event) => connection.body(&self.event(&event)).await?,
                Command::Bookmark(version) if self.options.bookmarks => {
                    connection.body(&self.bookmark(version, false)).await?;
                }
                Command::Bookmark(_) => {}
                Command::Raw(bytes) => connection.body(&bytes).await?,
                Command::Custom(what, object) => connection.body(&self.custom(&what, &object)).await?,
                Command::End(end) => return self.end(connection, end).await,
            }
        }
    }

    async fn send_backlog(&mut self, connection: &mut Connection) -> io::Result<()> {
        let mut out = Vec::new();
        for object in std::mem::take(&mut self.backlog.existing) {
            self.write_event("ADDED", &object, &mut out);
            if out.len() >= CHUNK_SIZE {
                connection.body(&out).await?;
                out.clear();
            }
        }
        for event in std::mem::take(&mut self.backlog.events) {
            out.extend(self.event(&event));
        }
        if self.options.streaming_list && !self.watch_faults.no_bookmark {
            out.extend(self.bookmark(self.backlog.version, true));
        }
        connection.body(&out).await
    }

    async fn end(&self, connection: &mut Connection, end: End) -> io::Result<Then> {
        match end {
            End::Clean => {
                connection.end().await?;
                return Ok(Then::Reuse);
            }
            End::Torn => connection.torn(&self.bookmark(self.backlog.version, false)).await?,
            End::Reset => connection.will_reset()?,
        }
        Ok(Then::Close)
    }

    /// The event as this watch sees it: an object that starts or stops matching is added or deleted.
    fn event(&self, event: &Event) -> Vec<u8> {
        let matching = |object: &Option<Object>| object.clone().filter(|object| object.matches(&self.filter));
        let mut out = Vec::new();
        match (matching(&event.old), matching(&event.new)) {
            (None, Some(new)) => self.write_event("ADDED", &new, &mut out),
            (Some(_), Some(new)) => self.write_event("MODIFIED", &new, &mut out),
            (Some(old), None) => self.write_event("DELETED", &old.at(event.version), &mut out),
            (None, None) => {}
        }
        out
    }

    fn write_event(&self, what: &str, object: &Object, out: &mut Vec<u8>) {
        match self.watch_faults.encoding {
            Encoding::Json => {
                write!(out, r#"{{"type":"{what}","object":"#).expect("memory can be written");
                object.write(self.resource, out);
                out.extend_from_slice(b"}\n");
            }
            Encoding::Protobuf => {
                let mut enveloped = Vec::new();
                object.write_enveloped(self.resource, &mut enveloped);
                protobuf::put_frame(what, &enveloped, out);
            }
        }
    }

    fn custom(&self, what: &str, object: &Value) -> Vec<u8> {
        let mut out = Vec::new();
        match self.watch_faults.encoding {
            Encoding::Json => out = format!("{}\n", json!({ "type": what, "object": object })).into_bytes(),
            Encoding::Protobuf if object["kind"] == "Status" => {
                protobuf::put_frame(what, &protobuf::status(object), &mut out);
            }
            Encoding::Protobuf => self.write_event(what, &Object::stored(object.clone()), &mut out),
        }
        out
    }

    fn bookmark(&self, version: u64, ends_initial_events: bool) -> Vec<u8> {
        let mut metadata = json!({ "resourceVersion": version.to_string() });
        if ends_initial_events {
            metadata["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
        }
        match self.watch_faults.encoding {
            Encoding::Json => {
                // Servers before 1.34 write it, so clients must accept it.
                metadata["creationTimestamp"] = json!(null);
                format!("{{\"type\":\"BOOKMARK\",\"object\":{}}}\n", self.resource.bookmark(&metadata)).into_bytes()
            }
            Encoding::Protobuf => {
                let object = Object::stored(json!({ "metadata": metadata }));
                let mut out = Vec::new();
                self.write_event("BOOKMARK", &object, &mut out);
                out
            }
        }
    }
}

/// Sends an ERROR event as the whole answer, as kube-apiserver refuses a version.
pub(super) async fn send_error(connection: &mut Connection, encoding: Encoding, status: &Status) -> io::Result<()> {
    connection.begin(encoding.stream_media_type(), Encode::Plain).await?;
    connection.body(&error_event(encoding, status)).await?;
    connection.end().await
}

fn error_event(encoding: Encoding, status: &Status) -> Vec<u8> {
    match encoding {
        Encoding::Json => format!("{}\n", json!({ "type": "ERROR", "object": status.json() })).into_bytes(),
        Encoding::Protobuf => {
            let mut out = Vec::new();
            protobuf::put_frame("ERROR", &status.body(encoding), &mut out);
            out
        }
    }
}
