//! The client interface of the reflector.

use std::future::Future;

use bytes::{Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};

use super::failure::Failure;
use crate::client::{ApiClient, Body, RequestError, Verb};
use crate::source::wire::Encoding;

/// The most bytes of an error response's body that are read.
const MAX_ERROR_BODY_BYTES: usize = 64 * 1024;

/// Sends requests to an API server. A trait, so that the reflector's decisions can be tested without sockets and with
/// the clock under control.
pub trait Transport: Clone + Send + Sync + 'static {
    /// The body of a response.
    type Body: Chunks;

    /// The server's URL, for messages.
    fn server(&self) -> &str;

    /// Sends a GET request and returns the response's status, headers and body.
    fn get(
        &self,
        verb: Verb,
        path: &str,
        accept: &str,
    ) -> impl Future<Output = Result<(StatusCode, HeaderMap, Self::Body), RequestError>> + Send;
}

/// A body that arrives piece by piece.
pub trait Chunks: Send + 'static {
    /// The next bytes; `None` at the end.
    fn chunk(&mut self) -> impl Future<Output = Option<Result<Bytes, RequestError>>> + Send;
}

impl Transport for ApiClient {
    type Body = Body;

    fn server(&self) -> &str {
        Self::server(self)
    }

    async fn get(&self, verb: Verb, path: &str, accept: &str) -> Result<(StatusCode, HeaderMap, Body), RequestError> {
        let (head, body) = Self::get(self, verb, path, accept).await?.into_parts();
        Ok((head.status, head.headers, body))
    }
}

impl Chunks for Body {
    async fn chunk(&mut self) -> Option<Result<Bytes, RequestError>> {
        Self::chunk(self).await
    }
}

/// A response with status 200 that can be decoded.
pub struct OkResponse<B> {
    /// How its body is encoded.
    pub encoding: Encoding,
    /// Its body.
    pub body: B,
}

impl<B: Chunks> OkResponse<B> {
    /// Checks status and media type.
    ///
    /// # Errors
    /// Another status, or a media type that cannot be decoded.
    pub async fn of((status, headers, mut body): (StatusCode, HeaderMap, B)) -> Result<Self, Failure> {
        if status != StatusCode::OK {
            return Err(Failure::of_answer(status, &headers, &beginning(&mut body).await));
        }
        let media_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        match Encoding::of(media_type) {
            Some(encoding) => Ok(Self { encoding, body }),
            None => Err(Failure::MediaType(media_type.to_owned())),
        }
    }
}

/// The first bytes of an error response, enough for a message.
async fn beginning(body: &mut impl Chunks) -> Bytes {
    let mut bytes = BytesMut::new();
    while let Some(Ok(chunk)) = body.chunk().await {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > MAX_ERROR_BODY_BYTES {
            break;
        }
    }
    bytes.freeze()
}
