//! `/statusz` and `/flagz`: the version, start time and flags of the process, as text or as API objects.

use std::collections::BTreeMap;

use hyper::StatusCode;
use hyper::header::WARNING;
use k8s_openapi::jiff::{Timestamp, tz::TimeZone};
use serde::Serialize;
use serde_json::json;

use super::negotiate::{self, Encoding, PageFormat};
use super::{JSON, PLAIN, PageRequest, PageResponse, ResponseBuilder};
use crate::version::MINOR_RELEASE;

const NOTE: &str = "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility \
                    guarantees and is for debugging purposes only.";
/// The value of `goVersion`.
const NO_GO: &str = "none, this kube-proxy is written in Rust";
const PATHS: [&str; 5] = ["/configz", "/flagz", "/healthz", "/metrics", "/proxyMode"];

#[derive(Serialize)]
struct Metadata {
    name: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Object<T> {
    kind: &'static str,
    api_version: String,
    metadata: Metadata,
    #[serde(flatten)]
    content: T,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    start_time: String,
    uptime_seconds: i64,
    go_version: &'static str,
    binary_version: &'static str,
    emulation_version: &'static str,
    paths: [&'static str; 5],
}

#[derive(Serialize)]
struct Flags<'a> {
    flags: BTreeMap<&'a str, &'a str>,
}

/// Version, start time and uptime.
pub fn statusz(request: &PageRequest, started: Timestamp, now: Timestamp) -> PageResponse {
    let uptime = now.duration_since(started).as_secs().max(0);
    let status = Status {
        start_time: started.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        uptime_seconds: uptime,
        go_version: NO_GO,
        binary_version: MINOR_RELEASE,
        emulation_version: MINOR_RELEASE,
        paths: PATHS,
    };
    let text = || {
        let started = started.to_zoned(TimeZone::system()).strftime("%a %b %e %H:%M:%S %Z %Y").to_string();
        let up = format!("{} hr {:02} min {:02} sec", uptime / 3600, uptime / 60 % 60, uptime % 60);
        [
            ("Started", &*started),
            ("Up", &up),
            ("Go version", NO_GO),
            ("Binary version", MINOR_RELEASE),
            ("Emulation version", MINOR_RELEASE),
            ("Paths", &PATHS.join(" ")),
        ]
        .map(|(name, value)| format!("{name}: {value}\n"))
        .concat()
    };
    page(request, "Statusz", text, status)
}

/// All flags with their values.
pub fn flagz(request: &PageRequest, flags: &[(String, String)]) -> PageResponse {
    let flags: BTreeMap<&str, &str> = flags.iter().map(|(name, value)| (&**name, &**value)).collect();
    let text = || flags.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
    page(request, "Flagz", text, Flags { flags: flags.clone() })
}

fn page(
    request: &PageRequest,
    kind: &'static str,
    text: impl FnOnce() -> String,
    content: impl Serialize,
) -> PageResponse {
    match negotiate::negotiate(request, kind) {
        Some(PageFormat::Text) => {
            let head = format!("\nkube-proxy {}\n{NOTE}\n\n", kind.to_lowercase());
            ResponseBuilder::new(PLAIN, head + &text()).build()
        }
        Some(PageFormat::Object { version, encoding }) => {
            let api_version = negotiate::api_version(version);
            let object = Object { kind, api_version, metadata: Metadata { name: "kube-proxy" }, content };
            let body = match encoding {
                Encoding::Json => serde_json::to_string_pretty(&object).map_err(|error| error.to_string()),
                Encoding::Yaml => serde_saphyr::to_string(&object).map_err(|error| error.to_string()),
            };
            let body = match body {
                Ok(body) => body,
                Err(error) => return super::error(StatusCode::INTERNAL_SERVER_ERROR, &error),
            };
            let reply = ResponseBuilder::new(&negotiate::content_type(kind, version, encoding), body);
            if version == "v1beta1" { reply.build() } else { reply.with(WARNING, &deprecated(kind, version)).build() }
        }
        None => not_acceptable(kind),
    }
}

fn deprecated(kind: &str, version: &str) -> String {
    let old = negotiate::api_version(version);
    format!("299 - \"{old} {kind} is deprecated; use {} {kind}\"", negotiate::api_version("v1beta1"))
}

fn not_acceptable(kind: &str) -> PageResponse {
    let status = StatusCode::NOT_ACCEPTABLE;
    let body = json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": format!("only the following media types are accepted: {}", negotiate::acceptable(kind)),
        "reason": "NotAcceptable",
        "code": status.as_u16(),
    });
    ResponseBuilder::new(JSON, body.to_string()).status(status).build()
}
