//! `/healthz` and `/livez`: eligibility of the node and health of the proxy.

use std::sync::Arc;

use hyper::{Method, StatusCode};

use super::{Handler, JSON, PageRequest, ResponseBuilder, not_found, redirect};
use crate::health::Health;
use crate::metrics::Metrics;

/// The pages of the health server.
pub fn pages(health: Arc<Health>, metrics: Arc<Metrics>) -> Handler {
    Arc::new(move |request| {
        let path = request.uri().path();
        let clean = clean(path);
        if clean != path && request.method() != Method::CONNECT {
            return redirect(request, StatusCode::TEMPORARY_REDIRECT, &with_query(request, &clean));
        }
        let live = match path {
            "/healthz" => false,
            "/livez" => true,
            _ => return not_found(),
        };
        let answer = health.response(!live);
        let status = if answer.ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        metrics.answered(live, status.as_u16());
        let body = serde_json::to_string(&answer).unwrap_or_default();
        ResponseBuilder::new(JSON, body).nosniff().status(status).build()
    })
}

fn with_query(request: &PageRequest, path: &str) -> String {
    request.uri().query().map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"))
}

/// A path without empty, `.` and `..` segments: Go's server redirects to it before it looks for a page.
fn clean(path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            segment => segments.push(segment),
        }
    }
    let slash = if path.ends_with('/') && !segments.is_empty() { "/" } else { "" };
    format!("/{}{slash}", segments.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_as_go_cleans_them() {
        for (path, cleaned) in [
            ("/healthz", "/healthz"),
            ("//healthz", "/healthz"),
            ("/healthz/", "/healthz/"),
            ("/a/./b//c", "/a/b/c"),
            ("/a/../healthz", "/healthz"),
            ("/../..", "/"),
            ("/", "/"),
            ("", "/"),
        ] {
            assert_eq!(clean(path), cleaned, "{path}");
        }
    }
}
