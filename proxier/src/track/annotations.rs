//! The annotations that matter; all others are skipped without being copied.

use std::fmt;

use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::model::annotations::{
    CILIUM_ALGORITHM, END_STALE_CONNECTIONS, ENDPOINT_HASH, ServiceExtensions, UDP_CONNECTION_HANDLING,
};

/// The values of annotations; empty where there is none.
#[derive(Debug, Default)]
pub(super) struct Annotations {
    /// On an EndpointSlice: the trigger time of the last change.
    pub trigger_time: String,
    /// On a bookmark: `true` after all initial objects of a streamed list.
    pub initial_events_end: String,
    /// On a Service: whether connections to endpoints that are gone are ended.
    pub end_stale_connections: String,
    /// On a Service: what happens to UDP flows of terminating endpoints.
    pub udp_connection_handling: String,
    /// On a Service: what the choice of an endpoint is hashed from.
    pub endpoint_hash: String,
    /// The same as Cilium spells it.
    pub cilium_algorithm: String,
}

impl Annotations {
    /// The field for an annotation.
    pub fn of(&mut self, key: &str) -> Option<&mut String> {
        match key {
            "endpoints.kubernetes.io/last-change-trigger-time" => Some(&mut self.trigger_time),
            "k8s.io/initial-events-end" => Some(&mut self.initial_events_end),
            END_STALE_CONNECTIONS => Some(&mut self.end_stale_connections),
            UDP_CONNECTION_HANDLING => Some(&mut self.udp_connection_handling),
            ENDPOINT_HASH => Some(&mut self.endpoint_hash),
            CILIUM_ALGORITHM => Some(&mut self.cilium_algorithm),
            _ => None,
        }
    }

    /// What a Service asks for, and the annotations with values that are left out.
    pub fn extensions(&self) -> (ServiceExtensions, Vec<String>) {
        let (mut extensions, mut problems) = (ServiceExtensions::default(), Vec::new());
        for (name, value) in [
            (END_STALE_CONNECTIONS, &self.end_stale_connections),
            (UDP_CONNECTION_HANDLING, &self.udp_connection_handling),
            // Of two that ask for a hash, ours counts.
            (CILIUM_ALGORITHM, &self.cilium_algorithm),
            (ENDPOINT_HASH, &self.endpoint_hash),
        ] {
            if let Err(accepted) = extensions.set(name, value) {
                problems.push(format!("metadata.annotations[{name}]: {value:?} is not {accepted}, left out"));
            }
        }
        (extensions, problems)
    }
}

/// Decodes known annotations. Of duplicate keys the last one counts, as in Go.
impl<'de> Deserialize<'de> for Annotations {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Map;
        impl<'de> Visitor<'de> for Map {
            type Value = Annotations;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Annotations, A::Error> {
                let mut annotations = Annotations::default();
                while let Some(field) = map.next_key_seed(FieldOf(&mut annotations))? {
                    match field {
                        Some(field) => *field = map.next_value::<Option<String>>()?.unwrap_or_default(),
                        None => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(annotations)
            }
        }
        deserializer.deserialize_map(Map)
    }
}

/// Decodes a key to its field, if it has one.
struct FieldOf<'a>(&'a mut Annotations);

impl<'a, 'de> DeserializeSeed<'de> for FieldOf<'a> {
    type Value = Option<&'a mut String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'a> Visitor<'_> for FieldOf<'a> {
    type Value = Option<&'a mut String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of an annotation")
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(self.0.of(key))
    }
}

#[cfg(test)]
mod tests {
    use netfilter::IpFamily;
    use serde_json::json;

    use super::*;
    use crate::model::{EndpointHash, Mode};
    use crate::testing::objects;
    use crate::track::{Change, Kind, Object, Translation, Translator};

    const END: &str = END_STALE_CONNECTIONS;
    const UDP: &str = UDP_CONNECTION_HANDLING;

    fn translated(object: Object) -> Translation {
        Translator::new(objects::NODE, false).applied(object).expect("a valid Service")
    }

    fn extensions(translation: &Translation) -> ServiceExtensions {
        let ports = translation.changes.iter().find_map(|(family, change)| match change {
            Change::Service(_, ports) if *family == IpFamily::V4 => Some(ports),
            _ => None,
        });
        ports.expect("a Service")[0].1.extensions
    }

