//! Compares every page with golden/surface/endpoints.yaml, the list of all that kube-proxy serves.

use std::io::Read;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use http_body_util::BodyExt;
use netfilter::IpFamily;
use proxier::model::NamespacedName;
use regex::Regex;
use serde::Deserialize;

use super::*;
use crate::health::Health;
use crate::health_checks::page_of_service;
use crate::metrics::Metrics;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    server: String,
    #[serde(default = "get")]
    method: String,
    path: String,
    #[serde(default)]
    headers: Vec<String>,
    #[serde(default)]
    put: String,
    status: u16,
    #[serde(rename = "type")]
    content_type: String,
    #[serde(default)]
    has: Vec<String>,
    #[serde(default)]
    lacks: Vec<String>,
    body: String,
    #[serde(default)]
    test: String,
}

fn get() -> String {
    "GET".to_owned()
}

static VERBOSITY: AtomicU32 = AtomicU32::new(0);

fn health(name: &str) -> Arc<Health> {
    let sick = name.ends_with("sick");
    let health = Health::new(Duration::from_secs(if sick { 0 } else { 30 }), name != "tainted");
    health.started(IpFamily::V4);
    if sick {
        health.queued(IpFamily::V4);
    }
    Arc::new(health)
}

fn server(name: &str) -> Handler {
    let metrics = Arc::new(Metrics::new("iptables").expect("metrics"));
    match name {
        "health" | "sick" | "tainted" => health_pages(health(name), metrics),
        "metrics" | "profiling" | "gates-off" => {
            metrics.slis.pinged();
            let flag = |name: &str, value: &str| (name.to_owned(), value.to_owned());
            let flags = vec![flag("v", "2"), flag("config", "/etc/config.yaml")];
            let pages = Pages {
                mode: "iptables".to_owned(),
                configz: "{\"kind\":\"KubeProxyConfiguration\"}".to_owned(),
                flagz: (name != "gates-off").then_some(flags),
                statusz: name != "gates-off",
                rules: None,
                profiling: name == "profiling",
                set_verbosity: |verbosity| VERBOSITY.store(verbosity, Ordering::Relaxed),
            };
            metrics_pages(pages, metrics)
        }
        "check" | "check-zero" | "check-sick" => {
            let count = if name == "check-zero" { 0 } else { 2 };
            page_of_service(&NamespacedName::new("ns", "web"), count, Some(health(name)))
        }
        other => panic!("no server {other:?}"),
    }
}

/// The decompressed text of a response.
fn text(answer: PageResponse) -> String {
    let packed = answer.headers().contains_key("content-encoding");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let bytes = runtime.block_on(answer.into_body().collect()).expect("a body").to_bytes();
    let mut text = String::new();
    if packed {
        flate2::read::GzDecoder::new(&*bytes).read_to_string(&mut text).expect("gzip");
    } else {
        text = String::from_utf8(bytes.to_vec()).expect("text");
    }
    text
}

fn check(row: &Row, answer: PageResponse) -> Result<(), String> {
    let header = |name: &str| answer.headers().get(name).map(|value| value.to_str().expect("text").to_owned());
    let mut problems = Vec::new();
    if answer.status().as_u16() != row.status {
        problems.push(format!("status {}", answer.status()));
    }
    if header("content-type").as_ref() != Some(&row.content_type) {
        problems.push(format!("type {:?}", header("content-type")));
    }
    for (name, value) in row.has.iter().filter_map(|pair| pair.split_once('=')) {
        let found = header(name);
        // A value that ends with a dash is a prefix.
        let same = found.as_ref().is_some_and(|found| found == value || row.has_begun(value, found));
        if !same {
            problems.push(format!("{name} {found:?}"));
        }
    }
    problems.extend(row.lacks.iter().filter_map(|name| Some(format!("{name} {:?}", header(name)?))));
    let body = text(answer);
    if !Regex::new(&format!("^(?:{})$", row.body)).expect("a regular expression").is_match(&body) {
        problems.push(format!("body {body:?}"));
    }
    if problems.is_empty() { Ok(()) } else { Err(format!("{} {}: {}", row.method, row.path, problems.join(", "))) }
}

impl Row {
    fn has_begun(&self, wanted: &str, found: &str) -> bool {
        (wanted.is_empty() || wanted.ends_with('-')) && found.starts_with(wanted) && found.len() > wanted.len()
    }
}

#[test]
fn every_listed_page_has_its_documented_response() {
    let rows: Vec<Row> =
        serde_saphyr::from_str(include_str!("../../golden/surface/endpoints.yaml")).expect("endpoints.yaml");
    assert!(rows.len() > 60, "only {} rows", rows.len());
    let mut servers: std::collections::BTreeMap<String, Handler> = std::collections::BTreeMap::new();
    let mut failures = Vec::new();
    for row in &rows {
        assert!(row.test.is_empty() || row.test.starts_with("different: "), "{}: {}", row.path, row.test);
        let mut request = Request::builder().method(&*row.method).uri(&row.path);
        for (name, value) in row.headers.iter().filter_map(|pair| pair.split_once('=')) {
            request = request.header(name, value);
        }
        let request = request.body(Bytes::from(row.put.clone())).expect("a request");
        // In the order of the list, as some pages keep state between requests.
        let handler = servers.entry(row.server.clone()).or_insert_with(|| server(&row.server));
        failures.extend(check(row, handler(&request)).err().map(|why| format!("{}: {why}", row.server)));
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert_eq!(VERBOSITY.load(Ordering::Relaxed), 7);
}

#[test]
fn answers_of_health_are_counted_by_status() {
    let metrics = Arc::new(Metrics::new("iptables").expect("metrics"));
    let asked = |path| Request::get(path).body(Bytes::new()).expect("a request");
    let (well, sick) = (health_pages(health("well"), metrics.clone()), health_pages(health("sick"), metrics.clone()));
    for (handler, path) in [(&well, "/healthz"), (&sick, "/healthz"), (&sick, "/livez"), (&well, "/nowhere")] {
        handler(&asked(path));
    }
    let text = metrics.text();
    for line in [
        "kubeproxy_proxy_healthz_total{code=\"200\"} 1",
        "kubeproxy_proxy_healthz_total{code=\"503\"} 1",
        "kubeproxy_proxy_livez_total{code=\"503\"} 1",
    ] {
        assert!(text.lines().any(|each| each == line), "{line} in {text}");
    }
    assert!(!text.contains("livez_total{code=\"200\"}"));
}
