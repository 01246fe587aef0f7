//! HTTP/1.1 on one connection, written by hand so that faults can violate the protocol.
//!
//! Reads requests and writes answers of known length; `body` writes answers of unknown length.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::delivery::{Delivery, Pace};
use super::request::Request;

/// Whether a connection stays open after a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    Reuse,
    Close,
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: TcpStream,
    received: Vec<u8>,
    pub(super) pace: watch::Receiver<Pace>,
    /// How the current answer is delivered.
    pub(super) delivery: Delivery,
}

const MAX_REQUEST: usize = 1 << 20;

impl Connection {
    pub(super) fn new(stream: TcpStream, pace: watch::Receiver<Pace>) -> Self {
        // Small events must not wait for each other. A failure only adds latency.
        let _ = stream.set_nodelay(true);
        Self { stream, received: Vec::new(), pace, delivery: Delivery::default() }
    }

    /// The next request; `None` when the client has closed the connection.
    pub(super) async fn request(&mut self) -> io::Result<Option<Request>> {
        loop {
            if let Some((request, length)) = Request::parse(&self.received)? {
                self.received.drain(..length);
                return Ok(Some(request));
            }
            if self.received.len() > MAX_REQUEST {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "request too large"));
            }
            if self.stream.read_buf(&mut self.received).await? == 0 {
                return Ok(None);
            }
        }
    }

    /// Completes when the client has closed the connection.
    pub(super) async fn gone(&mut self) {
        while let Ok(1..) = self.stream.read_buf(&mut self.received).await {}
    }

    /// Waits while the pace is `Silent`.
    pub(super) async fn may_answer(&mut self) -> io::Result<()> {
        while *self.pace.borrow_and_update() == Pace::Silent {
            self.pace_changed().await?;
        }
        Ok(())
    }

    /// Sends a response of known length.
    pub(super) async fn respond(&mut self, code: u16, media_type: &str, headers: &str, body: &[u8]) -> io::Result<()> {
        let length = format!("Content-Length: {}\r\n{headers}", body.len());
        self.head(code, media_type, &length).await?;
        self.stream.write_all(body).await
    }

    /// Makes closing send a TCP reset.
    pub(super) fn will_reset(&self) -> io::Result<()> {
        self.stream.set_zero_linger()
    }

    pub(super) async fn head(&mut self, code: u16, media_type: &str, headers: &str) -> io::Result<()> {
        let head = format!(
            "HTTP/1.1 {code} {}\r\nContent-Type: {media_type}\r\nCache-Control: no-cache, private\r\n{headers}\r\n",
            phrase(code)
        );
        self.stream.write_all(head.as_bytes()).await
    }

    /// Waits for the next pace; fails when the client has closed the connection.
    pub(super) async fn pace_changed(&mut self) -> io::Result<()> {
        let mut pace = self.pace.clone();
        tokio::select! {
            changed = pace.changed() => changed.map_err(io::Error::other),
            () = self.gone() => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

fn phrase(code: u16) -> &'static str {
    match code {
        200 => "OK",
        201 => "Created",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        409 => "Conflict",
        410 => "Gone",
        422 => "Unprocessable Entity",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "Unknown",
    }
}
