//! Any object decodes to the same in JSON and protobuf; any bytes are at worst an error.

use proptest::prelude::*;
use proxier::track::{DecodeError, Object};
use serde::Serialize;

use super::encode::{envelope, frame, message};
use super::generate;
use super::kubernetes::Encode;
use super::*;
use crate::fuzzing;

/// An object in both encodings.
fn both<T: Encode + Serialize>(object: &T) -> (Vec<u8>, Vec<u8>) {
    let mut protobuf = Vec::new();
    object.encode(&mut protobuf);
    (serde_json::to_vec(object).expect("JSON"), protobuf)
}

fn any_object() -> impl Strategy<Value = (Kind, Vec<u8>, Vec<u8>)> {
    let made = |kind, (json, protobuf)| (kind, json, protobuf);
    prop_oneof![
        generate::service().prop_map(move |object| made(Kind::Service, both(&object))),
        generate::slice().prop_map(move |object| made(Kind::EndpointSlice, both(&object))),
        generate::node().prop_map(move |object| made(Kind::Node, both(&object))),
        generate::service_cidr().prop_map(move |object| made(Kind::ServiceCidr, both(&object))),
    ]
}

/// What an object translates to. Of two faults, each encoding may report the one that it meets first.
fn meaning(object: Result<Object, DecodeError>) -> Result<String, String> {
    let object = object.map_err(|_| "it cannot be decoded".to_owned())?;
    let (key, version) = (object.key().clone(), object.resource_version().to_owned());
    match Translator::new("node-a", false).applied(object) {
        Ok(translated) => Ok(format!("{key} {version} {translated:?}")),
        Err(error) => Err(error.object),
    }
}

#[test]
fn most_generated_objects_are_valid() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut objects = || any_object().new_tree(&mut runner).expect("an object").current();
    let valid = |(kind, json, _): (Kind, Vec<u8>, Vec<u8>)| meaning(Object::from_json(kind, &json)).is_ok();
    let count = (0..400).filter(|_| valid(objects())).count();
    assert!((200..400).contains(&count), "{count} of 400");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_object_means_the_same_in_json_and_protobuf((kind, json, protobuf) in any_object()) {
        let value = serde_json::from_slice(&json).expect("JSON");
        let expected = meaning(Object::from_json(kind, &json));
        prop_assert_eq!(&meaning(Object::from_protobuf(kind, &protobuf)), &expected);
        prop_assert_eq!(&meaning(Object::from_value(kind, value)), &expected);
    }

    #[test]
    fn an_object_in_protobuf_when_damaged_is_decoded_or_refused(
        (kind, _, mut protobuf) in any_object(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        if !protobuf.is_empty() {
            let at = at.index(protobuf.len());
            protobuf[at] = byte;
            fuzzing::object(false, kind, &protobuf);
            fuzzing::object(false, kind, &protobuf[..at]);
        }
    }

    #[test]
    fn a_response_when_damaged_is_the_same_whatever_the_chunks(
        (kind, json, protobuf) in any_object(),
        sizes in any::<[u8; 8]>(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let (kind_name, api_version) = (kind.name(), kind.api_version());
        let json = String::from_utf8(json).expect("JSON");
        let list_name = format!("{kind_name}List");
        let header = format!(r#""kind":"{list_name}","apiVersion":"{api_version}","metadata":{{"resourceVersion":"1"}}"#);
        let json_list = format!(r#"{{{header},"items":[{json},{json}]}}"#);
        let json_watch = format!(r#"{{"type":"ADDED","object":{json}}}{{"type":"DELETED","object":{json}}}"#);
        let list = envelope(api_version, &list_name, |out| {
            message(out, 2, |out| out.extend_from_slice(&protobuf));
            message(out, 2, |out| out.extend_from_slice(&protobuf));
        });
        let object = envelope(api_version, kind_name, |out| out.extend_from_slice(&protobuf));
        let watch = ["ADDED", "DELETED"].map(|name| frame(name, &object)).concat();
        for (is_json, list, watch) in [(true, json_list.into_bytes(), json_watch.into_bytes()), (false, list, watch)] {
            for damage in [false, true] {
                for (body, decode) in [(&list, fuzzing::list as fn(bool, Kind, &[u8])), (&watch, fuzzing::watch)] {
                    let mut input = [&sizes[..], body].concat();
                    if damage {
                        let at = 8 + at.index(body.len());
                        input[at] = byte;
                    }
                    decode(is_json, kind, &input);
                }
            }
        }
    }

    #[test]
    fn garbage_never_panics(
        json in any::<bool>(),
        kind in prop::sample::select(&Kind::ALL[..]),
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        text in r#"\{?("(items|type|object|kind|metadata|name)"|ADDED|[\[\]{}:,"\\ ]|null|1|\PC){0,40}"#,
    ) {
        for input in [&bytes[..], text.as_bytes()] {
            fuzzing::object(json, kind, input);
            fuzzing::list(json, kind, input);
            fuzzing::watch(json, kind, input);
            fuzzing::status(json, input);
        }
    }
}
