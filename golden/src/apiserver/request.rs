//! A received HTTP request.

use std::io;
use std::time::Duration;

/// A request that the server has received.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `POST`…
    pub method: String,
    /// The path, without the query.
    pub path: String,
    /// The query, percent-encoded, without the question mark.
    pub query: String,
    /// The `User-Agent` header, or an empty string.
    pub user_agent: String,
    /// The `Accept` header, or an empty string.
    pub accept: String,
    /// The `Accept-Encoding` header, or an empty string.
    pub accept_encoding: String,
    /// The time since the server's start.
    pub received: Duration,
    /// The `Authorization` header, if present.
    pub authorization: Option<String>,
    /// The body of a POST or PATCH.
    pub body: String,
    /// Whether the client will not reuse the connection.
    pub(super) close: bool,
}

impl Request {
    /// The decoded value of a query parameter; the last one if repeated.
    #[must_use]
    pub fn param(&self, name: &str) -> Option<String> {
        let pairs = self.query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs.rev().find(|(key, _)| decode(key) == name).map(|(_, value)| decode(value))
    }

    /// Whether a query parameter is true.
    #[must_use]
    pub fn flag(&self, name: &str) -> bool {
        self.param(name).is_some_and(|value| value == "true" || value == "1")
    }

    /// Whether it opens a watch.
    #[must_use]
    pub fn is_watch(&self) -> bool {
        self.flag("watch")
    }

    /// Whether it requests a streamed list.
    #[must_use]
    pub fn is_streaming_list(&self) -> bool {
        self.is_watch() && self.flag("sendInitialEvents")
    }

    /// Whether the client accepts gzip.
    pub(super) fn takes_gzip(&self) -> bool {
        self.accept_encoding.split(',').any(|encoding| encoding.trim() == "gzip")
    }

    /// The first request in `received` and its length; `None` if incomplete.
    pub(super) fn parse(received: &[u8]) -> io::Result<Option<(Self, usize)>> {
        let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
        let head = std::str::from_utf8(&received[..end]).map_err(invalid)?;
        let mut lines = head.split("\r\n");
        let mut words = lines.next().unwrap_or_default().split(' ');
        let (Some(method), Some(target), Some("HTTP/1.1")) = (words.next(), words.next(), words.next()) else {
            return Err(invalid("not an HTTP/1.1 request"));
        };
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut request = Self { method: method.into(), path: path.into(), query: query.into(), ..Self::default() };
        let mut length = 0_usize;
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                "user-agent" => value.clone_into(&mut request.user_agent),
                "accept" => value.clone_into(&mut request.accept),
                "accept-encoding" => value.clone_into(&mut request.accept_encoding),
                "authorization" => request.authorization = Some(value.to_owned()),
                "connection" => request.close = value.eq_ignore_ascii_case("close"),
                "content-length" => length = value.parse().map_err(invalid)?,
                "transfer-encoding" => return Err(invalid("chunked requests are not understood here")),
                _ => {}
            }
        }
        let body = end + 4;
        let Some(bytes) = received.get(body..body + length) else { return Ok(None) };
        request.body = String::from_utf8_lossy(bytes).into_owned();
        Ok(Some((request, body + length)))
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'+' => out.push(b' '),
            b'%' => {
                let hex: String = bytes.by_ref().take(2).map(char::from).collect();
                out.push(u8::from_str_radix(&hex, 16).unwrap_or(b'?'));
            }
            _ => out.push(byte),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
