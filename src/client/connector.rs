//! Makes connections: TCP, through a proxy if configured, then TLS. Each step has a timeout.

use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_openssl::SslStream;
use tower::{BoxError, Service};

use super::causes::causes;
use super::connection::{ByteStream, Connection, HttpProtocol, refused_identity};
use super::error::{ConnectError, RequestError};
use super::material::{TlsHandshake, TlsMaterial};
use super::proxy::{Proxy, ProxyKind};
use super::server_url::ServerUrl;
use super::tls;
use super::tunnel;
use super::verify::VerifyFailure;

/// For a TCP connection and the name lookup, as in client-go.
const TCP_TIMEOUT: Duration = Duration::from_secs(30);
/// For a TLS handshake, as in client-go.
const TLS_TIMEOUT: Duration = Duration::from_secs(10);
/// For a proxy to connect to the server.
const TUNNEL_TIMEOUT: Duration = Duration::from_secs(30);

/// The first TCP keepalive probe of a silent connection, then one every [`KEEPALIVE_INTERVAL`]; see [`USER_TIMEOUT`].
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// A peer that acknowledges nothing for this long is dead (`TCP_USER_TIMEOUT`): detected after 35 s at the latest.
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// Connects to one server.
#[derive(Clone)]
pub struct Connector {
    tcp: HttpConnector,
    server: Arc<ServerUrl>,
    proxy: Option<Arc<Proxy>>,
    /// `None`: plain HTTP.
    tls: Option<(Arc<TlsMaterial>, Arc<str>)>,
}

impl Connector {
    /// Prepares connections. `tls`: the material and the expected name in the server's certificate.
    pub fn new(server: Arc<ServerUrl>, proxy: Option<Proxy>, tls: Option<(Arc<TlsMaterial>, Arc<str>)>) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(TCP_TIMEOUT));
        tcp.set_keepalive(Some(KEEPALIVE));
        tcp.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
        tcp.set_tcp_user_timeout(Some(USER_TIMEOUT));
        Self { tcp, server, proxy: proxy.map(Arc::new), tls }
    }

    async fn connect(mut self, uri: Uri) -> Result<Connection, BoxError> {
        let proxy = self.proxy.take();
        let first = proxy.as_ref().map_or(uri, |proxy| proxy.uri());
        let tcp: TcpStream = match timeout(TCP_TIMEOUT, self.tcp.call(first.clone())).await {
            Ok(Ok(stream)) => stream.into_inner(),
            Ok(Err(error)) => {
                return Err(match &proxy {
                    Some(proxy) => unreachable(proxy, &error),
                    None => error.into(),
                });
            }
            Err(_) => {
                let to = first.authority().map(ToString::to_string).unwrap_or_default();
                return Err(ConnectError::TimedOut(format!("no TCP connection to {to} within {TCP_TIMEOUT:?}")).into());
            }
        };
        let handshake = match &self.tls {
            Some((material, _)) => Some(material.handshake().await?),
            None => None,
        };
        let mut stream: Box<dyn ByteStream> = Box::new(tcp);
        if let Some(proxy) = &proxy {
            stream = self.through(proxy, stream, handshake.as_ref()).await?;
        }
        let (Some((_, name)), Some(handshake)) = (&self.tls, handshake) else {
            let is_proxied = proxy.is_some_and(|proxy| proxy.kind != ProxyKind::Socks5);
            return Ok(Connection::new(
                stream,
                if is_proxied { HttpProtocol::Http1Proxy } else { HttpProtocol::Http1 },
            ));
        };
        let tls = Self::start_tls(stream, &handshake, name).await?;
        let is_http2 = tls.ssl().selected_alpn_protocol() == Some(b"h2");
        let protocol = if is_http2 { HttpProtocol::Http2 } else { HttpProtocol::Http1 };
        Ok(Connection::new(Box::new(tls), protocol).with_identity(handshake.identity, handshake.rotated))
    }

    /// Connects through the proxy to the server.
    async fn through(
        &self,
        proxy: &Proxy,
        mut stream: Box<dyn ByteStream>,
        handshake: Option<&TlsHandshake>,
    ) -> Result<Box<dyn ByteStream>, ConnectError> {
        if let (ProxyKind::Https, Some(handshake)) = (proxy.kind, handshake) {
            // Go verifies an HTTPS proxy with the cluster's authorities too.
            let name = proxy.authority.host();
            stream = Box::new(Self::start_tls(stream, handshake, name.trim_matches(['[', ']'])).await?);
        }
        let host = self.server.authority.host();
        let port = self.server.authority.port_u16().unwrap_or(if self.server.tls { 443 } else { 80 });
        let credentials = proxy.credentials.as_ref();
        let tunnel = async {
            match proxy.kind {
                ProxyKind::Socks5 => tunnel::socks5(&mut stream, (host, port), credentials).await,
                _ if self.tls.is_some() => tunnel::connect(&mut stream, &format!("{host}:{port}"), credentials).await,
                _ => Ok(()),
            }
        };
        let whose = || format!("proxy {}", proxy.authority);
        match timeout(TUNNEL_TIMEOUT, tunnel).await {
            Ok(Ok(())) => Ok(stream),
            Ok(Err(error)) => Err(ConnectError::Proxy(format!("{}: {error}", whose()))),
            Err(_) => Err(ConnectError::TimedOut(format!("{}: no answer within {TUNNEL_TIMEOUT:?}", whose()))),
        }
    }

    async fn start_tls(
        stream: Box<dyn ByteStream>,
        handshake: &TlsHandshake,
        name: &str,
    ) -> Result<SslStream<Box<dyn ByteStream>>, ConnectError> {
        let refusal = VerifyFailure::default();
        let verify = handshake.trust.as_deref().map(|trust| (&refusal, trust));
        let session = tls::session(&handshake.context, name, verify);
        let session =
            session.map_err(|error| ConnectError::Tls(format!("{name:?} is not a valid server name: {error}")))?;
        let stream = SslStream::new(session, stream);
        let mut stream = stream.map_err(|error| ConnectError::Tls(format!("cannot set up TLS: {error}")))?;
        let error = match timeout(TLS_TIMEOUT, Pin::new(&mut stream).connect()).await {
            Ok(Ok(())) => return Ok(stream),
            Ok(Err(error)) => error.to_string(),
            Err(_) => return Err(ConnectError::TimedOut(format!("no TLS handshake within {TLS_TIMEOUT:?}"))),
        };
        Err(ConnectError::Tls(refusal.take().unwrap_or_else(|| match error.contains(" alert ") {
            true => refused_identity(handshake.identity.as_deref(), &error),
            false => explain(&error),
        })))
    }
}

/// The error of a proxy without a TCP connection.
fn unreachable(proxy: &Proxy, error: &(dyn Error + 'static)) -> BoxError {
    let text = format!("proxy {}: {}", proxy.authority, causes(error));
    let is_refused = RequestError::of("", error).is_refused();
    Box::new(if is_refused { ConnectError::ProxyRefused(text) } else { ConnectError::Proxy(text) })
}

fn explain(error: &str) -> String {
    match error {
        text if text.contains("wrong version number") => "the server does not speak TLS (is it http://?)".to_owned(),
        text => format!("TLS handshake failed: {text}"),
    }
}

impl Service<Uri> for Connector {
    type Response = Connection;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Connection, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tcp.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}
