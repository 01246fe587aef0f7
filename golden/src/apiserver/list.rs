//! Answers to lists: written object by object, so that a large list costs little memory.
//!
//! In: a list request. Out: a `…List` with the right resourceVersion and continue token.
//! Must not know: watches.

use std::io;

use serde_json::json;

use super::http::Connection;
use super::options::{List, write_token};
use super::resource::Resource;
use super::selector::Filter;
use super::shared::Shared;
use super::status::Status;
use super::store::Page;

/// How much is gathered before it is sent.
pub(super) const PIECE: usize = 64 * 1024;

/// Finds the page that is asked for.
pub(super) fn find(shared: &Shared, resource: &Resource, filter: &Filter, list: &List) -> Result<Page, Status> {
    let store = &shared.state().store;
    let current = store.version();
    if list.not_older > current {
        return Err(Status::too_large(list.not_older, current));
    }
    let page = store.page(resource, filter, list.version.unwrap_or(current), list.continued.as_ref(), list.limit);
    page.map_err(|too_old| if list.continued.is_some() { Status::continue_expired() } else { too_old })
}

/// Sends the page.
pub(super) async fn send(
    connection: &mut Connection,
    resource: &Resource,
    filter: &Filter,
    page: &Page,
) -> io::Result<()> {
    let mut metadata = json!({ "resourceVersion": page.version.to_string() });
    if let Some((last, left)) = &page.more {
        metadata["continue"] = json!(write_token(page.version, last));
        // With a selector the real server does not know either.
        if filter.is_empty() {
            metadata["remainingItemCount"] = json!(left);
        }
    }
    let (kind, version) = (resource.kind, resource.api_version());
    let head = format!(r#"{{"kind":"{kind}List","apiVersion":"{version}","metadata":{metadata},"items":["#);
    let mut out = head.into_bytes();
    connection.begin().await?;
    for (i, object) in page.items.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        object.write_item(&mut out);
        if out.len() >= PIECE {
            connection.body(&out).await?;
            out.clear();
        }
    }
    out.extend_from_slice(b"]}\n");
    connection.body(&out).await?;
    connection.end().await
}
