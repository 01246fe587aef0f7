//! Invalid objects and tables: they are rejected or tolerated, and never inject text into rules.
//!
//! Random values, and valid objects with a random part, cause no panic, and the fake of iptables accepts the rules.

use std::time::Instant;

use netfilter::IpFamily;
use netfilter::SavedTable;
use netfilter::iptables::Table;
use netfilter::testing::{FakeHost, FakeIptables};
use proptest::prelude::*;
use proptest::sample::Index;
use proxier::backend::Backend;
use proxier::iptables::Iptables;
use proxier::model::Scope;
use proxier::testing::objects;
use proxier::track::{Change, Kind, Object, Tracker, Translator, key_of};
use serde_json::{Map, Value, json};

/// Words that mean something somewhere.
const WORDS: [&str; 24] = [
    "",
    "None",
    "TCP",
    "ICMP",
    "IPv4",
    "IPv6",
    "FQDN",
    "ClientIP",
    "Local",
    "LoadBalancer",
    "ExternalName",
    "10.0.0.1",
    "010.0.0.1",
    "::ffff:10.0.0.1",
    "fe80::1%eth0",
    "0.0.0.0/0",
    "10.0.0.0/99",
    "a b",
    "\"",
    "\\",
    "-j DROP",
    "x\nCOMMIT",
    "ü",
    "\u{0}",
];

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-2..70_000_i64).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop::sample::select(&WORDS[..]).prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    scalar().prop_recursive(4, 32, 4, |inner| {
        let key = prop_oneof![prop::sample::select(&WORDS[..]).prop_map(str::to_owned), any::<String>()];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(key, inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// Objects in which every field is set.
fn good(kind: Kind) -> Value {
    match kind {
        Kind::Service => json!({
            "metadata": { "name": "svc", "namespace": "ns", "labels": { "a": "b" }, "deletionTimestamp": null },
            "spec": {
                "type": "LoadBalancer", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"],
                "ipFamilies": ["IPv4", "IPv6"], "ports": [{ "name": "http", "protocol": "TCP", "port": 80, "nodePort": 30080 }],
                "externalIPs": ["192.0.2.1"], "loadBalancerSourceRanges": ["10.0.0.0/8"], "externalTrafficPolicy": "Local",
                "internalTrafficPolicy": "Cluster", "sessionAffinity": "ClientIP", "healthCheckNodePort": 32000,
                "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": 10 } }
            },
            "status": { "loadBalancer": { "ingress": [{ "ip": "203.0.113.1", "ipMode": "VIP" }] } }
        }),
        Kind::EndpointSlice => json!({
            "metadata": { "name": "svc-1", "namespace": "ns", "labels": { "kubernetes.io/service-name": "svc" } },
            "addressType": "IPv4", "ports": [{ "name": "http", "protocol": "TCP", "port": 8080 }],
            "endpoints": [{
                "addresses": ["10.0.0.1"], "conditions": { "ready": true, "serving": true, "terminating": false },
                "nodeName": "node-a", "hints": { "forZones": [{ "name": "a" }], "forNodes": [{ "name": "node-a" }] }
            }]
        }),
        Kind::Node => json!({
            "metadata": { "name": objects::NODE, "labels": { "topology.kubernetes.io/zone": "a" } },
            "spec": { "podCIDRs": ["10.244.1.0/24"], "taints": [{ "key": "x" }] },
            "status": { "addresses": [{ "type": "InternalIP", "address": "192.168.50.2" }] }
        }),
        Kind::ServiceCidr => json!({ "metadata": { "name": "kubernetes" }, "spec": { "cidrs": ["10.96.0.0/12"] } }),
    }
}

/// All places in a value, as pointers.
fn places(value: &Value, here: &str, found: &mut Vec<String>) {
    found.push(here.to_owned());
    match value {
        Value::Array(items) => (0..items.len()).for_each(|at| places(&items[at], &format!("{here}/{at}"), found)),
        Value::Object(map) => map.iter().for_each(|(key, item)| {
            places(item, &format!("{here}/{}", key.replace('~', "~0").replace('/', "~1")), found);
        }),
        _ => {}
    }
}

/// A good object with up to three places spoilt.
fn spoilt() -> impl Strategy<Value = (Kind, Value)> {
    let kind = prop::sample::select(&Kind::ALL[..]);
    (kind, prop::collection::vec((any::<Index>(), value()), 1..4)).prop_map(|(kind, changes)| {
        let mut object = good(kind);
        for (index, value) in changes {
            let mut found = Vec::new();
            places(&object, "", &mut found);
            *object.pointer_mut(&found[index.index(found.len())]).expect("it was found there") = value;
        }
        (kind, object)
    })
}

/// Programs what is left of objects in both families; whatever it is, the tool must take all of it.
fn program(all: Vec<(Kind, Value)>) {
    let mut translator = Translator::new(objects::NODE, false);
    let mut trackers = IpFamily::ALL.map(|family| (family, Tracker::default()));
    let goods = [Kind::Service, Kind::EndpointSlice, Kind::Node].map(|kind| (kind, good(kind)));
    for (kind, object) in goods.into_iter().chain(all) {
        let key = key_of(kind, &object);
        let Some(translated) = Object::from_value(kind, object).ok().and_then(|object| translator.applied(object).ok())
        else {
            continue;
        };
        assert!(!format!("{key}{:?}", translated.problems).contains('\n') || key.to_string().contains('\n'));
        for (family, change) in translated.changes {
            trackers.iter_mut().filter(|(of, _)| *of == family).for_each(|(_, tracker)| {
                tracker.apply(change.clone());
            });
        }
    }
    for (family, mut tracker) in trackers {
        for kind in Kind::ALL {
            tracker.apply(Change::Listed(kind));
        }
        let fake = FakeIptables::default();
        let (tool, host) = (Box::new(fake.clone()), Box::new(FakeHost::default()));
        let mut backend = Iptables::new(family, objects::config(), tool, host);
        let stats = backend.sync(&tracker.snapshot(family.localhost()), &Scope::Full, Instant::now());
        assert_eq!(
            stats.expect("it is taken").rejected,
            [],
            "{family}: {:?}",
            tracker.snapshot(family.localhost()).ports
        );
        for line in Table::ALL.map(|table| fake.save_text(table)).concat().lines() {
            assert!(line.chars().all(|c| c.is_ascii_graphic() || c == ' '), "{line:?}");
            assert!(
                line.is_empty() || line.starts_with(['*', ':']) || line.starts_with("-A ") || line == "COMMIT",
                "{line:?}"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn objects_may_be_anything(kind in prop::sample::select(&Kind::ALL[..]), object in value()) {
        let key = key_of(kind, &object);
        match Object::from_value(kind, object) {
            Ok(object) => if let Err(error) = Translator::new("node-a", false).applied(object) {
                prop_assert!(error.to_string().starts_with(kind.name()), "{error} names {key}");
            }
            Err(error) => prop_assert_eq!(error.kind, kind),
        }
    }

    #[test]
    fn objects_with_a_random_part_make_rules_or_none(all in prop::collection::vec(spoilt(), 1..4)) {
        program(all);
    }

    #[test]
    fn tables_may_be_anything(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        SavedTable::read(&bytes[..]).expect("memory can be read");
    }

    #[test]
    fn tables_may_be_almost_right(lines in prop::collection::vec(line(), 0..12)) {
        let text = lines.join("\n");
        let table = SavedTable::read(text.as_bytes()).expect("memory can be read");
        let rules = lines.iter().filter(|line| line.starts_with("-A ")).count();
        let held: u32 = table.chains.values().map(|chain| chain.rules).sum();
        prop_assert!(held as usize + table.builtin.len() <= rules, "{table:?} of {text}");
    }
}

fn line() -> impl Strategy<Value = String> {
    let words = [
        "*nat",
        ":",
        "-A",
        "-A INPUT",
        "KUBE-A",
        "INPUT",
        " - ",
        "[0:0]",
        "-j",
        "--comment \"",
        "\"",
        "COMMIT",
        " ",
        "#",
    ];
    prop::collection::vec(prop::sample::select(words.to_vec()), 0..6).prop_map(|words| words.concat())
}
