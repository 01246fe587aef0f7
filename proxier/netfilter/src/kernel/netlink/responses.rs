//! The answers to one request, datagram by datagram.
//!
//! In: datagrams. Out: the messages that answer the request, and how the dump or the question ended. Must not know:
//! sockets.

use super::receive::{Messages, Received};
use super::{NLM_F_DUMP_INTR, NLMSG_DONE, NetlinkError};

/// How a dump ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dump {
    /// All entries were there.
    Complete,
    /// At each try the kernel's table changed in a way that may have hidden entries.
    Interrupted,
}

/// What was received so far for one request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Responses {
    sequence: u32,
    /// Whether an acknowledgement is the end; else only the end of the dump is.
    until_acknowledged: bool,
    end: Dump,
}

impl Responses {
    /// Nothing received yet for the request of this sequence number.
    pub(super) fn new(sequence: u32, until_acknowledged: bool) -> Self {
        Self { sequence, until_acknowledged, end: Dump::Complete }
    }

    /// Hands the messages of a datagram that answer the request to `each`. Messages with other sequence numbers are
    /// left from earlier requests and skipped. Returns how it ended; `None` if another datagram follows.
    ///
    /// # Errors
    /// The kernel's error, that of `each`, or [`NetlinkError::Malformed`].
    pub(super) fn take(
        &mut self,
        datagram: &[u8],
        each: &mut dyn FnMut(&Received<'_>) -> Result<(), NetlinkError>,
    ) -> Result<Option<Dump>, NetlinkError> {
        for received in Messages(datagram) {
            let received = received?;
            if received.sequence != self.sequence {
                continue;
            }
            if received.flags & NLM_F_DUMP_INTR != 0 {
                self.end = Dump::Interrupted;
            }
            if let Some(verdict) = received.verdict() {
                verdict?;
                if self.until_acknowledged {
                    return Ok(Some(self.end));
                }
            } else if received.kind != NLMSG_DONE {
                each(&received)?;
            } else if received.end_code() < 0 {
                let errno = received.end_code().saturating_neg();
                return Err(NetlinkError::Refused { errno, words: String::new(), shown: Vec::new() });
            } else {
                return Ok(Some(self.end));
            }
        }
        Ok(None)
    }
}
