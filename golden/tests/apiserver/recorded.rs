//! Compares answers with those of kube-apiserver 1.36.2 for the same objects (`golden/apiserver/recorded`).
//!
//! Protobuf must be equal byte by byte, JSON value by value.

use std::path::{Path, PathBuf};

use golden::apiserver::{ApiServer, Fault, Requests};
use serde_json::{Value, json};

use crate::client::{ask, connect, send};

const KINDS: [&str; 4] = ["services", "endpointslices", "nodes", "servicecidrs"];

/// One recorded exchange.
struct Exchange {
    name: String,
    method: String,
    path: String,
    accept: String,
    status: u16,
    /// The headers of the answer, in small letters.
    head: String,
    body: Vec<u8>,
}

impl Exchange {
    fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let end = bytes.windows(2).position(|two| two == b"\n\n").expect("an empty line");
        let head = std::str::from_utf8(&bytes[..end]).expect("text");
        let line = |start: &str| head.lines().find_map(|line| line.strip_prefix(start)).unwrap_or_default().to_owned();
        let (method, path_asked) = head.strip_prefix("> ").and_then(|rest| rest.split_once(' ')).expect("a request");
        Self {
            name: path.display().to_string(),
            method: method.to_owned(),
            path: path_asked.lines().next().expect("a path").to_owned(),
            accept: line("> Accept: "),
            status: line("< ").parse().expect("a status"),
            head: head.to_lowercase(),
            body: bytes[end + 2..].to_vec(),
        }
    }

    fn named(name: &str) -> Self {
        Self::read(&folder().join(format!("{name}.http")))
    }

    /// All in a folder whose names begin so.
    fn all(folder_name: &str, start: &str) -> Vec<Self> {
        let entries = std::fs::read_dir(folder().join(folder_name)).expect("recordings");
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
        paths.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(start)));
        paths.sort();
        assert!(!paths.is_empty(), "no recordings of {folder_name}/{start}");
        paths.iter().map(|path| Self::read(path)).collect()
    }

    fn is_protobuf(&self) -> bool {
        self.header("content-type").starts_with("application/vnd.kubernetes.protobuf")
    }

    fn header(&self, name: &str) -> &str {
        self.head.lines().find_map(|line| line.strip_prefix(&format!("< {name}: "))).unwrap_or_default()
    }

    /// The resourceVersion of the answer: the list's, or that of the last event.
    fn version(&self) -> u64 {
        let text = String::from_utf8_lossy(&self.body);
        let last = text.lines().last().expect("a body");
        let value: Value = serde_json::from_str(last).expect("JSON");
        let object = if value["object"].is_null() { &value } else { &value["object"] };
        object["metadata"]["resourceVersion"].as_str().expect("a version").parse().expect("a number")
    }

    /// Asks our server the same and compares status, headers and body.
    fn compare(&self, api: &ApiServer) {
        let mut ours = ask(connect(api), &self.path, &format!("Accept: {}\r\n", self.accept)).expect("an answer");
        self.compare_head(ours.code, &ours.head);
        let body = match self.is_watch() {
            true => ours.exactly(if self.is_protobuf() { self.body.len() } else { usize::MAX }, self.lines()),
            false => ours.rest().expect("a body"),
        };
        self.compare_body(&body);
    }

    fn is_watch(&self) -> bool {
        (self.path.contains("watch=1") || self.path.contains("watch=true")) && self.status == 200
    }

    fn lines(&self) -> usize {
        self.body.iter().filter(|byte| **byte == b'\n').count()
    }

    fn compare_head(&self, code: u16, head: &str) {
        assert_eq!(code, self.status, "{}", self.name);
        let head = head.to_lowercase();
        for name in ["content-type", "retry-after"] {
            let ours = head.lines().find_map(|line| line.strip_prefix(&format!("{name}: "))).unwrap_or_default();
            assert_eq!(ours, self.header(name), "{} of {}", name, self.name);
        }
    }

    fn compare_body(&self, body: &[u8]) {
        if self.is_protobuf() || self.header("content-type").starts_with("text/") {
            assert!(body == self.body, "{}:\nours {}\nreal {}", self.name, hex(body), hex(&self.body));
            return;
        }
        let parse = |bytes: &[u8]| -> Vec<Value> {
            let values = serde_json::Deserializer::from_slice(bytes).into_iter();
            let mut values: Vec<Value> = values.collect::<Result<_, _>>().expect("JSON");
            for value in &mut values {
                forget_null_timestamp(value);
            }
            values
        };
        assert_eq!(parse(body), parse(&self.body), "{}", self.name);
    }
}

