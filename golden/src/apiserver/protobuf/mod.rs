//! Encodes objects, lists, events and statuses in Kubernetes' protobuf encoding, from their JSON.
//!
//! Written from the `generated.proto` and Go types of k8s.io/api and k8s.io/apimachinery, independently of the proxy's
//! decoder, which is tested against it. `tests/apiserver/recorded.rs` compares the bytes with kube-apiserver's.

mod encode;
mod kinds;
mod schema;
mod wire;

use serde_json::Value;

use wire::{put_bytes, put_len, varint_len};

pub(super) use kinds::{ENDPOINT_SLICE, EVENT, NODE, SERVICE, SERVICE_CIDR};
pub(super) use schema::Message;

/// The prefix of every message outside a watch (k8s.io/apimachinery's serializer/protobuf).
const MAGIC: &[u8] = b"k8s\0";

/// A message without envelope, as in lists.
pub(super) fn message(fields: Message, value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    encode::message(fields, value, &mut out);
    out
}

/// A message in its envelope `runtime.Unknown`.
pub(super) fn envelope(api_version: &str, kind: &str, raw: &[u8], out: &mut Vec<u8>) {
    open_envelope(api_version, kind, raw.len(), out);
    out.extend_from_slice(raw);
    close_envelope(out);
}

/// A `Status` in its envelope.
pub(super) fn status(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    envelope("v1", "Status", &message(schema::STATUS, value), &mut out);
    out
}

/// The beginning of a list up to its first item. `items` is the total size by [`item_len`].
pub(super) fn open_list(api_version: &str, kind: &str, metadata: &Value, items: usize, out: &mut Vec<u8>) {
    let metadata = message(schema::LIST_META, metadata);
    let metadata_len = 1 + varint_len(metadata.len() as u64) + metadata.len();
    open_envelope(api_version, kind, metadata_len + items, out);
    put_bytes(1, &metadata, out);
}

/// The encoded size of an item in a list.
pub(super) fn item_len(message: &[u8]) -> usize {
    1 + varint_len(message.len() as u64) + message.len()
}

/// Appends an item to a list.
pub(super) fn put_item(message: &[u8], out: &mut Vec<u8>) {
    put_bytes(2, message, out);
}

/// The end of a list.
pub(super) fn close_list(out: &mut Vec<u8>) {
    close_envelope(out);
}

/// Appends a frame of a watch: four bytes of length, big-endian, then a `WatchEvent` without envelope around an
/// enveloped object.
pub(super) fn put_frame(what: &str, object: &[u8], out: &mut Vec<u8>) {
    let mut extension = Vec::with_capacity(object.len() + 8);
    put_bytes(1, object, &mut extension);
    let mut event = Vec::with_capacity(extension.len() + 24);
    put_bytes(1, what.as_bytes(), &mut event);
    put_bytes(2, &extension, &mut event);
    let length = u32::try_from(event.len()).expect("an event is smaller than 4 GB");
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&event);
}

fn open_envelope(api_version: &str, kind: &str, raw_len: usize, out: &mut Vec<u8>) {
    let mut type_meta = Vec::new();
    put_bytes(1, api_version.as_bytes(), &mut type_meta);
    put_bytes(2, kind.as_bytes(), &mut type_meta);
    out.extend_from_slice(MAGIC);
    put_bytes(1, &type_meta, out);
    put_len(2, raw_len, out);
}

/// contentEncoding (3) and contentType (4), empty.
fn close_envelope(out: &mut Vec<u8>) {
    put_bytes(3, &[], out);
    put_bytes(4, &[], out);
}
