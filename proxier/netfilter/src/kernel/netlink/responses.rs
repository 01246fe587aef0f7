//! Collects the responses to one request from a sequence of datagrams.

use super::receive::{Messages, Received};
use super::{NLM_F_DUMP_INTR, NLMSG_DONE, NetlinkError};

/// The result of a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dump {
    /// The dump contains all entries.
    Complete,
    /// The table changed during each attempt, and entries may be missing.
    Interrupted,
}

/// The state of the responses to one request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Responses {
    sequence: u32,
    /// Whether an acknowledgement ends the responses; otherwise `NLMSG_DONE` does.
    until_acknowledged: bool,
    end: Dump,
}

impl Responses {
    /// The state before the first response to a request with this sequence number.
    pub(super) fn new(sequence: u32, until_acknowledged: bool) -> Self {
        Self { sequence, until_acknowledged, end: Dump::Complete }
    }

    /// Passes the responses in a datagram to `each`.
    ///
    /// Skips messages with other sequence numbers, which are left over from earlier requests. Returns the result;
    /// `None` if another datagram follows.
    ///
    /// # Errors
    /// The kernel's error, the error of `each`, or [`NetlinkError::Malformed`].
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
