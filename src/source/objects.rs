//! Parses the objects of a YAML or JSON text with one or more documents.
//!
//! Returns Nodes, Services, EndpointSlices and ServiceCIDRs, of which only kind and name are interpreted here.

use std::fmt;

use proxier::model::NamespacedName;
use proxier::track::{Kind, ObjectKey, concerns, key_of, plain_words};
use serde::Deserializer;
use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// An object of a supported kind.
pub struct Object {
    /// Its kind and name.
    pub key: ObjectKey,
    /// The whole object.
    pub value: Value,
    /// The document that holds it, for messages.
    pub document: String,
}

/// The objects of a text.
pub struct Parsed<T> {
    /// What `make` returned for each object, in order.
    pub objects: Vec<T>,
    /// Everything else in the text, for the log.
    pub skipped: Vec<String>,
}

/// Parses all objects of a text. Fails if any document is not YAML: objects may be missing then.
///
/// # Errors
/// The document and the position in it.
pub fn parse(text: &str) -> Result<Parsed<Object>, String> {
    parse_as(text, None, &mut |object| object)
}

/// Parses all objects and keeps what `make` returns for each. With `only`, objects unrelated to that Service are
/// ignored.
///
/// # Errors
/// The document and the position in it.
pub fn parse_as<T>(
    text: &str,
    only: Option<&NamespacedName>,
    make: &mut dyn FnMut(Object) -> T,
) -> Result<Parsed<T>, String> {
    let mut collected = Collected { only, make, parsed: Parsed { objects: Vec::new(), skipped: Vec::new() } };
    for (line, document) in documents(text) {
        if only.is_some_and(|service| !may_name(document, service)) {
            continue;
        }
        collected.read(&format!("the document that begins in line {line}"), document)?;
    }
    Ok(collected.parsed)
}

fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        // A Service may be called n, which YAML 1.1 reads as false.
        strict_booleans: true,
        budget: serde_saphyr::budget! {
            // A list of a whole cluster is one document.
            max_events: usize::MAX,
            max_nodes: usize::MAX,
            max_total_scalar_bytes: usize::MAX,
        },
    }
}

/// Whether a document may concern the Service: its name appears literally, unless an escape could spell it.
fn may_name(document: &str, service: &NamespacedName) -> bool {
    document.contains(&*service.name)
        || document.contains(Kind::Node.name())
        || document.contains(Kind::ServiceCidr.name())
        || document.contains('\\')
}

/// The objects read so far.
struct Collected<'a, T> {
    only: Option<&'a NamespacedName>,
    make: &'a mut dyn FnMut(Object) -> T,
    parsed: Parsed<T>,
}

impl<T> Collected<'_, T> {
    /// Parses a document. JSON is YAML too, but ten times faster with the JSON parser.
    fn read(&mut self, document_name: &str, document: &str) -> Result<(), String> {
        let before = self.mark();
        let json = document.strip_prefix("---").unwrap_or(document).trim_ascii();
        if json.starts_with('{') {
            let mut deserializer = serde_json::Deserializer::from_str(json);
            let read = Document { document_name, collected: self }.deserialize(&mut deserializer);
            if read.and_then(|()| deserializer.end()).is_ok() {
                return Ok(());
            }
            self.back_to(before);
        }
        let read = serde_saphyr::with_deserializer_from_str_with_options(document, options(), |deserializer| {
            Document { document_name, collected: self }.deserialize(deserializer)
        });
        if read.is_ok() {
            return Ok(());
        }
        // Not YAML, or neither an object nor a list of objects.
        self.back_to(before);
        let value = serde_saphyr::from_str_with_options(document, options()).map_err(|error| {
            let message = error.to_string();
            format!("{document_name}: {}", plain_words(message.lines().next().unwrap_or_default()))
        })?;
        self.take(document_name, value);
        Ok(())
    }

    fn mark(&self) -> (usize, usize) {
        (self.parsed.objects.len(), self.parsed.skipped.len())
    }

    /// Drops the objects read since `mark`.
    fn back_to(&mut self, (objects, skipped): (usize, usize)) {
        self.parsed.objects.truncate(objects);
        self.parsed.skipped.truncate(skipped);
    }

    fn take(&mut self, document_name: &str, value: Value) {
        let field = |name| value.get(name).and_then(Value::as_str).unwrap_or_default();
        let (name, version) = (field("kind").to_owned(), field("apiVersion").to_owned());
        let known = Kind::ALL.into_iter().find(|known| known.name() == name);
        match (known, value) {
            (Some(kind), value) if self.only.is_some_and(|service| !concerns(kind, &value, service)) => {}
            (Some(kind), value) if version.is_empty() || version == kind.api_version() => {
                let object =
                    (self.make)(Object { key: key_of(kind, &value), value, document: document_name.to_owned() });
                self.parsed.objects.push(object);
            }
            (Some(kind), value) => {
                let (key, ours) = (key_of(kind, &value), kind.api_version());
                self.skip(format!("{document_name}: {key}: apiVersion: {version:?} is not {ours}"));
            }
            (None, Value::Object(mut list))
                if name.ends_with("List") && list.get("items").is_some_and(Value::is_array) =>
            {
                if let Some(Value::Array(items)) = list.remove("items") {
                    items.into_iter().enumerate().for_each(|(n, item)| self.take(&item_name(document_name, n), item));
                }
            }
            _ => self
                .skip(format!("{document_name}: kind: {name:?} is none of Service, EndpointSlice, Node, ServiceCIDR")),
        }
    }

    fn skip(&mut self, what: String) {
        if self.only.is_none() {
            self.parsed.skipped.push(what);
        }
    }
}

