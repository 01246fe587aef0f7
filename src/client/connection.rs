//! A connection to the API server that can be closed from outside.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection as Describe};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use super::error::ConnectError;

/// A byte stream: TCP, TLS, or TLS in TLS.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for S {}

/// A connection.
pub struct Connection {
    stream: TokioIo<Box<dyn ByteStream>>,
    /// Ready when the connection must be closed; `None`: never, or it was.
    closed: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    is_closed: bool,
    /// The file of the client certificate, for error messages.
    identity: Option<Arc<str>>,
    protocol: HttpProtocol,
}

/// The HTTP version of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpProtocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/1.1 to a proxy, which requires absolute URLs.
    Http1Proxy,
    /// HTTP/2, negotiated by TLS.
    Http2,
}

impl Connection {
    /// Wraps a stream.
    pub fn new(stream: Box<dyn ByteStream>, protocol: HttpProtocol) -> Self {
        Self { stream: TokioIo::new(stream), closed: None, is_closed: false, identity: None, protocol }
    }

    /// Names the client certificate, and closes the connection when it is rotated.
    pub fn with_identity(mut self, identity: Option<Arc<str>>, mut rotated: watch::Receiver<u64>) -> Self {
        self.identity = identity;
        self.closed = Some(Box::pin(async move {
            if rotated.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }));
        self
    }

    /// Fails once the connection must be closed. Called when reading, where a connection waits.
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if let Some(closed) = &mut self.closed
            && closed.as_mut().poll(context).is_ready()
        {
            (self.closed, self.is_closed) = (None, true);
        }
        if self.is_closed {
            let message = "closed because the client certificate changed";
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, message));
        }
        Ok(())
    }

    /// Explains an alert: in TLS 1.3 the server rejects a client certificate after the handshake.
    fn explain(&self, error: io::Error) -> io::Error {
        let text = error.to_string();
        if !text.contains(" alert ") {
            return error;
        }
        io::Error::other(ConnectError::Tls(refused_identity(self.identity.as_deref(), &text)))
    }
}

/// The error for a server's alert about the client certificate. `alert`: OpenSSL's text.
pub fn refused_identity(identity: Option<&str>, alert: &str) -> String {
    // "error:0A00045C:SSL routines:ssl3_read_bytes:tlsv13 alert certificate required:…"
    let reason = alert.split(':').find(|part| part.contains(" alert ")).unwrap_or(alert).trim();
    match identity {
        Some(file) => format!("the server refuses the client certificate {file}: {reason}"),
        None => format!("the server refuses the connection without a client certificate: {reason}"),
    }
}

impl Read for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        result.map_err(|error| self.explain(error))
    }
}

impl Write for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl Describe for Connection {
    fn connected(&self) -> Connected {
        match self.protocol {
            HttpProtocol::Http1 => Connected::new(),
            HttpProtocol::Http1Proxy => Connected::new().proxy(true),
            HttpProtocol::Http2 => Connected::new().negotiated_h2(),
        }
    }
}
