//! Sends requests: rate limit, metrics, headers, credentials, connection pool.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, HeaderMap, HeaderValue, USER_AGENT};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use super::body::Body;
use super::connector::Connector;
use super::credentials::Credentials;
use super::error::RequestError;
use super::limit::RateLimit;
use super::server_url::ServerUrl;
use crate::metrics::ServerRequestMetrics;

/// HTTP/2: a PING after this time without a frame. client-go: 30 s; a dead connection must be detected within 45 s
/// here.
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// HTTP/2: how long the answer to a PING may take, as in client-go.
const PING_TIMEOUT: Duration = Duration::from_secs(15);
/// HTTP/2 flow control window of one response: enough for 10 MB/s over 100 ms.
const STREAM_WINDOW: u32 = 1 << 20;
/// HTTP/2 flow control window of all responses.
const CONNECTION_WINDOW: u32 = 4 << 20;
/// An unused HTTP/1.1 connection is closed after this time, as in client-go.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);

/// The connections to a server.
pub type Pool = legacy::Client<Connector, Full<Bytes>>;

/// Creates an empty pool. HTTP/2 uses one connection for all requests, HTTP/1.1 one for each concurrent request.
pub fn pool(connector: Connector) -> Pool {
    legacy::Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .http2_keep_alive_interval(PING_INTERVAL)
        .http2_keep_alive_timeout(PING_TIMEOUT)
        .http2_keep_alive_while_idle(true)
        .http2_initial_stream_window_size(STREAM_WINDOW)
        .http2_initial_connection_window_size(CONNECTION_WINDOW)
        .build(connector)
}

/// The purpose of a GET request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// A response that ends.
    List,
    /// A stream of events, exempt from the rate limit as in client-go.
    Watch,
}

/// A client of one API server. Clones share connections and rate limit.
#[derive(Clone)]
pub struct ApiClient(Arc<Transport>);

/// Everything that a request needs.
pub struct Transport {
    /// The server.
    pub server: Arc<ServerUrl>,
    /// Its URL, for messages.
    pub name: String,
    /// Its connections.
    pub pool: Pool,
    /// User-Agent and impersonation.
    pub headers: HeaderMap,
    /// The credentials.
    pub credentials: Credentials,
    /// The rate limit; `None`: unlimited.
    pub limit: Option<RateLimit>,
    /// The metrics.
    pub requests: ServerRequestMetrics,
    /// Whether responses may be compressed (`disable-compression`).
    pub compress: bool,
}

impl ApiClient {
    /// A client with this transport.
    pub fn new(transport: Transport) -> Self {
        Self(Arc::new(transport))
    }

    /// Requests a path relative to the server's base path. `accept`: a media type.
    ///
    /// Returns any status with the headers; the body follows. Has no timeout of its own.
    ///
    /// # Errors
    /// No response.
    pub async fn get(&self, verb: Verb, path_and_query: &str, accept: &str) -> Result<Response<Body>, RequestError> {
        let mut request = Request::get(path_and_query).header(ACCEPT, accept);
        if self.0.compress {
            request = request.header(ACCEPT_ENCODING, "gzip");
        }
        let request = request.body(Full::default()).map_err(|error| self.other(&error))?;
        let answer = match verb {
            Verb::List => self.send(request).await?,
            Verb::Watch => self.send_now(request).await?,
        };
        let (parts, incoming) = answer.into_parts();
        let encoding = parts.headers.get(CONTENT_ENCODING).map(HeaderValue::as_bytes);
        let is_gzip = match encoding {
            None | Some(b"" | b"identity") => false,
            Some(b"gzip" | b"x-gzip") => true,
            Some(other) => {
                let cause = format!("unknown Content-Encoding {:?}", String::from_utf8_lossy(other));
                return Err(RequestError::Other { server: self.server().to_owned(), cause });
            }
        };
        let body = Body::new(incoming, self.server(), is_gzip);
        Ok(Response::from_parts(parts, body))
    }

    /// Sends a request with a URI relative to the server's base path, as soon as the rate limit allows it.
    ///
    /// # Errors
    /// No response.
    pub async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, RequestError> {
        if let Some(limit) = &self.0.limit {
            self.0.requests.waited(request.method().as_str(), limit.wait().await);
        }
        self.send_now(request).await
    }

    async fn send_now(&self, mut request: Request<Full<Bytes>>) -> Result<Response<Incoming>, RequestError> {
        let Transport { server, pool, headers, credentials, requests, .. } = &*self.0;
        let method = request.method().clone();
        let begun = Instant::now();
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        *request.uri_mut() = server.uri(path).map_err(|error| self.other(&error))?;
        for (name, value) in headers {
            request.headers_mut().append(name, value.clone());
        }
        let authorization = credentials.authorization().await;
        let authorization = authorization
            .map_err(|cause| RequestError::Credentials { server: self.server().to_owned(), cause })
            .inspect_err(|_| requests.answered(method.as_str(), None, begun.elapsed()))?;
        if let Some(header) = &authorization.header {
            request.headers_mut().insert(AUTHORIZATION, header.clone());
        }
        let answer = pool.request(request).await;
        let code = answer.as_ref().ok().map(Response::status);
        requests.answered(method.as_str(), code.map(|code| code.as_u16()), begun.elapsed());
        if code == Some(StatusCode::UNAUTHORIZED) {
            credentials.rejected(&authorization).await;
        }
        answer.map_err(|error| RequestError::of(self.server(), &error))
    }

    /// The server's URL, for messages.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.0.name
    }

    fn other(&self, error: &http::Error) -> RequestError {
        RequestError::Other { server: self.server().to_owned(), cause: error.to_string() }
    }
}

/// Sets User-Agent as Kubernetes' clients do: program, release, platform, build.
///
/// # Errors
/// The program's name has characters that a header cannot contain.
pub fn user_agent(headers: &mut HeaderMap) -> Result<(), String> {
    let program = std::env::args_os().next().unwrap_or_default();
    let program = program.to_string_lossy();
    let program = program.rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or("kube-proxy");
    let platform = crate::version::platform();
    let build = env!("CARGO_PKG_VERSION");
    let text = format!("{program}/{} ({platform}) kubernetes/rust-{build}", crate::version::KUBERNETES);
    let value = HeaderValue::from_str(&text).map_err(|error| format!("User-Agent {text:?}: {error}"))?;
    headers.insert(USER_AGENT, value);
    Ok(())
}
