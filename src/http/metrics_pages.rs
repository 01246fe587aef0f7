//! The pages of the metrics server.
//!
//! Paths match exactly. `/healthz` only reports that the process runs.

use std::io::Write;
use std::sync::Arc;

use flate2::Compression;
use flate2::write::GzEncoder;
use hyper::header::{ACCEPT_ENCODING, CONTENT_ENCODING, HeaderName};
use hyper::{Method, StatusCode};
use k8s_openapi::jiff::Timestamp;

use super::{
    Handler, JSON, PLAIN, PageRequest, PageResponse, ResponseBuilder, RulesPage, debug, error, not_found, query,
    rules_page, zpages,
};
use crate::metrics::{Metrics, process};

const EXPOSITION: &str = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";
const START_TIME: HeaderName = HeaderName::from_static("process-start-time-unix");

/// The content of the pages besides metrics.
#[derive(Clone, Debug)]
pub struct Pages {
    /// `iptables`, `ipvs` or `nftables`.
    pub mode: String,
    /// The configuration as JSON, fields in the order of the API.
    pub configz: String,
    /// Every flag with its value; `None` if the gate `ComponentFlagz` is off.
    pub flagz: Option<Vec<(String, String)>>,
    /// Whether `/statusz` is served (gate `ComponentStatusz`).
    pub statusz: bool,
    /// `/debug/rules`, if enabled.
    pub rules: Option<RulesPage>,
    /// Whether `/debug/` is served (`enableProfiling`).
    pub profiling: bool,
    /// Sets the log level.
    pub set_verbosity: fn(u32),
}

/// The pages of the metrics server.
pub fn pages(pages: Pages, metrics: Arc<Metrics>) -> Handler {
    let started = Timestamp::now();
    Arc::new(move |request| match request.uri().path() {
        "/metrics" => exposition(request, metrics.text()),
        "/metrics/slis" if request.method() == Method::DELETE => {
            metrics.slis.reset();
            ResponseBuilder::new(PLAIN, "metrics reset\n").build()
        }
        "/metrics/slis" => exposition(request, metrics.slis.text()),
        "/healthz" => healthz(request, &metrics),
        "/healthz/ping" => {
            metrics.slis.pinged();
            ResponseBuilder::new(PLAIN, "ok").build()
        }
        "/proxyMode" => ResponseBuilder::new(PLAIN, pages.mode.clone()).nosniff().build(),
        "/configz" => {
            let body = format!("{{\"kubeproxy.config.k8s.io\":{}}}", pages.configz);
            ResponseBuilder::new(JSON, body).nosniff().build()
        }
        "/statusz" if pages.statusz => zpages::statusz(request, started, Timestamp::now()),
        "/flagz" => pages.flagz.as_ref().map_or_else(not_found, |flags| zpages::flagz(request, flags)),
        rules_page::PATH if pages.rules.is_some() => {
            pages.rules.as_ref().map_or_else(not_found, |page| page.answer(request))
        }
        path if pages.profiling && path.starts_with("/debug/") => {
            debug::page(request, pages.set_verbosity).unwrap_or_else(not_found)
        }
        _ => not_found(),
    })
}

/// One check, `ping`, that always succeeds. It can be excluded, and shown verbosely.
fn healthz(request: &PageRequest, metrics: &Metrics) -> PageResponse {
    let mut excluded: Vec<&str> = query(request, "exclude").collect();
    excluded.sort_unstable();
    excluded.dedup();
    let mut detail = if excluded.contains(&"ping") { "[+]ping excluded: ok\n" } else { "[+]ping ok\n" }.to_owned();
    let unknown: Vec<String> =
        excluded.iter().filter(|name| **name != "ping").map(|name| format!("{name:?}")).collect();
    if !unknown.is_empty() {
        let unknown = unknown.join(",");
        detail += &format!("warn: some health checks cannot be excluded: no matches for {unknown}\n");
    }
    if !excluded.contains(&"ping") {
        metrics.slis.pinged();
    }
    let verbose = query(request, "verbose").next().is_some();
    let body = if verbose { format!("{detail}healthz check passed\n") } else { "ok".to_owned() };
    ResponseBuilder::new(PLAIN, body).nosniff().build()
}

fn exposition(request: &PageRequest, text: String) -> PageResponse {
    let start = process::start_time().to_string();
    let compressed = if accepts_gzip(request) { gzip(&text) } else { Ok(None) };
    match compressed {
        Ok(None) => ResponseBuilder::new(EXPOSITION, text).with(START_TIME, &start).build(),
        Ok(Some(bytes)) => {
            ResponseBuilder::new(EXPOSITION, bytes).with(CONTENT_ENCODING, "gzip").with(START_TIME, &start).build()
        }
        Err(problem) => error(StatusCode::INTERNAL_SERVER_ERROR, &problem.to_string()),
    }
}

fn accepts_gzip(request: &PageRequest) -> bool {
    let values = request.headers().get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|coding| {
        let (name, parameters) = coding.split_once(';').unwrap_or((coding, ""));
        let refused = parameters.trim().strip_prefix("q=").is_some_and(|q| q.trim().parse() == Ok(0.0));
        matches!(name.trim(), "gzip" | "x-gzip") && !refused
    })
}

fn gzip(text: &str) -> std::io::Result<Option<Vec<u8>>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text.as_bytes())?;
    encoder.finish().map(Some)
}
