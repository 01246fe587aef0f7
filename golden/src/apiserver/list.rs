//! Answers lists, one object at a time, so that a large list needs little memory.

use std::io;

use serde_json::{Value, json};

use super::delivery::Encode;
use super::encoding::Encoding;
use super::http::Connection;
use super::options::ListOptions;
use super::protobuf;
use super::request::Request;
use super::resource::Resource;
use super::selector::Filter;
use super::shared::Shared;
use super::status::Status;
use super::store::Page;
use super::token::Continuation;

/// The bytes that are buffered before sending.
pub(super) const CHUNK_SIZE: usize = 64 * 1024;

/// Larger lists are compressed for clients that accept gzip (`defaultGzipThresholdBytes`).
const GZIP_THRESHOLD: usize = 128 * 1024;

/// The requested page.
pub(super) fn find(
    shared: &Shared,
    resource: &Resource,
    filter: &Filter,
    list: &ListOptions,
    request: &Request,
) -> Result<Page, Status> {
    let store = &shared.state().store;
    let current = store.version();
    if list.not_older > current {
        return Err(Status::too_large(list.not_older, current));
    }
    let page = store.page(resource, filter, list.version.unwrap_or(current), list.continued.as_ref(), list.limit);
    page.map_err(|_| match request.param("continue") {
        Some(token) if list.continued.is_some() => Status::continue_expired(&token),
        _ => Status::list_expired(),
    })
}

/// Sends a page.
pub(super) async fn send(
    connection: &mut Connection,
    resource: &Resource,
    encoding: Encoding,
    gzip: bool,
    metadata: &Value,
    page: &Page,
) -> io::Result<()> {
    let (kind, version) = (format!("{}List", resource.kind), resource.api_version());
    let mut list = BodyWriter { connection, encoding, gzip, out: Vec::new(), begun: false };
    match encoding {
        Encoding::Json => {
            let head = format!(r#"{{"kind":"{kind}","apiVersion":"{version}","metadata":{metadata},"items":["#);
            list.out.extend_from_slice(head.as_bytes());
        }
        Encoding::Protobuf => {
            let items = page.items.iter().map(|object| protobuf::item_len(object.message(resource))).sum();
            protobuf::open_list(&version, &kind, metadata, items, &mut list.out);
        }
    }
    for (i, object) in page.items.iter().enumerate() {
        match encoding {
            Encoding::Json => {
                if i > 0 {
                    list.out.push(b',');
                }
                object.write_item(&mut list.out);
            }
            Encoding::Protobuf => protobuf::put_item(object.message(resource), &mut list.out),
        }
        list.flush_if_large().await?;
    }
    match encoding {
        Encoding::Json => list.out.extend_from_slice(b"]}\n"),
        Encoding::Protobuf => protobuf::close_list(&mut list.out),
    }
    list.end().await
}

/// The metadata of a list.
pub(super) fn metadata(page: &Page, filter: &Filter) -> Value {
    let mut metadata = json!({ "resourceVersion": page.version.to_string() });
    if let Some((last, left)) = &page.more {
        metadata["continue"] = json!(Continuation { version: Some(page.version), after: last.clone() }.write());
        // kube-apiserver does not send a count with a selector either.
        if filter.is_empty() {
            metadata["remainingItemCount"] = json!(left);
        }
    }
    metadata
}

/// A body in progress, compressed once it exceeds the threshold if the client accepts gzip.
struct BodyWriter<'a> {
    connection: &'a mut Connection,
    encoding: Encoding,
    gzip: bool,
    out: Vec<u8>,
    begun: bool,
}

impl BodyWriter<'_> {
    async fn flush_if_large(&mut self) -> io::Result<()> {
        let limit = if self.gzip && !self.begun { GZIP_THRESHOLD } else { CHUNK_SIZE };
        if self.out.len() <= limit {
            return Ok(());
        }
        self.begin(if self.gzip { Encode::Gzip } else { Encode::Plain }).await?;
        self.connection.body(&self.out).await?;
        self.out.clear();
        Ok(())
    }

    async fn begin(&mut self, encode: Encode) -> io::Result<()> {
        if self.begun {
            return Ok(());
        }
        self.begun = true;
        self.connection.begin(self.encoding.media_type(), encode).await
    }

    async fn end(mut self) -> io::Result<()> {
        self.begin(Encode::Plain).await?;
        self.connection.body(&self.out).await?;
        self.connection.end().await
    }
}