    #[test]
    fn annotations_of_a_service_set_its_extensions() {
        let none = ServiceExtensions::default();
        let end = ServiceExtensions { end_stale_connections: true, ..none };
        let keep = ServiceExtensions { keep_terminating_udp_flows: true, ..none };
        let hashes = |hash| ServiceExtensions { endpoint_hash: Some(hash), ..none };
        for (annotations, set) in [
            (json!(null), none),
            (json!({"app": "x", "other": "true"}), none),
            (json!({END: "true", "other": "y"}), end),
            (json!({END: "false", UDP: "Default"}), none),
            (json!({END: null, UDP: "PreserveDuringTermination"}), keep),
            (json!({ENDPOINT_HASH: "client"}), hashes(EndpointHash::Client)),
            (json!({ENDPOINT_HASH: "flow"}), hashes(EndpointHash::Flow)),
            (json!({CILIUM_ALGORITHM: "maglev"}), hashes(EndpointHash::Flow)),
            (json!({CILIUM_ALGORITHM: "random"}), none),
            (json!({CILIUM_ALGORITHM: "maglev", ENDPOINT_HASH: "client"}), hashes(EndpointHash::Client)),
        ] {
            let mut service = objects::service("shop", "web", objects::address(1));
            service["metadata"]["annotations"] = annotations;
            let text = service.to_string();
            let by_text = Object::from_json(Kind::Service, text.as_bytes()).expect("a Service");
            for object in [by_text, objects::decoded(Kind::Service, service)] {
                let translation = translated(object);
                assert_eq!(translation.problems, [""; 0], "{text}");
                assert_eq!(extensions(&translation), set, "{text}");
            }
        }
    }

    #[test]
    fn an_annotation_with_an_unknown_value_is_left_out_and_named() {
        let mut service = objects::service("shop", "web", objects::address(1));
        service["metadata"]["annotations"] = json!({END: "yes", UDP: "PreserveDuringTermination"});
        let translation = translated(objects::decoded(Kind::Service, service));
        assert_eq!(
            extensions(&translation),
            ServiceExtensions { keep_terminating_udp_flows: true, ..ServiceExtensions::default() }
        );
        let problem = format!("Service shop/web: metadata.annotations[{END}]: \"yes\" is not true or false, left out");
        assert_eq!(translation.problems, [problem]);
    }

    #[test]
    fn iptables_mode_names_the_service_that_it_cannot_hash_for() {
        let mut service = objects::service("shop", "web", objects::address(1));
        service["metadata"]["annotations"] = json!({ENDPOINT_HASH: "client"});
        for mode in Mode::ALL {
            let mut translator = Translator::new(objects::NODE, false).mode(mode);
            let object = objects::decoded(Kind::Service, service.clone());
            let problems = translator.applied(object).expect("a valid Service").problems;
            let named = problems.iter().any(|problem| problem.starts_with("Service shop/web: cannot choose endpoints"));
            assert_eq!((named, problems.len()), (mode == Mode::Iptables, usize::from(named)), "{problems:?}");
        }
    }

    /// A field of protobuf with a length.
    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let length = u8::try_from(bytes.len()).expect("a short field");
        assert!(length < 128, "a length of one byte");
        [&[number << 3 | 2, length], bytes].concat()
    }

    #[test]
    fn annotations_in_protobuf_set_extensions() {
        let annotation = |key: &str, value: &str| {
            let entry = [field(1, key.as_bytes()), field(2, value.as_bytes())].concat();
            field(12, &entry)
        };
        let metadata = [field(1, b"web"), annotation("app", "x"), annotation(END, "true")].concat();
        let port = [field(1, b"http"), field(2, b"TCP"), vec![3 << 3, 80]].concat();
        let spec = [field(1, &port), field(3, b"10.0.0.1"), field(4, b"ClusterIP")].concat();
        let service = [field(1, &metadata), field(2, &spec)].concat();
        let translation = translated(Object::from_protobuf(Kind::Service, &service).expect("a Service"));
        assert!(extensions(&translation).end_stale_connections);
        assert_eq!(translation.problems, [""; 0]);
    }
}
