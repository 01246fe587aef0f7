//! An open watch and its events.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::failure::Failure;
use super::transport::{Chunks, OkResponse};
use crate::source::wire::{WatchDecoder, WatchEvent};

/// An open watch or streamed list.
pub struct Watch<B> {
    body: B,
    /// `None` once the server has ended the watch.
    decoder: Option<WatchDecoder>,
    events: VecDeque<WatchEvent>,
    /// When it was requested: some proxies delay the response head until the first event.
    pub requested_at: Instant,
}

impl<B: Chunks> Watch<B> {
    /// Wraps a response with status 200.
    pub fn new(answer: OkResponse<B>, kind: proxier::track::Kind, requested_at: Instant) -> Self {
        let OkResponse { body, encoding, .. } = answer;
        Self { body, decoder: Some(WatchDecoder::new(kind, encoding)), events: VecDeque::new(), requested_at }
    }

    /// The next event; `None` when the server ends the watch. `silence`: the longest time without any bytes.
    ///
    /// # Errors
    /// A broken connection, malformed bytes, or silence.
    pub async fn next(&mut self, silence: Duration, awaited: &'static str) -> Result<Option<WatchEvent>, Failure> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            let Some(decoder) = &mut self.decoder else { return Ok(None) };
            let chunk = timeout(silence, self.body.chunk()).await.map_err(|_| Failure::Stalled(awaited, silence))?;
            match chunk {
                Some(chunk) => {
                    let bytes = chunk.map_err(Failure::Request)?;
                    let events = &mut self.events;
                    decoder.push(&bytes, &mut |event| events.push_back(event)).map_err(Failure::Wire)?;
                }
                None => {
                    if let Some(decoder) = self.decoder.take() {
                        decoder.finish().map_err(Failure::Wire)?;
                    }
                }
            }
        }
    }
}