/// Our bookmarks have one, as those of servers before 1.34.
fn forget_null_timestamp(event: &mut Value) {
    if event["type"] == "BOOKMARK"
        && let Some(metadata) = event["object"]["metadata"].as_object_mut()
    {
        metadata.remove("creationTimestamp");
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("apiserver/recorded")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A server with the recorded objects of one collection.
fn restored(collection: &str) -> ApiServer {
    let api = ApiServer::start();
    let list = Exchange::named(&format!("{collection}/list.json"));
    api.restore(&serde_json::from_slice(&list.body).expect("JSON"));
    api
}

#[test]
fn lists_and_pages_equal_the_real_ones() {
    for collection in KINDS {
        let api = restored(collection);
        for exchange in Exchange::all(collection, "list") {
            // The protobuf's version is not known without decoding; the JSON has the same.
            let twin = exchange.name.replace(".pb.", ".json.");
            if Path::new(&twin).exists() {
                api.rewind(Exchange::read(Path::new(&twin)).version());
            }
            exchange.compare(&api);
        }
    }
}

#[test]
fn single_objects_equal_the_real_ones() {
    for collection in ["services", "nodes"] {
        let api = ApiServer::start();
        let recorded = Exchange::named(&format!("{collection}/get-one.json"));
        let object: Value = serde_json::from_slice(&recorded.body).expect("JSON");
        let kind = format!("{}List", object["kind"].as_str().expect("a kind"));
        let mut item = object.clone();
        item.as_object_mut().expect("an object").retain(|field, _| field != "kind" && field != "apiVersion");
        api.restore(&json!({ "kind": kind, "metadata": { "resourceVersion": "400" }, "items": [item] }));
        for exchange in Exchange::all(collection, "get-one") {
            exchange.compare(&api);
        }
    }
}

#[test]
fn streamed_lists_equal_the_real_ones() {
    for collection in KINDS {
        let api = restored(collection);
        for encoding in ["json", "pb"] {
            let exchange = Exchange::named(&format!("{collection}/stream.{encoding}"));
            // The servers counted other changes between the two.
            let version = if encoding == "pb" { last_version(&exchange.body) } else { exchange.version() };
            api.rewind(version);
            exchange.compare(&api);
        }
    }
}

/// The version in the bookmark at the end of a stream in protobuf: the text after the tag of `resourceVersion`, which
/// is the only one there is in it.
fn last_version(body: &[u8]) -> u64 {
    let bookmark = body.windows(8).rposition(|eight| eight == b"BOOKMARK").expect("a bookmark");
    let at = body[bookmark..].windows(1).position(|one| one == [0x32]).expect("the tag of field 6") + bookmark;
    let text = &body[at + 2..at + 2 + usize::from(body[at + 1])];
    std::str::from_utf8(text).expect("text").parse().expect("a number")
}

#[test]
fn client_gos_accept_header_gives_protobuf_with_the_streams_media_type() {
    let api = restored("services");
    for name in ["stream-client-go.pb", "stream-plain-pb.pb"] {
        let exchange = Exchange::named(&format!("services/{name}"));
        api.rewind(last_version(&exchange.body));
        exchange.compare(&api);
    }
}

/// What kube-proxy 1.36.2 itself asks, with its selectors and its `Accept` header.
#[test]
fn kube_proxys_own_requests_are_answered_as_by_the_real_one() {
    for collection in KINDS {
        let streamed = Exchange::named(&format!("kube-proxy/{collection}-stream.json"));
        let events = serde_json::Deserializer::from_slice(&streamed.body).into_iter::<Value>();
        let mut objects: Vec<Value> = events.map(|event| event.expect("JSON")["object"].take()).collect();
        let bookmark = objects.pop().expect("a bookmark");
        let kind = format!("{}List", bookmark["kind"].as_str().expect("a kind"));
        for object in &mut objects {
            object.as_object_mut().expect("an object").retain(|field, _| field != "kind" && field != "apiVersion");
        }
        let api = ApiServer::start();
        api.restore(&json!({ "kind": kind, "metadata": bookmark["metadata"], "items": objects }));
        let list = Exchange::named(&format!("kube-proxy/{collection}-list-rv0.pb"));
        let stream = Exchange::named(&format!("kube-proxy/{collection}-stream.pb"));
        for (exchange, version) in [(&list, list_version(&list.body)), (&stream, last_version(&stream.body))] {
            api.rewind(version);
            exchange.compare(&api);
        }
    }
}

/// The version of a list in protobuf: the text after an empty `selfLink` (1) and the tag of `resourceVersion` (2).
fn list_version(body: &[u8]) -> u64 {
    let at = body.windows(3).position(|three| three == [0x0a, 0, 0x12]).expect("the metadata of a list");
    let text = &body[at + 4..at + 4 + usize::from(body[at + 3])];
    std::str::from_utf8(text).expect("text").parse().expect("a number")
}

#[test]
fn events_of_watches_equal_the_real_ones() {
    for collection in KINDS {
        let events: Vec<Value> =
            serde_json::Deserializer::from_slice(&Exchange::named(&format!("{collection}/watch.json")).body)
                .into_iter()
                .collect::<Result<_, _>>()
                .expect("JSON");
        for encoding in ["json", "pb"] {
            let exchange = Exchange::named(&format!("{collection}/watch.{encoding}"));
            let api = restored(collection);
            let start = exchange.path.split(['?', '&']).find_map(|part| part.strip_prefix("resourceVersion="));
            api.rewind(start.and_then(|version| version.parse().ok()).expect("a version"));
            let path = exchange.path.replace("timeoutSeconds=6", "timeoutSeconds=60");
            let mut ours = ask(connect(&api), &path, &format!("Accept: {}\r\n", exchange.accept)).expect("an answer");
            exchange.compare_head(ours.code, &ours.head);
            replay(&api, &events);
            let body = ours.exactly(if encoding == "pb" { exchange.body.len() } else { usize::MAX }, events.len());
            exchange.compare_body(&body);
        }
    }
}

/// Makes the changes that these events tell of, under their versions.
fn replay(api: &ApiServer, events: &[Value]) {
    for event in events {
        let object = event["object"].clone();
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        let version: u64 = text("resourceVersion").parse().expect("a version");
        let kind = object["kind"].as_str().expect("a kind").to_owned();
        match event["type"].as_str() {
            Some("BOOKMARK") => {
                api.rewind(version);
                api.send_bookmarks();
            }
            Some("DELETED") => {
                // The object is as it was; only its version is new.
                api.rewind(version - 1);
                api.delete(&kind, &text("namespace"), &text("name"));
            }
            _ => {
                api.rewind(version - 1);
                api.apply(object.clone());
            }
        }
    }
}

/// Errors whose words quote a parser of Go: the status and the reason must do.
const OTHER_WORDS: [&str; 5] =
    ["bad-selector", "bad-watch-selector", "bad-field", "bad-continue-garbage", "bad-watch-stream-exact"];

#[test]
fn bad_requests_are_refused_in_the_real_words() {
    let api = restored("services");
    for exchange in Exchange::all("errors", "bad-").into_iter().chain(Exchange::all("errors", "404-object")) {
        if exchange.status == 200 {
            continue;
        }
        if !OTHER_WORDS.iter().any(|name| exchange.name.contains(name)) {
            exchange.compare(&api);
        } else if !exchange.is_protobuf() {
            let (code, body) = crate::client::get(&api, &exchange.path);
            let real: Value = serde_json::from_slice(&exchange.body).expect("JSON");
            assert_eq!((code, &body["reason"]), (exchange.status, &real["reason"]), "{}", exchange.name);
        }
    }
}

#[test]
fn a_method_that_is_not_allowed_is_refused_in_the_real_words() {
    let api = ApiServer::start();
    for exchange in Exchange::all("errors", "405") {
        let request = format!("{} {} HTTP/1.1\r\nAccept: {}\r\n\r\n", exchange.method, exchange.path, exchange.accept);
        let mut ours = send(connect(&api), &request).expect("an answer");
        exchange.compare_head(ours.code, &ours.head);
        exchange.compare_body(&ours.rest().expect("a body"));
    }
}

#[test]
fn a_missing_token_is_refused_in_the_real_words() {
    let api = restored("services");
    api.require_token(Some("secret"));
    for name in ["401.json", "401.pb", "401-watch.json", "401-watch.pb"] {
        Exchange::named(&format!("errors/{name}")).compare(&api);
    }
}

#[test]
fn a_missing_right_is_refused_in_the_real_words() {
    let api = restored("services");
    api.inject(Fault::Refuse(403).on(Requests::All));
    for name in ["403.json", "403-watch.json", "403-get.json"] {
        let exchange = Exchange::named(&format!("errors/{name}"));
        let (code, mut ours) = crate::client::get(&api, &exchange.path);
        let message = ours["message"].as_str().expect("a message").replace("system:kube-proxy", "nobody");
        ours["message"] = json!(message);
        let real: Value = serde_json::from_slice(&exchange.body).expect("JSON");
        assert_eq!((code, ours), (exchange.status, real), "{name}");
    }
}

#[test]
fn a_version_that_is_too_large_is_refused_in_the_real_words() {
    let api = restored("services");
    for name in ["504-rv-too-large.json", "504-rv-too-large.pb", "rv-too-large-stream.json", "rv-too-large-stream.pb"] {
        let exchange = Exchange::named(&format!("errors/{name}"));
        let text = String::from_utf8_lossy(&exchange.body).into_owned();
        let current = text.split("current: ").nth(1).expect("the present version");
        let digits: String = current.chars().take_while(char::is_ascii_digit).collect();
        api.rewind(digits.parse().expect("a number"));
        exchange.compare(&api);
    }
}

#[test]
fn fairness_rejects_in_the_real_words() {
    let api = restored("services");
    api.inject(Fault::TooManyRequests { retry_after: 2 }.on(Requests::All));
    for encoding in ["json", "pb"] {
        Exchange::named(&format!("errors/429-fairness.{encoding}")).compare(&api);
    }
}

#[test]
fn expired_versions_and_tokens_are_refused_in_the_real_words() {
    let api = restored("services");
    // The recording server was restarted at this version, and so knew nothing from before it.
    api.rewind(309);
    api.expire_history();
    for name in ["watch-restarted", "continue-restarted", "list-exact-restarted", "watch-rv1-restarted"] {
        for encoding in ["json", "pb"] {
            Exchange::named(&format!("expired/{name}.{encoding}")).compare(&api);
        }
    }
}

#[test]
fn an_etcd_without_watch_progress_refuses_streamed_lists_in_the_real_words() {
    for (collection, name) in [("services", "services-stream"), ("endpointslices", "endpointslices-stream")] {
        let api = restored(collection);
        api.inject(Fault::WatchProgressDisabled.on(Requests::StreamedLists));
        for encoding in ["json", "pb"] {
            Exchange::named(&format!("etcd34/{name}.{encoding}")).compare(&api);
        }
    }
}
