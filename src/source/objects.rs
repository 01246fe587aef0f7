//! Objects in files: what a YAML or JSON text holds.
//!
//! In: text of one or more documents. Out: the Nodes, Services, EndpointSlices and ServiceCIDRs in it. Must not know: files, or what
//! is in objects besides their kind and name.

use proxier::track::{Kind, ObjectKey, key_of};
use serde_json::Value;

/// An object of a kind that matters.
pub struct Object {
    /// Which one.
    pub key: ObjectKey,
    /// All of it.
    pub value: Value,
}

/// What a text holds.
#[derive(Default)]
pub struct Parsed {
    /// The objects that matter, in order.
    pub objects: Vec<Object>,
    /// What else is there, for the log.
    pub passed_over: Vec<String>,
}

/// All objects of a text; `Err` if any document is no YAML, for then nobody knows what the others lack.
///
/// # Errors
/// Which document, and where in it.
pub fn parse(text: &str) -> Result<Parsed, String> {
    let mut parsed = Parsed::default();
    for (line, document) in documents(text) {
        let place = format!("the document that begins in line {line}");
        let options = serde_saphyr::options! {
            // A Service may be called n, which is no other word for false.
            strict_booleans: true,
            budget: serde_saphyr::budget! {
                // A list of a whole cluster is one document.
                max_events: usize::MAX,
                max_nodes: usize::MAX,
                max_total_scalar_bytes: usize::MAX,
            },
        };
        let value: Value = serde_saphyr::from_str_with_options(document, options).map_err(|error| {
            let message = error.to_string();
            format!("{place}: {}", message.lines().next().unwrap_or_default())
        })?;
        collect(&place, value, &mut parsed);
    }
    Ok(parsed)
}

fn collect(place: &str, value: Value, parsed: &mut Parsed) {
    let field = |name| value.get(name).and_then(Value::as_str).unwrap_or_default();
    let (name, version) = (field("kind").to_owned(), field("apiVersion").to_owned());
    let known = Kind::ALL.into_iter().find(|known| known.name() == name);
    match (known, value) {
        (Some(kind), value) if version.is_empty() || version == kind.api_version() => {
            parsed.objects.push(Object { key: key_of(kind, &value), value });
        }
        (Some(kind), value) => {
            let (key, ours) = (key_of(kind, &value), kind.api_version());
            parsed.passed_over.push(format!("{place}: {key}: apiVersion: {version:?} is not {ours}"));
        }
        (None, Value::Object(mut list)) if name.ends_with("List") && list.get("items").is_some_and(Value::is_array) => {
            if let Some(Value::Array(items)) = list.remove("items") {
                items.into_iter().for_each(|item| collect(place, item, parsed));
            }
        }
        _ => parsed
            .passed_over
            .push(format!("{place}: kind: {name:?} is none of Service, EndpointSlice, Node, ServiceCIDR")),
    }
}

/// Documents with the number of their first line, empty ones left out.
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
        assert_eq!(parsed.passed_over.len(), 1);
        assert!(parsed.passed_over[0].contains("line 5: kind: \"Pod\""), "{}", parsed.passed_over[0]);
    }

    #[test]
    fn another_groups_service_is_not_ours() {
        let text = "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: a}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: b}\n---\n[1]\n";
        let parsed = parse(text).expect("YAML");
        assert_eq!(parsed.objects.len(), 1);
        assert_eq!(parsed.passed_over.len(), 2);
        assert!(parsed.passed_over[0].contains("Service default/a: apiVersion"), "{}", parsed.passed_over[0]);
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
        fn whatever_a_file_holds_is_borne(text in r#"(kind: (Service|List)\n|items:\n|---\n|- |[a-z]{1,8}|[0-9]|[-:{}\[\],&*!|>'"%@~#]|\n| |\PC){0,30}"#) {
            if let Ok(parsed) = parse(&text) {
                proptest::prop_assert!(parsed.objects.len() + parsed.passed_over.len() <= text.len());
            }
        }
    }
}
