//! Decoders of lists and watches: the same objects whatever the chunk sizes.

use proxier::track::{Kind, Translator};

use super::*;

mod encode;
mod generate;
mod kubernetes;
mod property;
mod recorded;

use encode::{envelope, frame, message, text};

/// An object of a response, translated and printed.
fn shown(object: proxier::track::Object) -> String {
    let (key, version) = (object.key().clone(), object.resource_version().to_owned());
    match Translator::new("node-a", false).applied(object) {
        Ok(translated) => format!("{key} {version}: {:?} {:?}", translated.changes, translated.problems),
        Err(error) => format!("{key} {version}: {error}"),
    }
}

fn list(kind: Kind, encoding: Encoding, chunks: &[&[u8]]) -> (Vec<String>, Result<ListMeta, WireError>) {
    let (mut decoder, mut objects) = (ListDecoder::new(kind, encoding), Vec::new());
    for chunk in chunks {
        if let Err(error) = decoder.push(chunk, &mut |object| objects.push(shown(object))) {
            return (objects, Err(error));
        }
    }
    (objects, decoder.finish())
}

fn watch(kind: Kind, encoding: Encoding, chunks: &[&[u8]]) -> (Vec<String>, Result<(), WireError>) {
    let (mut decoder, mut events) = (WatchDecoder::new(kind, encoding), Vec::new());
    let mut take = |event: WatchEvent| {
        events.push(match event {
            WatchEvent::Added(object) => format!("added {}", shown(object)),
            WatchEvent::Modified(object) => format!("modified {}", shown(object)),
            WatchEvent::Deleted(object) => format!("deleted {}", shown(object)),
            other => format!("{other:?}"),
        });
    };
    for chunk in chunks {
        if let Err(error) = decoder.push(chunk, &mut take) {
            return (events, Err(error));
        }
    }
    (events, decoder.finish())
}

/// A page of a list of Nodes with the items' encoded form.
fn nodes(encoding: Encoding, names: &[&str]) -> Vec<u8> {
    match encoding {
        Encoding::Json => {
            let items: Vec<String> =
                names.iter().map(|name| format!(r#"{{"metadata":{{"name":"{name}"}}}}"#)).collect();
            let items = items.join(",");
            format!(r#"{{"kind":"NodeList","apiVersion":"v1","metadata":{{"resourceVersion":"7","continue":"more"}},"items":[{items}]}}"#).into_bytes()
        }
        Encoding::Protobuf => envelope("v1", "NodeList", |list| {
            message(list, 1, |meta| {
                text(meta, 2, "7");
                text(meta, 3, "more");
            });
            for name in names {
                message(list, 2, |node| message(node, 1, |meta| text(meta, 1, name)));
            }
        }),
    }
}

#[test]
fn a_list_when_cut_at_any_byte_is_the_same_and_when_truncated_is_never_complete() {
    for encoding in [Encoding::Json, Encoding::Protobuf] {
        let body = nodes(encoding, &["node-a", "b\\u0031\\\"{[\\\\", "node-c"]);
        let expected = list(Kind::Node, encoding, &[&body]);
        assert_eq!(expected.0.len(), 3, "{expected:?}");
        let meta = ListMeta { resource_version: "7".to_owned(), continue_token: "more".to_owned(), unreadable: None };
        assert_eq!(expected.1.as_ref(), Ok(&meta));
        let bytes: Vec<&[u8]> = body.chunks(1).collect();
        assert_eq!(list(Kind::Node, encoding, &bytes), expected);
        for cut in 0..body.len() {
            let (first, second) = body.split_at(cut);
            assert_eq!(list(Kind::Node, encoding, &[first, second]), expected, "{encoding:?} at {cut}");
            let truncated = list(Kind::Node, encoding, &[first]);
            // What follows the list in the protobuf envelope says nothing.
            let is_whole = encoding == Encoding::Protobuf && truncated.0.len() == 3;
            assert!(is_whole || truncated.1 == Err(WireError::Incomplete("a list")), "{encoding:?} at {cut}");
        }
    }
}

#[test]
fn a_watch_when_cut_at_any_byte_is_the_same() {
    let json = concat!(
        r#"{"type":"ADDED","object":{"metadata":{"name":"node-a"}}}"#,
        "\n",
        r#"{"object":{"metadata":{"name":"b","resourceVersion":"2"}},"type":"MODIFIED"}{"type":"DELETED","object":{"metadata":{"name":"c"}}}"#,
        r#"{"type":"BOOKMARK","object":{"kind":"Node","metadata":{"resourceVersion":"9","annotations":{"k8s.io/initial-events-end":"true"}}}}"#,
        r#"{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired","message":"too old"}}"#,
        r#"{"type":"added","object":{"metadata":{"name":"d"}}}{"type":"ADDED","object":{"metadata":{}}}{}"#,
        "\n",
    );
    let node = |name: &str, version: &str| {
        envelope("v1", "Node", |node| {
            message(node, 1, |meta| {
                text(meta, 1, name);
                text(meta, 6, version);
            });
        })
    };
    let bookmark = envelope("v1", "Node", |node| {
        message(node, 1, |meta| {
            text(meta, 6, "9");
            message(meta, 12, |entry| {
                text(entry, 1, "k8s.io/initial-events-end");
                text(entry, 2, "true");
            });
        });
    });
    let status = envelope("v1", "Status", |status| {
        text(status, 3, "too old");
        text(status, 4, "Expired");
        encode::varint(status, 6, 410);
    });
    let protobuf = [
        frame("ADDED", &node("node-a", "")),
        frame("MODIFIED", &node("b", "2")),
        frame("DELETED", &node("c", "")),
        frame("BOOKMARK", &bookmark),
        frame("ERROR", &status),
        frame("added", &node("d", "")),
        frame("ADDED", &node("", "")),
        vec![0, 0, 0, 0],
    ]
    .concat();
    let whole = |encoding, body: &[u8]| {
        let (events, result) = watch(Kind::Node, encoding, &[body]);
        assert_eq!(result, Ok(()), "{encoding:?}");
        events
    };
    let expected = whole(Encoding::Json, json.as_bytes());
    assert_eq!(expected.len(), 8, "{expected:#?}");
    assert!(expected[0].starts_with("added Node node-a") && expected[1].starts_with("modified Node b 2"));
    assert!(expected[5].contains("unknown type \\\"added\\\""), "{}", expected[5]);
    assert!(expected[6].contains("metadata.name is missing"), "{}", expected[6]);
    assert_eq!(whole(Encoding::Protobuf, &protobuf), expected);
    for (encoding, body) in [(Encoding::Json, json.as_bytes()), (Encoding::Protobuf, &protobuf)] {
        let bytes: Vec<&[u8]> = body.chunks(1).collect();
        assert_eq!(watch(Kind::Node, encoding, &bytes), (expected.clone(), Ok(())), "{encoding:?}");
        for cut in 0..body.len() {
            let (first, second) = body.split_at(cut);
            assert_eq!(watch(Kind::Node, encoding, &[first, second]), (expected.clone(), Ok(())), "at {cut}");
            let (events, result) = watch(Kind::Node, encoding, &[first]);
            assert!(expected.starts_with(&events), "{encoding:?} at {cut}");
            assert!(result.is_err() || events.len() < 8 || encoding == Encoding::Json, "{encoding:?} at {cut}");
        }
    }
}
