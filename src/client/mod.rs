//! The client of the API server: from a kubeconfig to the answer of a request.
//!
//! [`connect`] finds the server and the credentials ([`access`]); [`transport`] sends requests over connections of
//! [`connector`], with TLS by OpenSSL ([`tls`]). Objects and watches are the business of [`crate::source`].

mod access;
mod body;
pub mod causes;
mod connection;
mod connector;
mod credentials;
mod error;
mod exec;
mod exec_protocol;
mod kubeconfig;
mod limit;
mod material;
mod pem;
mod proxy;
mod server_url;
mod tls;
mod token;
mod transport;
mod tunnel;
mod verify;

use std::sync::Arc;

use http::Request;
use http::header::{ACCEPT, HeaderValue};
use http_body_util::Full;
use tower::BoxError;

pub use self::body::Body;
pub use self::error::RequestError;
pub use self::kubeconfig::Kubeconfig;
pub use self::server_url::{ServerUrl, redacted};
pub use self::transport::{ApiClient, Verb};

use self::access::ApiAccess;
use self::connector::Connector;
use self::limit::RateLimit;
use self::material::TlsMaterial;
use self::transport::Transport;
use crate::config::ValidatedConfig;
use crate::metrics::Metrics;

/// Two clients of one API server, each with a rate limit of its own: objects do not wait for events.
pub struct ApiClients {
    /// For what is listed and watched.
    pub objects: ApiClient,
    /// For events.
    pub events: kube::Client,
}

/// Prepares to talk to the API server. Nothing is sent yet. `master`: `--master`, or empty.
///
/// # Errors
/// There is no usable configuration, or a file that it names cannot be used.
pub async fn connect(settings: &ValidatedConfig, master: &str, metrics: &Metrics) -> Result<ApiClients, String> {
    let ApiAccess { server, server_name, authorities, identity, credentials, mut headers, proxy, compress, origins } =
        ApiAccess::find(settings.client.kubeconfig.as_deref(), master)?;
    transport::user_agent(&mut headers)?;
    let tls = match server.tls {
        true => {
            // As in Go: HTTP/1.1 alone.
            let http2 = std::env::var_os("DISABLE_HTTP2").is_none_or(|value| value.is_empty());
            let material = TlsMaterial::new(authorities, identity, http2, origins)?;
            material.keep_fresh();
            Some((material, server_name.into()))
        }
        false => None,
    };
    let (name, host, server) = (server.to_string(), server.authority.to_string(), Arc::new(server));
    let pool = transport::pool(Connector::new(Arc::clone(&server), proxy, tls));
    let client = || {
        ApiClient::new(Transport {
            server: Arc::clone(&server),
            name: name.clone(),
            pool: pool.clone(),
            headers: headers.clone(),
            credentials: credentials.clone(),
            limit: settings.client.qps.map(|qps| RateLimit::new(qps, settings.client.burst)),
            requests: metrics.requests().to(&host),
            compress,
        })
    };
    Ok(ApiClients { objects: client(), events: kube_client(client()) })
}

/// The same client for those who speak through `kube`.
pub fn kube_client(client: ApiClient) -> kube::Client {
    let service = tower::service_fn(move |request: Request<kube::client::Body>| {
        let client = client.clone();
        async move {
            let (mut parts, body) = request.into_parts();
            parts.headers.entry(ACCEPT).or_insert(HeaderValue::from_static("application/json"));
            let body = body.collect_bytes().await?;
            client.send(Request::from_parts(parts, Full::new(body))).await.map_err(BoxError::from)
        }
    });
    kube::Client::new(service, "default")
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
