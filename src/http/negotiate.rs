//! Content negotiation of `/statusz` and `/flagz`.
//!
//! JSON and YAML are returned only to clients that name the kind and version in the Accept header.

use std::collections::BTreeMap;

use hyper::header::ACCEPT;

use super::PageRequest;

const GROUP: &str = "config.k8s.io";
const VERSIONS: [&str; 2] = ["v1beta1", "v1alpha1"];

/// The encoding of a structured response.
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

/// The format of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageFormat {
    /// Plain text.
    Text,
    /// An object of this version of the kind, in this encoding.
    Object { version: &'static str, encoding: Encoding },
}

/// The client's preferred format that the page supports; `None` if there is none.
pub fn negotiate(request: &PageRequest, kind: &str) -> Option<PageFormat> {
    let header = request.headers().get(ACCEPT).map_or("", |value| value.to_str().unwrap_or("?"));
    if header.trim().is_empty() {
        return Some(PageFormat::Text);
    }
    let mut wanted: Vec<(f64, Option<PageFormat>)> = header.split(',').map(|one| clause(one, kind)).collect();
    // The sort is stable: among equal preferences the first wins.
    wanted.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    wanted.into_iter().filter(|(quality, _)| *quality > 0.0).find_map(|(_, format)| format)
}

fn clause(text: &str, kind: &str) -> (f64, Option<PageFormat>) {
    let mut parts = text.split(';').map(str::trim);
    let media_type = parts.next().unwrap_or_default().to_ascii_lowercase();
    let parameters: BTreeMap<&str, &str> = parts.filter_map(|part| part.split_once('=')).collect();
    let quality = parameters.get("q").and_then(|q| q.parse().ok()).unwrap_or(1.0);
    let format = match &*media_type {
        "*/*" | "text/*" | "text/plain" => Some(PageFormat::Text),
        "application/json" => object(&parameters, kind, Encoding::Json),
        "application/yaml" => object(&parameters, kind, Encoding::Yaml),
        _ => None,
    };
    (quality, format)
}

fn object(parameters: &BTreeMap<&str, &str>, kind: &str, encoding: Encoding) -> Option<PageFormat> {
    let is = |name, wanted| parameters.get(name) == Some(&wanted);
    let version = VERSIONS.into_iter().find(|version| is("v", *version))?;
    (is("as", kind) && is("g", GROUP)).then_some(PageFormat::Object { version, encoding })
}

/// The supported media types, for an error message.
pub fn acceptable(kind: &str) -> String {
    let mut forms = vec!["text/plain".to_owned()];
    for version in VERSIONS {
        for encoding in [Encoding::Json, Encoding::Yaml] {
            forms.push(format!("{};g={GROUP};v={version};as={kind}", encoding.media_type()));
        }
    }
    forms.join(", ")
}

/// The content type of a structured response.
pub fn content_type(kind: &str, version: &str, encoding: Encoding) -> String {
    format!("{};g={GROUP};v={version};as={kind}", encoding.media_type())
}

/// The API version with its group.
pub fn api_version(version: &str) -> String {
    format!("{GROUP}/{version}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(accept: &str) -> Option<PageFormat> {
        let request = hyper::Request::get("/statusz").header(ACCEPT, accept).body(bytes::Bytes::new());
        negotiate(&request.expect("a request"), "Statusz")
    }

    #[test]
    fn the_preferred_form_that_exists_is_given() {
        let json = |version| Some(PageFormat::Object { version, encoding: Encoding::Json });
        let full = "application/json;as=Statusz;v=v1beta1;g=config.k8s.io";
        for (accept, format) in [
            ("", Some(PageFormat::Text)),
            ("*/*", Some(PageFormat::Text)),
            ("text/html,application/xhtml+xml,*/*;q=0.8", Some(PageFormat::Text)),
            (full, json("v1beta1")),
            ("application/json; as=Statusz; v=v1alpha1; g=config.k8s.io", json("v1alpha1")),
            (&format!("text/plain;q=0.5, {full}"), json("v1beta1")),
            (&format!("{full};q=0, text/plain"), Some(PageFormat::Text)),
            ("application/json", None),
            ("application/json;as=Flagz;v=v1beta1;g=config.k8s.io", None),
            ("application/json;as=Statusz;v=v2;g=config.k8s.io", None),
            ("application/cbor;as=Statusz;v=v1beta1;g=config.k8s.io", None),
            ("image/png", None),
        ] {
            assert_eq!(of(accept), format, "{accept}");
        }
    }
}
