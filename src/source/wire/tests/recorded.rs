//! The decoders against responses recorded from a real kube-apiserver 1.36.2 (golden/apiserver).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::*;

/// One exchange: the request's path and the response.
struct Exchange {
    path: String,
    code: u16,
    encoding: Option<Encoding>,
    body: Vec<u8>,
}

impl Exchange {
    fn read(file: &Path) -> Self {
        let bytes = std::fs::read(file).expect("an exchange");
        let at = bytes.windows(2).position(|two| two == b"\n\n").expect("a head and a body");
        let (head, body) = (String::from_utf8_lossy(&bytes[..at]).into_owned(), bytes[at + 2..].to_owned());
        let line = |start: &str| head.lines().find_map(|line| line.strip_prefix(start).map(str::to_owned));
        let status = head.lines().find(|line| line.starts_with("< ")).expect("a status");
        Self {
            path: line("> GET ").unwrap_or_default(),
            code: status.split(' ').find_map(|word| word.parse().ok()).expect("a status code"),
            encoding: line("< content-type: ").and_then(|value| Encoding::of(&value)),
            body,
        }
    }

    fn kind(&self) -> Option<Kind> {
        let resource = self.path.split('?').next()?.rsplit('/').next()?;
        Kind::ALL.into_iter().find(|kind| format!("{}s", kind.name().to_lowercase()) == resource)
    }

    fn is_watch(&self) -> bool {
        self.path.contains("watch=1") || self.path.contains("watch=true")
    }
}

/// All exchanges, by file name without its last extension.
fn exchanges() -> BTreeMap<String, Exchange> {
    fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).expect("recorded answers") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                collect(&path, found);
            } else if path.extension().is_some_and(|end| end == "http") {
                found.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/apiserver/recorded");
    let mut files = Vec::new();
    collect(&root, &mut files);
    let name = |file: &Path| file.strip_prefix(&root).expect("below").with_extension("").display().to_string();
    files.iter().map(|file| (name(file), Exchange::read(file))).collect()
}

fn one(exchanges: &BTreeMap<String, Exchange>, name: &str) -> [(Encoding, Vec<u8>); 2] {
    ["json", "pb"].map(|end| {
        let exchange = &exchanges[&format!("{name}.{end}")];
        (exchange.encoding.expect("an encoding"), exchange.body.clone())
    })
}

#[test]
fn every_recorded_answer_is_decoded_whatever_the_chunks() {
    let (mut lists, mut watches, mut statuses) = (0, 0, 0);
    for (name, exchange) in exchanges() {
        let (Some(encoding), body) = (exchange.encoding, &exchange.body) else { continue };
        if exchange.code != 200 {
            let status = decode_status(encoding, body);
            assert_eq!(status.map(|status| status.code), Some(exchange.code), "{name}");
            statuses += 1;
            continue;
        }
        let Some(kind) = exchange.kind() else { continue };
        for size in [1, 7, 1000, body.len().max(1)] {
            let chunks: Vec<&[u8]> = body.chunks(size).collect();
            if exchange.is_watch() {
                let (events, result) = watch(kind, encoding, &chunks);
                assert_eq!(result, Ok(()), "{name}");
                let bad = |event: &String| event.starts_with("Unreadable") || event.contains("skipped");
                assert!(!events.iter().any(bad), "{name}: {events:#?}");
            } else {
                let (objects, meta) = list(kind, encoding, &chunks);
                assert!(meta.as_ref().is_ok_and(|meta| !meta.resource_version.is_empty()), "{name}: {meta:?}");
                assert!(!objects.iter().any(|object| object.contains("skipped")), "{name}: {objects:#?}");
            }
        }
        *(if exchange.is_watch() { &mut watches } else { &mut lists }) += 1;
    }
    assert!(lists >= 20 && watches >= 20 && statuses >= 20, "{lists} lists, {watches} watches, {statuses} statuses");
}

#[test]
fn lists_when_recorded_in_json_and_protobuf_hold_the_same() {
    let exchanges = exchanges();
    for kind in Kind::ALL {
        let name = format!("{}s/list", kind.name().to_lowercase());
        let [json, protobuf] = one(&exchanges, &name).map(|(encoding, body)| list(kind, encoding, &[&body]));
        assert!(!json.0.is_empty(), "{name}");
        assert_eq!(json, protobuf, "{name}");
    }
    for (encoding, body) in one(&exchanges, "services/list-limit1-page1") {
        let (objects, meta) = list(Kind::Service, encoding, &[&body]);
        assert_eq!(objects.len(), 1, "{encoding:?}");
        assert_ne!(meta.expect("a list").continue_token, "", "{encoding:?}");
    }
}

#[test]
fn streamed_lists_when_recorded_end_with_their_bookmark() {
    let exchanges = exchanges();
    for kind in Kind::ALL {
        let name = format!("{}s/stream", kind.name().to_lowercase());
        for (encoding, body) in one(&exchanges, &name) {
            let (events, _) = watch(kind, encoding, &[&body]);
            let ends = |event: &String| event.starts_with("Bookmark") && event.contains("initial_events_end: true");
            let at = events.iter().position(ends).expect("the bookmark");
            assert!(at > 0 && events[..at].iter().all(|event| event.starts_with("added")), "{name} {encoding:?}");
        }
    }
}

#[test]
fn recorded_statuses_have_reason_and_retry_after() {
    let exchanges = exchanges();
    for (encoding, body) in one(&exchanges, "errors/504-rv-too-large") {
        let status = decode_status(encoding, &body).expect("a status");
        assert_eq!((status.code, &*status.reason), (504, "Timeout"));
        assert_eq!(status.retry_after, Some(std::time::Duration::from_secs(1)));
        assert_eq!(status.causes, [("ResourceVersionTooLarge".to_owned(), String::new())]);
    }
    for (encoding, body) in one(&exchanges, "errors/bad-rvm-unknown") {
        let status = decode_status(encoding, &body).expect("a status");
        assert_eq!(status.causes, [("FieldValueNotSupported".to_owned(), "resourceVersionMatch".to_owned())]);
    }
    for (encoding, body) in one(&exchanges, "etcd34/services-stream") {
        let (events, result) = watch(Kind::Service, encoding, &[&body]);
        assert_eq!((events.len(), result), (1, Ok(())));
        assert!(
            events[0].contains("RequestWatchProgress is disabled") && events[0].contains("code: 500"),
            "{events:?}"
        );
    }
    assert_eq!(decode_status(Encoding::Json, b"404 page not found"), None);
}
