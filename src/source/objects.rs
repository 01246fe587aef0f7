//! Objects in files: what a YAML or JSON text holds.
//!
//! In: text of one or more documents. Out: the Nodes, Services and EndpointSlices in it. Must not know: files, or what
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

/// All objects of a text; `Err` if any document is no YAML, for then nobody knows what the others lack.
/// Documents of other kinds are passed over.
///
/// # Errors
/// Which document, and where in it.
pub fn parse(text: &str) -> Result<Vec<Object>, String> {
    let mut objects = Vec::new();
    for (line, document) in documents(text) {
        let value: Value = serde_saphyr::from_str(document).map_err(|error| {
            let message = error.to_string();
            format!("the document that begins in line {line}: {}", message.lines().next().unwrap_or_default())
        })?;
        collect(value, &mut objects);
    }
    Ok(objects)
}

fn collect(value: Value, objects: &mut Vec<Object>) {
    let kind = value.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
    if let Some(kind) = Kind::ALL.into_iter().find(|known| known.name() == kind) {
        objects.push(Object { key: key_of(kind, &value), value });
    } else if kind.ends_with("List")
        && let Value::Object(mut list) = value
        && let Some(Value::Array(items)) = list.remove("items")
    {
        items.into_iter().for_each(|item| collect(item, objects));
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
        let keys: Vec<String> = parse(text).expect("YAML").iter().map(|object| object.key.to_string()).collect();
        assert_eq!(keys, ["Service x/a", "Node n"]);
    }

    #[test]
    fn broken_text_is_refused_with_its_line() {
        let error = parse("kind: Service\n---\nkind: [\n").err().expect("broken");
        assert!(error.contains("line 2"), "{error}");
    }
}
