//! Label and field selectors.

use serde_json::Value;

use super::resource::Resource;
use super::status::Status;

/// The selectors of a request.
#[derive(Clone, Debug, Default)]
pub(super) struct Filter {
    pub(super) namespace: Option<String>,
    labels: Vec<Label>,
    fields: Vec<Field>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Label {
    Exists(String),
    Absent(String),
    In(String, Vec<String>),
    /// Also matches objects without the label.
    NotIn(String, Vec<String>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Field {
    path: String,
    value: String,
    equal: bool,
}

impl Filter {
    pub(super) fn parse(resource: &Resource, labels: &str, fields: &str) -> Result<Self, Status> {
        let labels = split_outside_parentheses(labels).map(Label::parse).collect::<Result<_, _>>()?;
        let fields = fields.split(',').map(str::trim).filter(|field| !field.is_empty());
        let fields = fields.map(|field| Field::parse(resource, field)).collect::<Result<_, _>>()?;
        Ok(Self { namespace: None, labels, fields })
    }

    /// Whether every object matches.
    pub(super) fn is_empty(&self) -> bool {
        self.namespace.is_none() && self.labels.is_empty() && self.fields.is_empty()
    }

    pub(super) fn matches(&self, object: &Value) -> bool {
        let namespace = object["metadata"]["namespace"].as_str();
        (self.namespace.is_none() || self.namespace.as_deref() == namespace)
            && self.labels.iter().all(|label| label.matches(&object["metadata"]["labels"]))
            && self.fields.iter().all(|field| field.matches(object))
    }
}

impl Label {
    fn parse(text: &str) -> Result<Self, Status> {
        let requirement = if let Some(list) = text.strip_suffix(')') {
            let (head, list) = list.split_once('(').ok_or_else(|| unparsable(text))?;
            let values = list.split(',').map(|value| value.trim().to_owned()).collect();
            match head.split_whitespace().collect::<Vec<_>>()[..] {
                [key, "in"] => Self::In(key.to_owned(), values),
                [key, "notin"] => Self::NotIn(key.to_owned(), values),
                _ => return Err(unparsable(text)),
            }
        } else if let Some((key, value)) = text.split_once("!=") {
            Self::NotIn(key.trim().to_owned(), vec![value.trim().to_owned()])
        } else if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
            Self::In(key.trim().to_owned(), vec![value.trim().to_owned()])
        } else if let Some(key) = text.strip_prefix('!') {
            Self::Absent(key.trim().to_owned())
        } else {
            Self::Exists(text.to_owned())
        };
        let (Self::Exists(key) | Self::Absent(key) | Self::In(key, _) | Self::NotIn(key, _)) = &requirement;
        let legal = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        if key.is_empty() || !key.chars().all(legal) { Err(unparsable(text)) } else { Ok(requirement) }
    }

    fn matches(&self, labels: &Value) -> bool {
        let of = |key: &String| labels.get(key).and_then(Value::as_str);
        match self {
            Self::Exists(key) => of(key).is_some(),
            Self::Absent(key) => of(key).is_none(),
            Self::In(key, values) => of(key).is_some_and(|value| values.iter().any(|v| v == value)),
            Self::NotIn(key, values) => of(key).is_none_or(|value| values.iter().all(|v| v != value)),
        }
    }
}

impl Field {
    fn parse(resource: &Resource, text: &str) -> Result<Self, Status> {
        let split = text.split_once("!=").map(|(path, value)| (path, value, false));
        let split = split.or_else(|| {
            let (path, value) = text.split_once("==").or_else(|| text.split_once('='))?;
            Some((path, value, true))
        });
        let Some((path, value, equal)) = split else {
            return Err(Status::bad_request(format!("invalid selector: '{text}'; can't understand '{text}'")));
        };
        let known = path == "metadata.name"
            || (path == "metadata.namespace" && resource.namespaced)
            || resource.selectable.contains(&path);
        if !known {
            return Err(Status::bad_request(format!("\"{path}\" is not a known field selector")));
        }
        Ok(Self { path: path.to_owned(), value: value.to_owned(), equal })
    }

    fn matches(&self, object: &Value) -> bool {
        let found = self.path.split('.').try_fold(object, |at, step| at.get(step));
        let is = match found {
            Some(Value::String(text)) => *text == self.value,
            Some(Value::Bool(flag)) => flag.to_string() == self.value,
            // kube-apiserver compares the zero value of the Go type.
            None if self.path == "spec.unschedulable" => self.value == "false",
            _ => self.value.is_empty(),
        };
        is == self.equal
    }
}

fn unparsable(text: &str) -> Status {
    Status::bad_request(format!("unable to parse requirement: found '{text}'"))
}

fn split_outside_parentheses(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_usize;
    let parts = text.split(move |c| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    });
    parts.map(str::trim).filter(|part| !part.is_empty())
}