/// A document: an object, or a list whose items are read one by one, as it may be a whole cluster.
struct Document<'a, 'b, T> {
    document_name: &'a str,
    collected: &'a mut Collected<'b, T>,
}

impl<'de, T> DeserializeSeed<'de> for Document<'_, '_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, T> Visitor<'de> for Document<'_, '_, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let Document { document_name, collected } = self;
        let (before, mut rest, mut listed) = (collected.mark(), Map::new(), false);
        while let Some(key) = entries.next_key::<String>()? {
            if key == "items" {
                entries.next_value_seed(Items { document_name, collected })?;
                listed = true;
            } else {
                rest.insert(key, entries.next_value()?);
            }
        }
        let kind = rest.get("kind").and_then(Value::as_str).unwrap_or_default();
        if !listed || !kind.ends_with("List") {
            // The kind may follow the items: an object that is no list but has a field `items`.
            collected.back_to(before);
            collected.take(document_name, Value::Object(rest));
        }
        Ok(())
    }
}

/// The items of a list.
struct Items<'a, 'b, T> {
    document_name: &'a str,
    collected: &'a mut Collected<'b, T>,
}

impl<'de, T> DeserializeSeed<'de> for Items<'_, '_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, T> Visitor<'de> for Items<'_, '_, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let mut number = 0;
        while let Some(item) = items.next_element()? {
            self.collected.take(&item_name(self.document_name, number), item);
            number += 1;
        }
        Ok(())
    }
}

/// An item of a list, for messages.
fn item_name(document_name: &str, number: usize) -> String {
    format!("{document_name}, items[{number}]")
}

