//! Content negotiation, and the JSON and protobuf encodings on the wire.

use golden::apiserver::{ApiServer, End, MediaTypes};
use serde_json::json;

use crate::client::{Response, ask, connect, get};
use crate::{NODES, SERVICES, SLICES, service};

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const BOTH: &str = "application/vnd.kubernetes.protobuf,application/json";
const STREAMING: &str = "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";

fn accepting(api: &ApiServer, path: &str, accept: &str) -> Response {
    ask(connect(api), path, &format!("Accept: {accept}\r\n")).expect("an answer")
}

fn content_type(response: &Response) -> &str {
    response.head.lines().find_map(|line| line.strip_prefix("Content-Type: ")).expect("a content type")
}

#[test]
fn client_gos_accept_header_gets_protobuf() {
    let api = ApiServer::start();
    api.apply(service("web"));
    let mut list = accepting(&api, SERVICES, BOTH);
    assert_eq!((list.code, content_type(&list)), (200, PROTOBUF));
    assert!(list.rest().expect("a body").starts_with(b"k8s\0"));
    let mut object = accepting(&api, "/api/v1/namespaces/default/services/web", BOTH);
    assert!(object.rest().expect("a body").starts_with(b"k8s\0"));
    let mut watch = accepting(&api, &format!("{SERVICES}?{STREAMING}"), BOTH);
    assert_eq!(content_type(&watch), "application/vnd.kubernetes.protobuf;stream=watch");
    let piece = watch.piece().expect("alive").expect("the first frames");
    let length = u32::from_be_bytes(piece[..4].try_into().expect("four bytes")) as usize;
    assert!(piece.len() >= 4 + length, "{piece:?}");
    assert!(piece[4..].starts_with(b"\x0a\x05ADDED\x12"), "a frame has no envelope, its object has one: {piece:?}");
}

#[test]
fn refusals_have_the_requested_encoding() {
    let api = ApiServer::start();
    let mut refused = accepting(&api, "/api/v1/nodes/missing", BOTH);
    assert_eq!((refused.code, content_type(&refused)), (404, PROTOBUF));
    assert!(refused.rest().expect("a body").starts_with(b"k8s\0\x0a\x0c\x0a\x02v1\x12\x06Status"));
}

#[test]
fn unacceptable_types_are_refused_in_json() {
    let api = ApiServer::start();
    for (offered, accept, watch, types) in [
        (MediaTypes::JsonAndProtobuf, "text/html", "", "application/json, application/yaml, application/vnd"),
        (MediaTypes::OnlyJson, PROTOBUF, "", "application/json, application/yaml"),
        (MediaTypes::OnlyJson, PROTOBUF, "?watch=true", "application/json;stream=watch"),
    ] {
        api.offer(offered);
        let mut refused = accepting(&api, &format!("{SERVICES}{watch}"), accept);
        assert_eq!((refused.code, content_type(&refused)), (406, "application/json"));
        let status: serde_json::Value = serde_json::from_slice(&refused.rest().expect("a body")).expect("JSON");
        assert_eq!(status["reason"], "NotAcceptable");
        let message = status["message"].as_str().expect("a message");
        assert!(message.starts_with("only the following media types are accepted: ") && message.contains(types));
    }
}

#[test]
fn json_server_answers_json_if_both_types_are_accepted() {
    let api = ApiServer::start();
    for offered in [MediaTypes::OnlyJson, MediaTypes::AlwaysJson] {
        api.offer(offered);
        assert_eq!(content_type(&accepting(&api, SERVICES, BOTH)), "application/json");
        assert_eq!(content_type(&accepting(&api, &format!("{NODES}?watch=true"), BOTH)), "application/json");
    }
    assert_eq!(content_type(&accepting(&api, SERVICES, PROTOBUF)), "application/json", "only JSON is offered");
}

#[test]
fn an_object_with_wrong_types_is_written_in_the_wire_types_of_its_values() {
    let api = ApiServer::start();
    api.apply(json!({ "kind": "Service", "metadata": { "name": "bad", "labels": 5 }, "spec": "x" }));
    let body = accepting(&api, SERVICES, PROTOBUF).rest().expect("a body");
    let has = |bytes: &[u8]| body.windows(bytes.len()).any(|window| window == bytes);
    assert!(has(b"\x58\x05"), "labels (11) are a number: {body:?}");
    assert!(has(b"\x12\x01x"), "the spec (2) is a text: {body:?}");
}

