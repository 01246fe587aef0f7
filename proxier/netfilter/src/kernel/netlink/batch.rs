//! Requests that are taken all or not at all.
//!
//! In: requests, the first and last of which say where the batch begins and ends. Out: nothing, or what is wrong with
//! which. Must not know: what any request means.

use nix::sys::socket::{getsockopt, setsockopt, sockopt};

use super::receive::Messages;
use super::{NLM_F_ACK, Netlink, NetlinkError, Request, request};

/// What the kernel keeps of a socket's room for itself.
const RESERVE: usize = 32;

/// One thing that is wrong with a batch.
#[derive(Debug)]
pub struct Fault {
    /// The request at fault.
    pub index: usize,
    /// Where in it, if the kernel says.
    pub offset: Option<usize>,
    /// Why.
    pub error: NetlinkError,
}

/// Requests as they are sent.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    starts: Vec<usize>,
}

impl Batch {
    /// Appends a request.
    pub fn push(&mut self, request: &Request) -> Result<(), NetlinkError> {
        self.starts.push(self.bytes.len());
        request.write_to(&mut self.bytes, 0, 0)
    }

    /// Appends those of another batch.
    pub fn append(&mut self, other: &Self) {
        self.starts.extend(other.starts.iter().map(|start| self.bytes.len() + start));
        self.bytes.extend(&other.bytes);
    }

    /// Takes the requests from this one on out of it.
    pub fn split_off(&mut self, request: usize) -> Self {
        let Some(start) = self.starts.get(request).copied() else { return Self::default() };
        let bytes = self.bytes.split_off(start);
        Self { bytes, starts: self.starts.split_off(request).into_iter().map(|at| at - start).collect() }
    }

    /// How many bytes it has.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// How many requests.
    pub fn count(&self) -> usize {
        self.starts.len()
    }
}

impl Netlink {
    /// How big a batch may be, if it would like to be this big: more than usual only for root of the host.
    pub fn room(&mut self, wanted: usize) -> Result<usize, NetlinkError> {
        let room = |socket| getsockopt(socket, sockopt::SndBuf).map_err(std::io::Error::from);
        let mut has = room(&self.socket)?;
        if has < wanted + RESERVE {
            // The kernel doubles what it is told. Without the right to more, there is as much as anybody may have.
            let half = (wanted + RESERVE).div_ceil(2);
            if setsockopt(&self.socket, sockopt::SndBufForce, &half).is_err() {
                let _ = setsockopt(&self.socket, sockopt::SndBuf, &half);
            }
            has = room(&self.socket)?;
        }
        Ok(has.saturating_sub(RESERVE))
    }

    /// Sends a batch. Faults are told in the order of the requests; without any, it was taken.
    ///
    /// The answer to request `answered` ends the conversation: the kernel answers in order, after it has looked at
    /// everything. If it did not even begin, the first request is at fault.
    pub fn batch(&mut self, batch: Batch, answered: usize) -> Result<Vec<Fault>, NetlinkError> {
        let Batch { mut bytes, starts } = batch;
        let (first, count) = (self.sequence.wrapping_add(1), starts.len());
        for (index, start) in starts.into_iter().enumerate() {
            self.sequence = self.sequence.wrapping_add(1);
            request::number(&mut bytes[start..], self.sequence, if index == answered { NLM_F_ACK } else { 0 });
        }
        self.send(&bytes, count)?;
        drop(bytes);
        let mut faults = Vec::new();
        loop {
            self.receive()?;
            if collect(&self.buffer, (first, count, answered), &mut faults)? {
                return Ok(faults);
            }
        }
    }
}

/// Appends the faults that a datagram reports of requests `first` (a sequence number) and those after it, `count` in all.
/// Returns whether the answer to request `answered`, or a refusal of the first one, ended the conversation.
pub(super) fn collect(
    datagram: &[u8],
    (first, count, answered): (u32, usize, usize),
    faults: &mut Vec<Fault>,
) -> Result<bool, NetlinkError> {
    for received in Messages(datagram) {
        let received = received?;
        let index = usize::try_from(received.sequence.wrapping_sub(first)).unwrap_or(usize::MAX);
        let Some(verdict) = received.verdict().filter(|_| index < count) else { continue };
        let failed = verdict.is_err();
        if let Err(error) = verdict {
            faults.push(Fault { index, offset: received.error_offset(), error });
        }
        if index == answered || (failed && index == 0) {
            return Ok(true);
        }
    }
    Ok(false)
}