/// Documents with the number of their first line, without empty ones.
fn documents(text: &str) -> Vec<(usize, &str)> {
    let mut documents = Vec::new();
    let (mut start, mut first_line, mut at) = (0, 1, 0);
    for (index, line) in text.split_inclusive('\n').enumerate() {
        if line.trim_end() == "---" || line.starts_with("--- ") {
            documents.push((first_line, &text[start..at]));
            start = at;
            first_line = index + 1;
        }
        at += line.len();
    }
    documents.push((first_line, &text[start..]));
    let empty =
        |document: &str| document.lines().all(|line| matches!(line.trim(), "" | "---") || line.trim().starts_with('#'));
    documents.retain(|(_, document)| !empty(document));
    documents
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_and_lists_are_taken_apart() {
        let text = "# first\n---\nkind: Service\nmetadata: {name: a, namespace: x}\n---\nkind: Pod\n---\nkind: List\nitems:\n- kind: Node\n  metadata: {name: n}\n";
        let parsed = parse(text).expect("YAML");
        let keys: Vec<String> = parsed.objects.iter().map(|object| object.key.to_string()).collect();
        assert_eq!(keys, ["Service x/a", "Node n"]);
        assert_eq!(parsed.skipped.len(), 1);
        assert!(parsed.skipped[0].contains("line 5: kind: \"Pod\""), "{}", parsed.skipped[0]);
    }

    #[test]
    fn json_and_yaml_of_the_same_objects_hold_the_same() {
        let item = |kind: &str, name: &str| serde_json::json!({"kind": kind, "metadata": {"name": name, "namespace": "x", "labels": {"kubernetes.io/service-name": "a"}}});
        // The kind comes last, as kubectl writes it.
        let list = |kind: &str| {
            let items = [
                item("Service", "a"),
                item("Service", "b"),
                item("EndpointSlice", "a-1"),
                item("Node", "n"),
                item("Pod", "p"),
            ];
            format!("{{\n\t\"items\": {},\"kind\": \"{kind}\"}}", serde_json::json!(items))
        };
        let keys = |text: &str, only: Option<&NamespacedName>| {
            let parsed = parse_as(text, only, &mut |object| object.key.to_string()).expect("objects");
            (parsed.objects.join(", "), parsed.skipped.len())
        };
        let value: Value = serde_json::from_str(&list("List")).expect("JSON");
        let yaml = serde_saphyr::to_string(&value).expect("YAML");
        let documents: String =
            value["items"].as_array().expect("items").iter().map(|item| format!("---\n{item}\n")).collect();
        let a = NamespacedName::new("x", "a");
        for text in [list("List"), yaml, documents] {
            let all = "Service x/a, Service x/b, EndpointSlice x/a-1, Node n";
            assert_eq!(keys(&text, None), (all.to_owned(), 1), "{text}");
            assert_eq!(keys(&text, Some(&a)), ("Service x/a, EndpointSlice x/a-1, Node n".to_owned(), 0), "{text}");
        }
        assert_eq!(keys(&list("Pod"), None), (String::new(), 1), "items of no list");
        assert_eq!(keys(&list("Service"), None), ("Service default/".to_owned(), 0), "a Service with items");
        let hidden = "kind: Service\nmetadata: {namespace: x, name: \"\\x61\"}\n";
        assert_eq!(keys(hidden, Some(&a)).0, "Service x/a", "written otherwise");
        let broken = format!("{}}}", list("List"));
        assert!(parse(&broken).is_err(), "what comes after is no YAML");
    }

    #[test]
    fn service_of_another_api_group_is_skipped() {
        let text = "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: a}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: b}\n---\n[1]\n";
        let parsed = parse(text).expect("YAML");
        assert_eq!(parsed.objects.len(), 1);
        assert_eq!(parsed.skipped.len(), 2);
        assert!(parsed.skipped[0].contains("Service default/a: apiVersion"), "{}", parsed.skipped[0]);
    }

    #[test]
    fn what_is_skipped_of_a_list_is_named_by_its_number() {
        let list = r#"{"kind": "List", "items": [{"kind": "Service", "metadata": {"name": "web"}}, {"kind": "Pod"}]}"#;
        let yaml = "kind: List\nitems:\n- kind: Node\n  metadata: {name: n}\n- {metadata: {name: x}}\n";
        for text in [list, yaml] {
            let parsed = parse(text).expect("objects");
            assert_eq!((parsed.objects.len(), parsed.skipped.len()), (1, 1));
            assert!(parsed.skipped[0].contains("line 1, items[1]: kind: "), "{}", parsed.skipped[0]);
        }
    }

    #[test]
    fn long_lists_are_read_and_deep_ones_refused() {
        let long = format!("kind: Service\nmetadata: {{name: a}}\nfiller: [{}]\n", "1,".repeat(300_000));
        assert_eq!(parse(&long).map(|parsed| parsed.objects.len()), Ok(1));
        for deep in ["[".repeat(100_000), "{a: ".repeat(100_000), "- ".repeat(100_000)] {
            assert!(parse(&deep).is_err());
        }
    }

    #[test]
    fn broken_text_is_refused_with_its_line() {
        let error = parse("kind: Service\n---\nkind: [\n").map(drop).expect_err("broken");
        assert!(error.contains("line 2"), "{error}");
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_parsed_or_refused_without_a_panic(text in r#"(kind: (Service|List)\n|items:\n|---\n|- |[a-z]{1,8}|[0-9]|[-:{}\[\],&*!|>'"%@~#]|\n| |\PC){0,30}"#) {
            if let Ok(parsed) = parse(&text) {
                proptest::prop_assert!(parsed.objects.len() + parsed.skipped.len() <= text.len());
            }
        }
    }
}
