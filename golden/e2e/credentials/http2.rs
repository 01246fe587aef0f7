//! An HTTP/2 server that forwards each request to the plain API server.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use golden::pki::{Certified, Profile};
use golden::tls::server_context;
use http::{Request, Response, Version};
use http_body_util::{Either, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use openssl::ssl::{Ssl, SslContext};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_openssl::SslStream;

use super::World;

type Answer = Response<Either<Incoming, Empty<Bytes>>>;

/// The connections of an HTTP/2 server, and whether they are frozen.
#[derive(Default)]
pub struct ProxyRecord {
    /// Connections that carried requests.
    pub connections: AtomicUsize,
    requests: AtomicUsize,
    /// Earlier connections are dead: neither read nor written, and not closed.
    is_frozen: AtomicBool,
}

impl ProxyRecord {
    /// Makes all current connections die silently; new ones are served.
    pub fn freeze(&self) {
        self.is_frozen.store(true, Ordering::SeqCst);
    }
}

/// A TCP connection that can die silently.
struct Freezing {
    stream: TcpStream,
    seen: Arc<ProxyRecord>,
    is_new: bool,
}

impl Freezing {
    fn is_frozen(&self) -> bool {
        !self.is_new && self.seen.is_frozen.load(Ordering::SeqCst)
    }
}

impl AsyncRead for Freezing {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.is_frozen() {
            return Poll::Pending;
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Freezing {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        if self.is_frozen() {
            return Poll::Pending;
        }
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl World {
    /// Starts an HTTP/2 server in front of the API server for the rest of the test, and returns its URL.
    pub fn http2(&self, seen: &Arc<ProxyRecord>) -> String {
        let server = Certified::new(&Profile::server("server"), Some(&self.authority));
        let context = server_context(&server, None, b"\x02h2\x08http/1.1");
        let (listener, backend, seen) = (self.listener(), self.backend(), Arc::clone(seen));
        let url = format!("https://{}", listener.local_addr().expect("an address"));
        listener.set_nonblocking(true).expect("a non-blocking listener");
        self.node.netns().enter(|| {
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                runtime.block_on(async {
                    let listener = TcpListener::from_std(listener).expect("a listener");
                    while let Ok((stream, _)) = listener.accept().await {
                        let is_new = seen.is_frozen.load(Ordering::SeqCst);
                        let stream = Freezing { stream, seen: Arc::clone(&seen), is_new };
                        tokio::spawn(serve(stream, context.clone(), backend, Arc::clone(&seen)));
                    }
                });
            });
        });
        url
    }
}

async fn serve(stream: Freezing, context: SslContext, backend: SocketAddr, seen: Arc<ProxyRecord>) -> Option<()> {
    let mut stream = SslStream::new(Ssl::new(&context).ok()?, stream).ok()?;
    Pin::new(&mut stream).accept().await.ok()?;
    let is_used = AtomicBool::new(false);
    let service = service_fn(|request: Request<Incoming>| {
        assert_eq!(request.version(), Version::HTTP_2);
        seen.requests.fetch_add(1, Ordering::SeqCst);
        if !is_used.swap(true, Ordering::SeqCst) {
            seen.connections.fetch_add(1, Ordering::SeqCst);
        }
        async move {
            let failed = || Response::builder().status(502).body(Either::Right(Empty::new())).expect("an answer");
            Ok::<Answer, Infallible>(forward(request, backend).await.unwrap_or_else(failed))
        }
    });
    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service)
        .await
        .ok()
}

async fn forward(mut request: Request<Incoming>, backend: SocketAddr) -> Option<Answer> {
    let stream = TcpStream::connect(backend).await.ok()?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
    tokio::spawn(connection);
    let path = request.uri().path_and_query()?.as_str().parse().ok()?;
    *request.uri_mut() = path;
    *request.version_mut() = Version::HTTP_11;
    request.headers_mut().insert("host", backend.to_string().parse().ok()?);
    let mut answer = sender.send_request(request).await.ok()?;
    // Headers of HTTP/1.1 only.
    ["connection", "transfer-encoding", "keep-alive"].iter().for_each(|name| _ = answer.headers_mut().remove(*name));
    Some(answer.map(Either::Left))
}

#[test]
fn one_connection_carries_everything_where_the_server_has_http2() {
    let mut world = World::new();
    let seen = Arc::new(ProxyRecord::default());
    let url = world.http2(&seen);
    world.start(&url, "certificate-authority: ca.crt", "");
    world.works("10.244.2.6");
    world.node.until("the event is written", || !world.api.all("Event").is_empty());
    assert!(seen.requests.load(Ordering::SeqCst) >= 4, "three watches and an event");
    assert_eq!(seen.connections.load(Ordering::SeqCst), 1);
}
