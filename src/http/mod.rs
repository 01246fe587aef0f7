//! The HTTP servers for health and metrics.
//!
//! A page is a function from a request to a response, byte for byte kube-proxy's; only [`serve`] handles sockets and
//! time.

mod debug;
mod health_pages;
mod metrics_pages;
mod negotiate;
mod rules_page;
pub mod serve;
mod zpages;

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::{Request, Response, StatusCode};
use netfilter::IpFamily;

pub use self::health_pages::pages as health_pages;
pub use self::metrics_pages::{Pages, pages as metrics_pages};
pub use self::rules_page::{ReportError, RulesPage};

/// The family of the client's address, an extension of every request. An IPv4 client of a dual-stack socket counts as
/// IPv4.
#[derive(Clone, Copy, Debug)]
pub struct ClientFamily(pub IpFamily);

/// A request with its body, if pages use that.
pub type PageRequest = Request<Bytes>;
/// A response.
pub type PageResponse = Response<Full<Bytes>>;
/// Handles the requests of a server.
pub type Handler = Arc<dyn Fn(&PageRequest) -> PageResponse + Send + Sync>;

/// Go's content type of plain text.
pub const PLAIN: &str = "text/plain; charset=utf-8";
/// Go's content type of HTML.
pub const HTML: &str = "text/html; charset=utf-8";
/// JSON.
pub const JSON: &str = "application/json";

/// Builds a response.
pub struct ResponseBuilder(PageResponse);

impl ResponseBuilder {
    /// A body of that content type, with status 200.
    pub fn new(content_type: &str, body: impl Into<Bytes>) -> Self {
        let reply = Self(Response::new(Full::new(body.into())));
        reply.with(CONTENT_TYPE, content_type)
    }

    /// Sets the status.
    pub fn status(mut self, status: StatusCode) -> Self {
        *self.0.status_mut() = status;
        self
    }

    /// Adds a header. An invalid value is left out.
    pub fn with(mut self, name: HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.0.headers_mut().insert(name, value);
        }
        self
    }

    /// Forbids browsers to guess the content type.
    pub fn nosniff(self) -> Self {
        self.with(X_CONTENT_TYPE_OPTIONS, "nosniff")
    }

    /// The response.
    pub fn build(self) -> PageResponse {
        self.0
    }
}

/// As Go's `http.Error`.
pub fn error(status: StatusCode, text: &str) -> PageResponse {
    ResponseBuilder::new(PLAIN, format!("{text}\n")).nosniff().status(status).build()
}

/// As Go's `http.NotFound`.
pub fn not_found() -> PageResponse {
    error(StatusCode::NOT_FOUND, "404 page not found")
}

/// As Go's `http.Redirect`, whose body depends on the method.
pub fn redirect(request: &PageRequest, status: StatusCode, to: &str) -> PageResponse {
    let reason = status.canonical_reason().unwrap_or_default();
    let body = if request.method() == hyper::Method::GET {
        format!("<a href=\"{}\">{reason}</a>.\n\n", escape_html(to))
    } else {
        String::new()
    };
    ResponseBuilder::new(HTML, body).with(hyper::header::LOCATION, to).status(status).build()
}

/// Escapes text for HTML.
pub fn escape_html(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&#34;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// The values of a query parameter; without `=` the value is empty.
pub fn query<'a>(request: &'a PageRequest, name: &'a str) -> impl Iterator<Item = &'a str> {
    let pairs = request.uri().query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).filter(move |(key, _)| *key == name).map(|(_, v)| v)
}

#[cfg(test)]
mod surface;
