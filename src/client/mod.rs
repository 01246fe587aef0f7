//! The client of the API server.
//!
//! [`connect`] finds the server and the credentials ([`access`]); [`transport`] sends requests over connections of
//! [`connector`], with TLS by OpenSSL ([`tls`]). Lists and watches are in [`crate::source`].

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

/// Two clients of one API server with separate rate limits, so that events do not delay objects.
pub struct ApiClients {
    /// For lists and watches.
    pub objects: ApiClient,
    /// For events.
    pub events: kube::Client,
}

/// Prepares clients of the API server without sending anything. `master`: `--master`, or empty.
///
/// # Errors
/// No usable configuration, or a file that it names cannot be used.
pub async fn connect(settings: &ValidatedConfig, master: &str, metrics: &Metrics) -> Result<ApiClients, String> {
    let ApiAccess { server, server_name, authorities, identity, credentials, mut headers, proxy, compress, origins } =
        ApiAccess::find(settings.client.kubeconfig.as_deref(), master)?;
    transport::user_agent(&mut headers)?;
    let tls = match server.tls {
        true => {
            // As in Go, this selects HTTP/1.1.
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

/// The same client with the interface of `kube`.
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
