//! Batches of requests that the kernel applies atomically.
//!
//! The first and last request of a batch mark its begin and end; between them are the requests to apply.

use nix::sys::socket::{getsockopt, setsockopt, sockopt};

use super::receive::{Messages, Received};
use super::{NLM_F_ACK, Netlink, NetlinkError, Request, request};

/// The bytes of a socket's send buffer that the kernel reserves.
const RESERVE: usize = 32;
/// The receive buffer that one error takes: the kernel counts the memory of its message, not the message's bytes.
const ERROR_BYTES: usize = 2048;
/// The largest receive buffer for errors. It takes no memory while it is empty.
const ERRORS_MAX: usize = 64 << 20;

/// An error of one request in a batch.
#[derive(Debug)]
pub struct Fault {
    /// The index of the request.
    pub index: usize,
    /// The offset of the offending attribute in the request, if the kernel reports it.
    pub offset: Option<usize>,
    /// The error.
    pub error: NetlinkError,
}

/// Encoded requests.
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

    /// Appends the requests of another batch.
    pub fn append(&mut self, other: &Self) {
        self.starts.extend(other.starts.iter().map(|start| self.bytes.len() + start));
        self.bytes.extend(&other.bytes);
    }

    /// Splits off the requests from the given index on.
    pub fn split_off(&mut self, request: usize) -> Self {
        let Some(start) = self.starts.get(request).copied() else { return Self::default() };
        let bytes = self.bytes.split_off(start);
        Self { bytes, starts: self.starts.split_off(request).into_iter().map(|at| at - start).collect() }
    }

    /// The size in bytes.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// The number of requests.
    pub fn count(&self) -> usize {
        self.starts.len()
    }

    /// The number of requests, from the first on, that have at most `bytes` in total.
    pub fn fitting(&self, bytes: usize) -> usize {
        let ends = self.starts.iter().skip(1).copied().chain([self.bytes.len()]);
        ends.take_while(|end| *end <= bytes).count().min(self.count())
    }
}

impl Netlink {
    /// The largest possible batch in bytes, after growing the send buffer to `wanted` if permitted.
    ///
    /// Growing it beyond `net.core.wmem_max` requires `CAP_NET_ADMIN` in the initial user namespace.
    pub fn room(&mut self, wanted: usize) -> Result<usize, NetlinkError> {
        let room = |socket| getsockopt(socket, sockopt::SndBuf).map_err(std::io::Error::from);
        let mut has = room(&self.socket)?;
        if has < wanted + RESERVE {
            // The kernel doubles the requested size. Without CAP_NET_ADMIN, wmem_max is the limit.
            let half = (wanted + RESERVE).div_ceil(2);
            if setsockopt(&self.socket, sockopt::SndBufForce, &half).is_err() {
                let _ = setsockopt(&self.socket, sockopt::SndBuf, &half);
            }
            has = room(&self.socket)?;
        }
        Ok(has.saturating_sub(RESERVE))
    }

    /// Grows the receive buffer, so that an error of each of `requests` fits, if permitted.
    fn reserve_errors(&mut self, requests: usize) -> Result<(), NetlinkError> {
        let wanted = requests.saturating_mul(ERROR_BYTES).min(ERRORS_MAX);
        if getsockopt(&self.socket, sockopt::RcvBuf).map_err(std::io::Error::from)? < wanted {
            // The kernel doubles the requested size. Without CAP_NET_ADMIN, rmem_max is the limit.
            if setsockopt(&self.socket, sockopt::RcvBufForce, &(wanted / 2)).is_err() {
                let _ = setsockopt(&self.socket, sockopt::RcvBuf, &(wanted / 2));
            }
        }
        Ok(())
    }

    /// Sends a batch and returns its errors in request order; an empty list means success.
    ///
    /// The answer to request `answered` is the last one, because the kernel answers in order after it has validated
    /// the whole batch. An error of the batch begin is reported for request 0. Of errors that exceed a receive buffer
    /// that must not grow, the first ones are returned. Passes other answers to `each`, with the request's index.
    pub fn batch(
        &mut self,
        batch: Batch,
        answered: usize,
        each: &mut dyn FnMut(usize, &Received<'_>),
    ) -> Result<Vec<Fault>, NetlinkError> {
        let Batch { mut bytes, starts } = batch;
        let (first, count) = (self.sequence.wrapping_add(1), starts.len());
        for (index, start) in starts.into_iter().enumerate() {
            self.sequence = self.sequence.wrapping_add(1);
            request::number(&mut bytes[start..], self.sequence, if index == answered { NLM_F_ACK } else { 0 });
        }
        self.reserve_errors(count)?;
        self.send(&bytes, count)?;
        drop(bytes);
        let mut faults = Vec::new();
        loop {
            match self.receive() {
                Err(error) if error.errno() == Some(libc::ENOBUFS) => {
                    self.drain((first, count, answered), &mut faults, each)?;
                    // Errors were lost, so the batch was refused, whatever is known of it.
                    return if faults.is_empty() { Err(error) } else { Ok(faults) };
                }
                received => received?,
            }
            if collect(&self.buffer, (first, count, answered), &mut faults, each)? {
                return Ok(faults);
            }
        }
    }

    /// Collects the errors that the receive buffer had room for, after others were lost.
    fn drain(
        &mut self,
        range: (u32, usize, usize),
        faults: &mut Vec<Fault>,
        each: &mut dyn FnMut(usize, &Received<'_>),
    ) -> Result<(), NetlinkError> {
        while self.receive_queued()? {
            if collect(&self.buffer, range, faults, each)? {
                break;
            }
        }
        Ok(())
    }
}

/// Collects the errors in a datagram for `count` requests from sequence number `first` on.
///
/// Returns whether the datagram contains the last answer: that of request `answered`, or an error of request 0.
pub(super) fn collect(
    datagram: &[u8],
    (first, count, answered): (u32, usize, usize),
    faults: &mut Vec<Fault>,
    each: &mut dyn FnMut(usize, &Received<'_>),
) -> Result<bool, NetlinkError> {
    for received in Messages(datagram) {
        let received = received?;
        let index = usize::try_from(received.sequence.wrapping_sub(first)).unwrap_or(usize::MAX);
        if index >= count {
            continue;
        }
        let Some(verdict) = received.verdict() else {
            each(index, &received);
            continue;
        };
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
