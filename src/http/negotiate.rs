//! Which form of a page a client wants.
//!
//! In: an Accept header. Out: what to answer with. Must not know: pages.
//! `/statusz` and `/flagz` give JSON only to those who name the kind and version that they want.

use std::collections::BTreeMap;

use hyper::header::ACCEPT;

use super::PageRequest;

const GROUP: &str = "config.k8s.io";
const VERSIONS: [&str; 2] = ["v1beta1", "v1alpha1"];

/// How a structured answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    Json,
    Yaml,
}

impl Encoding {
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Yaml => "application/yaml",
        }
    }
}

/// A form that a page can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// For people.
    Text,
    /// For programs: which version of the kind, and how written.
    Object { version: &'static str, encoding: Encoding },
}

/// The first acceptable form of a page of that kind, by the client's preference; `None` if there is none.
pub fn form(request: &PageRequest, kind: &str) -> Option<Form> {
    let header = request.headers().get(ACCEPT).map_or("", |value| value.to_str().unwrap_or("?"));
    if header.trim().is_empty() {
        return Some(Form::Text);
    }
    let mut wanted: Vec<(f64, Option<Form>)> = header.split(',').map(|one| clause(one, kind)).collect();
    // The sort is stable: of equals the first counts.
    wanted.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    wanted.into_iter().filter(|(quality, _)| *quality > 0.0).find_map(|(_, form)| form)
}

fn clause(text: &str, kind: &str) -> (f64, Option<Form>) {
    let mut parts = text.split(';').map(str::trim);
    let media_type = parts.next().unwrap_or_default().to_ascii_lowercase();
    let parameters: BTreeMap<&str, &str> = parts.filter_map(|part| part.split_once('=')).collect();
    let quality = parameters.get("q").and_then(|q| q.parse().ok()).unwrap_or(1.0);
    let form = match &*media_type {
        "*/*" | "text/*" | "text/plain" => Some(Form::Text),
        "application/json" => object(&parameters, kind, Encoding::Json),
        "application/yaml" => object(&parameters, kind, Encoding::Yaml),
        _ => None,
    };
    (quality, form)
}

fn object(parameters: &BTreeMap<&str, &str>, kind: &str, encoding: Encoding) -> Option<Form> {
    let is = |name, wanted| parameters.get(name) == Some(&wanted);
    let version = VERSIONS.into_iter().find(|version| is("v", *version))?;
    (is("as", kind) && is("g", GROUP)).then_some(Form::Object { version, encoding })
}

/// All that a page of that kind can be, for a refusal.
pub fn acceptable(kind: &str) -> String {
    let mut forms = vec!["text/plain".to_owned()];
    for version in VERSIONS {
        for encoding in [Encoding::Json, Encoding::Yaml] {
            forms.push(format!("{};g={GROUP};v={version};as={kind}", encoding.media_type()));
        }
    }
    forms.join(", ")
}

/// The type of a structured answer.
pub fn content_type(kind: &str, version: &str, encoding: Encoding) -> String {
    format!("{};g={GROUP};v={version};as={kind}", encoding.media_type())
}

/// The version of the API with its group.
pub fn api_version(version: &str) -> String {
    format!("{GROUP}/{version}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(accept: &str) -> Option<Form> {
        let request = hyper::Request::get("/statusz").header(ACCEPT, accept).body(bytes::Bytes::new());
        form(&request.expect("a request"), "Statusz")
    }

    #[test]
    fn the_preferred_form_that_exists_is_given() {
        let json = |version| Some(Form::Object { version, encoding: Encoding::Json });
        let full = "application/json;as=Statusz;v=v1beta1;g=config.k8s.io";
        for (accept, form) in [
            ("", Some(Form::Text)),
            ("*/*", Some(Form::Text)),
            ("text/html,application/xhtml+xml,*/*;q=0.8", Some(Form::Text)),
            (full, json("v1beta1")),
            ("application/json; as=Statusz; v=v1alpha1; g=config.k8s.io", json("v1alpha1")),
            (&format!("text/plain;q=0.5, {full}"), json("v1beta1")),
            (&format!("{full};q=0, text/plain"), Some(Form::Text)),
            ("application/json", None),
            ("application/json;as=Flagz;v=v1beta1;g=config.k8s.io", None),
            ("application/json;as=Statusz;v=v2;g=config.k8s.io", None),
            ("application/cbor;as=Statusz;v=v1beta1;g=config.k8s.io", None),
            ("image/png", None),
        ] {
            assert_eq!(of(accept), form, "{accept}");
        }
    }
}
