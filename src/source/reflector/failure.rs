//! Why a list or a watch failed, and how the reflector reacts.

use std::fmt;
use std::time::Duration;

use http::header::{CONTENT_TYPE, LOCATION, RETRY_AFTER};
use http::{HeaderMap, StatusCode};
use proxier::track::DecodeError;

use crate::client::{RequestError, redacted};
use crate::source::wire::{Encoding, Status, WireError, decode_status};

/// Why a list or a watch failed.
#[derive(Debug)]
pub enum Failure {
    /// The request got no response, or its connection broke.
    Request(RequestError),
    /// The API server refused, with an HTTP status or an ERROR event.
    Refused(Status),
    /// The response is not a list or watch.
    Wire(WireError),
    /// A watch event could not be decoded, so an object may have been missed.
    Unreadable(DecodeError),
    /// The response has a media type that was not requested.
    MediaType(String),
    /// No bytes came for that long.
    Stalled(&'static str, Duration),
    /// A streamed list ended before the bookmark that completes it.
    NoBookmark,
    /// A watch ended within a second.
    Short(Duration),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Request(error) => error.fmt(f),
            Self::Refused(Status { code, reason, message, .. }) => {
                write!(f, "{code}")?;
                if !reason.is_empty() {
                    write!(f, " {reason}")?;
                }
                if message.is_empty() { Ok(()) } else { write!(f, ": {message}") }
            }
            Self::Wire(error) => error.fmt(f),
            Self::Unreadable(error) => error.fmt(f),
            Self::MediaType(media_type) => write!(f, "cannot decode an answer of media type {media_type:?}"),
            Self::Stalled(what, time) => write!(f, "no {what} for {time:?}"),
            Self::NoBookmark => f.write_str("the stream ended before the bookmark that completes the list"),
            Self::Short(time) => write!(f, "the watch ended after {time:?}"),
        }
    }
}

impl Failure {
    /// Its text, which begins with the URL of the server.
    pub fn at(&self, server: &str) -> String {
        match self {
            // It names the server itself.
            Self::Request(error) => error.to_string(),
            other => format!("{server}: {other}"),
        }
    }

    /// Whether it comes from an exec plugin, one run of which may fail many requests; its text names the run.
    pub fn is_of_plugin(&self) -> bool {
        matches!(self, Self::Request(RequestError::Credentials { .. }))
    }

    /// The HTTP status of a refusal.
    fn code(&self) -> Option<u16> {
        match self {
            Self::Refused(status) => Some(status.code),
            _ => None,
        }
    }

    /// The requested version is no longer in etcd's history.
    pub fn is_expired(&self) -> bool {
        self.code() == Some(410)
    }

    /// The requested version is newer than any of the server's, as after a restore of etcd. Servers before 1.18.6 say
    /// so only in the message.
    pub fn is_too_large(&self) -> bool {
        let Self::Refused(status) = self else { return false };
        status.causes.iter().any(|(reason, _)| reason == "ResourceVersionTooLarge")
            || (status.code == 504 && status.message.contains("Too large resource version"))
    }

    /// The resource does not exist on this server.
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(404)
    }

    /// A plain list would fail in the same way: client-go backs off instead of falling back.
    pub fn outlasts_fallback(&self) -> bool {
        match self {
            Self::Request(error) => error.is_refused(),
            _ => matches!(self.code(), Some(401 | 429)),
        }
    }

    /// Says something about the server and not only about the connection to it.
    pub fn is_answer(&self) -> bool {
        !matches!(self, Self::Request(_))
    }

    /// A watch can continue from its last version once the server recovers, without a new list.
    ///
    /// Not after a server whose certificate was refused: the one that comes back may have another history. client-go
    /// lists again, too.
    pub fn keeps_version(&self) -> bool {
        match self {
            Self::Request(RequestError::Tls { .. }) => false,
            Self::Request(_) | Self::Short(_) => true,
            Self::Refused(status) => matches!(status.code, 401 | 429 | 500..) && !self.is_too_large(),
            Self::Wire(_) | Self::Unreadable(_) | Self::MediaType(_) | Self::Stalled(..) | Self::NoBookmark => false,
        }
    }

    /// How long the server asks to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused(status) => status.retry_after,
            _ => None,
        }
    }

    /// From a response that is not 200. A proxy's HTML page becomes the status line and its first words.
    pub fn of_answer(code: StatusCode, headers: &HeaderMap, body: &[u8]) -> Self {
        let media_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let status = Encoding::of(media_type).and_then(|encoding| decode_status(encoding, body));
        let mut status = status.unwrap_or_else(|| Status {
            reason: code.canonical_reason().unwrap_or_default().to_owned(),
            message: first_words(body),
            ..Status::default()
        });
        if code.is_redirection() {
            let location = headers.get(LOCATION).map(|value| redacted(&String::from_utf8_lossy(value.as_bytes())));
            let location = location.map_or("no Location".to_owned(), |location| format!("Location {location:?}"));
            status.message = format!("redirects are not followed; {location}");
        }
        // A Status in the body of another answer may lack its code.
        status.code = code.as_u16();
        let header = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let seconds = header.and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
        status.retry_after = status.retry_after.max(seconds);
        Self::Refused(status)
    }
}

/// The beginning of an unstructured body, on one line.
fn first_words(body: &[u8]) -> String {
    const MAX_CHARS: usize = 120;
    let text = String::from_utf8_lossy(&body[..body.len().min(MAX_CHARS * 4)]);
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match words.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}…", &words[..end]),
        None => words,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(code: u16, location: Option<&str>, body: &str) -> String {
        let mut headers = HeaderMap::new();
        headers.extend(location.map(|value| (LOCATION, value.parse().expect("a header"))));
        let code = StatusCode::from_u16(code).expect("a status");
        Failure::of_answer(code, &headers, body.as_bytes()).at("https://h:6443")
    }

    #[test]
    fn refusals_when_logged_name_the_server_and_redirects_their_location() {
        assert_eq!(answer(401, None, "go away"), "https://h:6443: 401 Unauthorized: go away");
        assert_eq!(answer(502, None, ""), "https://h:6443: 502 Bad Gateway");
        assert_eq!(
            answer(302, Some("https://me:pw@login/x"), "<html>"),
            "https://h:6443: 302 Found: redirects are not followed; Location \"https://***@login/x\""
        );
        assert_eq!(answer(302, None, ""), "https://h:6443: 302 Found: redirects are not followed; no Location");
        let media = Failure::MediaType("text/html".to_owned()).at("https://h:6443");
        assert_eq!(media, "https://h:6443: cannot decode an answer of media type \"text/html\"");
        let refused = RequestError::Refused { server: "https://h:6443".into(), cause: "connection refused".into() };
        assert_eq!(Failure::Request(refused).at("https://h:6443"), "https://h:6443: connection refused");
    }
}
