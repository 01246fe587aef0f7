//! Response bodies, decompressed as their bytes arrive.

use std::io::Write;

use bytes::Bytes;
use flate2::write::MultiGzDecoder;
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::error::RequestError;

/// The compressed bytes that are decompressed at once: at most a thousand times as many come out.
const CHUNK_BYTES: usize = 16 * 1024;

/// The body of a response.
pub struct Body {
    incoming: Incoming,
    server: String,
    /// For `Content-Encoding: gzip` with any number of members: a compressed watch has one per event.
    gzip: Option<MultiGzDecoder<Vec<u8>>>,
    /// Received bytes that are not decompressed yet.
    compressed: Bytes,
}

impl Body {
    /// `server`: for messages.
    pub fn new(incoming: Incoming, server: &str, is_gzip: bool) -> Self {
        let gzip = is_gzip.then(|| MultiGzDecoder::new(Vec::new()));
        Self { incoming, server: server.to_owned(), gzip, compressed: Bytes::new() }
    }

    /// The next decompressed bytes; `None` at the end. Has no timeout.
    pub async fn chunk(&mut self) -> Option<Result<Bytes, RequestError>> {
        loop {
            if !self.compressed.is_empty() {
                match self.decompress() {
                    Ok(bytes) if bytes.is_empty() => continue,
                    result => return Some(result),
                }
            }
            let data = match self.incoming.frame().await {
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
                Some(Err(error)) => return Some(Err(RequestError::of(&self.server, &error))),
                None => return self.finish().map(Err),
            };
            match self.gzip {
                Some(_) => self.compressed = data,
                None if data.is_empty() => {}
                None => return Some(Ok(data)),
            }
        }
    }

    fn decompress(&mut self) -> Result<Bytes, RequestError> {
        let Some(gzip) = &mut self.gzip else { return Ok(std::mem::take(&mut self.compressed)) };
        let piece = self.compressed.split_to(self.compressed.len().min(CHUNK_BYTES));
        // Flushing yields a whole event of a watch even if its gzip member continues.
        let result = gzip.write_all(&piece).and_then(|()| gzip.flush());
        result.map_err(|error| invalid(&self.server, &error))?;
        Ok(std::mem::take(gzip.get_mut()).into())
    }

    /// An error if the body ends within a gzip member.
    fn finish(&mut self) -> Option<RequestError> {
        let error = self.gzip.take()?.try_finish().err()?;
        Some(invalid(&self.server, &error))
    }
}

fn invalid(server: &str, error: &std::io::Error) -> RequestError {
    RequestError::Other { server: server.to_owned(), cause: format!("invalid gzip in the response: {error}") }
}