#[test]
fn large_lists_are_compressed_if_accepted_and_watches_are_not() {
    let api = ApiServer::start();
    api.load_synthetic(200, 10);
    let gzip = |path: &str, accept: &str| {
        let headers = format!("Accept: {accept}\r\nAccept-Encoding: gzip\r\n");
        ask(connect(&api), path, &headers).expect("an answer")
    };
    for accept in ["application/json", PROTOBUF] {
        let mut plain = accepting(&api, SLICES, accept);
        assert!(!plain.head.contains("Content-Encoding"), "not asked for");
        let mut packed = gzip(SLICES, accept);
        assert!(packed.head.contains("Content-Encoding: gzip\r\nVary: Accept-Encoding\r\n"), "{}", packed.head);
        let (plain, packed) = (plain.rest().expect("a body"), packed.rest().expect("a body"));
        assert!(packed.len() * 4 < plain.len(), "{} of {}", packed.len(), plain.len());
        assert_eq!(unpack(&packed), plain);
        assert!(!gzip(&format!("{SLICES}?limit=5"), accept).head.contains("Content-Encoding"), "small");
        assert!(!gzip(&format!("{SLICES}?{STREAMING}"), accept).head.contains("Content-Encoding"), "a watch");
    }
}

#[test]
fn streamed_lists_may_be_compressed_in_members() {
    let api = ApiServer::start();
    api.compress_streamed_lists(true);
    api.apply(service("web"));
    let ask_for = |path: &str| ask(connect(&api), path, "Accept-Encoding: gzip\r\n").expect("an answer");
    assert!(!ask_for(&format!("{SERVICES}?watch=true&resourceVersion=1")).head.contains("gzip"), "a plain watch");
    let mut stream = ask_for(&format!("{SERVICES}?{STREAMING}"));
    assert!(stream.head.contains("Content-Encoding: gzip"));
    api.wait_for_watches("Service", 1);
    api.apply(service("later"));
    let first = stream.piece().expect("alive").expect("the initial events");
    let second = stream.piece().expect("alive").expect("the event");
    assert!(first.starts_with(&[0x1f, 0x8b]) && second.starts_with(&[0x1f, 0x8b]), "each a member of its own");
    let text = String::from_utf8(unpack(&[first, second].concat())).expect("text");
    let kinds: Vec<&str> = text.lines().filter_map(|line| line.get(9..14)).collect();
    assert_eq!(kinds, ["ADDED", "BOOKM", "ADDED"]);
    api.end_watches(End::Clean);
    assert_eq!(stream.piece().expect("a proper end"), None);
}

fn unpack(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::MultiGzDecoder::new(bytes), &mut out).expect("gzip");
    out
}

#[test]
fn protobuf_is_encoded_once_and_follows_changes() {
    let api = ApiServer::start();
    api.load_synthetic(20, 3);
    api.encode_all();
    let first = accepting(&api, SLICES, PROTOBUF).rest().expect("a body");
    assert_eq!(accepting(&api, SLICES, PROTOBUF).rest().expect("a body"), first);
    let mut slice = api.get("EndpointSlice", "scale", "svc-00003-x7k2p").expect("it is there");
    slice["endpoints"].as_array_mut().expect("endpoints").pop();
    api.apply(slice);
    let second = accepting(&api, SLICES, PROTOBUF).rest().expect("a body");
    assert!(second.len() < first.len());
    assert_eq!(get(&api, SLICES).0, 200);
}

/// A real server's slices of ten endpoints take 3,150 bytes of JSON and 1,561 of protobuf in a list.
#[test]
fn the_synthetic_load_is_as_large_as_a_real_one_in_both_encodings() {
    let api = ApiServer::start();
    api.load_synthetic(100, 10);
    for (accept, real) in [("application/json", 3_150), (PROTOBUF, 1_561)] {
        let size = accepting(&api, SLICES, accept).rest().expect("a body").len() / 100;
        assert!((real * 8 / 10..real * 12 / 10).contains(&size), "{size} bytes, a real one has {real}");
    }
}
