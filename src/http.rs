//! The HTTP servers for health checks and metrics.
//!
//! In: addresses; health and metrics to ask. Out: answers. Must not know: how the proxy works.
//! A port that is taken does not stop the proxy: it is tried again every five seconds, like kube-proxy does.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;
use tracing::{error, info};

use crate::health::Health;
use crate::metrics::Metrics;

const BIND_RETRY: Duration = Duration::from_secs(5);
const NOSNIFF: (header::HeaderName, &str) = (header::X_CONTENT_TYPE_OPTIONS, "nosniff");
const PLAIN: &str = "text/plain; charset=utf-8";

/// `/healthz` and `/livez`.
pub fn health_routes(health: Arc<Health>, metrics: Arc<Metrics>) -> Router {
    let route = |live: bool| {
        any(move |State((health, metrics)): State<(Arc<Health>, Arc<Metrics>)>| async move {
            let answer = health.answer(!live);
            let status = if answer.ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            metrics.answered(live, status.as_u16());
            let body = serde_json::to_string(&answer).unwrap_or_default();
            (status, [(header::CONTENT_TYPE, "application/json"), NOSNIFF], body)
        })
    };
    Router::new()
        .route("/healthz", route(false))
        .route("/livez", route(true))
        .fallback(not_found)
        .with_state((health, metrics))
}

/// `/metrics`, `/healthz` (always well: it tells that the process lives) and `/proxyMode`.
pub fn metrics_routes(metrics: Arc<Metrics>) -> Router {
    let text = |body: &'static str| any(move || async move { ([(header::CONTENT_TYPE, PLAIN), NOSNIFF], body) });
    Router::new()
        .route("/metrics", any(exposition))
        .route("/healthz", text("ok"))
        .route("/proxyMode", text("iptables"))
        .fallback(not_found)
        .with_state(metrics)
}

async fn exposition(State(metrics): State<Arc<Metrics>>) -> Response {
    match metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error).into_response(),
    }
}

async fn not_found() -> Response {
    (StatusCode::NOT_FOUND, [(header::CONTENT_TYPE, PLAIN), NOSNIFF], "404 page not found\n").into_response()
}

/// Serves until the process ends.
pub async fn serve(address: SocketAddr, routes: Router) {
    loop {
        match bind(address) {
            Ok(listener) => {
                info!("Serving HTTP on {address}");
                if let Err(error) = axum::serve(listener, routes.clone()).await {
                    error!("the HTTP server on {address} ended: {error}");
                }
            }
            Err(error) => error!("cannot listen on {address}, trying again in {BIND_RETRY:?}: {error}"),
        }
        tokio::time::sleep(BIND_RETRY).await;
    }
}

/// The IPv4 wildcard means both families, as in Go, where the host has IPv6.
fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    if address.ip() == std::net::Ipv4Addr::UNSPECIFIED {
        let both = SocketAddr::new(std::net::Ipv6Addr::UNSPECIFIED.into(), address.port());
        match listen(both) {
            Err(error) if error.kind() != std::io::ErrorKind::AddrInUse => {}
            result => return result,
        }
    }
    listen(address)
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.is_ipv6() {
        // net.ipv6.bindv6only may say otherwise.
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    TcpListener::from_std(socket.into())
}
