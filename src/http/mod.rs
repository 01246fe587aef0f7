//! The HTTP servers for health checks and metrics.
//!
//! In: requests, what there is to say. Out: answers, to the letter what kube-proxy answers. Must not know: how the
//! proxy works. A page is a function from a request to an answer; only `serve` knows sockets and time.

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

/// The family of the client's address, an extension of every request. An IPv4 client of a dual-stack socket is one of IPv4.
#[derive(Clone, Copy, Debug)]
pub struct ClientFamily(pub IpFamily);

/// A request with its body, as far as a page may want that.
pub type PageRequest = Request<Bytes>;
/// An answer.
pub type PageResponse = Response<Full<Bytes>>;
/// What a server says.
pub type Handler = Arc<dyn Fn(&PageRequest) -> PageResponse + Send + Sync>;

/// Plain text, as Go calls it.
pub const PLAIN: &str = "text/plain; charset=utf-8";
/// HTML, as Go calls it.
pub const HTML: &str = "text/html; charset=utf-8";
/// JSON.
pub const JSON: &str = "application/json";

/// An answer in the making.
pub struct ResponseBuilder(PageResponse);

impl ResponseBuilder {
    /// A body of that type, with status 200.
    pub fn new(content_type: &str, body: impl Into<Bytes>) -> Self {
        let reply = Self(Response::new(Full::new(body.into())));
        reply.with(CONTENT_TYPE, content_type)
    }

    /// Another status.
    pub fn status(mut self, status: StatusCode) -> Self {
        *self.0.status_mut() = status;
        self
    }

    /// A header more. A value that no header can have is left out.
    pub fn with(mut self, name: HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.0.headers_mut().insert(name, value);
        }
        self
    }

    /// Browsers must not guess another type.
    pub fn nosniff(self) -> Self {
        self.with(X_CONTENT_TYPE_OPTIONS, "nosniff")
    }

    /// The answer.
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

/// As Go's `http.Redirect`: what is told of it to a person depends on the method.
pub fn redirect(request: &PageRequest, status: StatusCode, to: &str) -> PageResponse {
    let reason = status.canonical_reason().unwrap_or_default();
    let body = if request.method() == hyper::Method::GET {
        format!("<a href=\"{}\">{reason}</a>.\n\n", escape_html(to))
    } else {
        String::new()
    };
    ResponseBuilder::new(HTML, body).with(hyper::header::LOCATION, to).status(status).build()
}

/// Text that is nothing but text in HTML.
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

/// The values of a query parameter; one without `=` has an empty value.
pub fn query<'a>(request: &'a PageRequest, name: &'a str) -> impl Iterator<Item = &'a str> {
    let pairs = request.uri().query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).filter(move |(key, _)| *key == name).map(|(_, v)| v)
}

#[cfg(test)]
mod surface;
