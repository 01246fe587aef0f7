//! A conversation with the kernel.
//!
//! In: requests. Out: their acknowledgements, or the messages of a dump, as they come.
//! Must not know: what any message means. A socket belongs to the network namespace of the thread that opens it.

use std::io;

use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use super::receive::{Messages, Received};
use super::responses::Responses;
use super::traffic;
use super::{BATCH, BATCH_BYTES, Dump, NLM_F_ACK, NLM_F_DUMP, NetlinkError, Request};

/// How often a dump is begun before an incomplete one has to do; kube-proxy tries as often.
const DUMP_TRIES: u32 = 5;

/// The kernel fills messages of up to 32 KiB for a dump if the reader has room for them.
const BUFFER: usize = 64 * 1024;

/// The kernel answers within the system call, so waiting means that an answer was lost.
const ANSWER_TIMEOUT: TimeVal = TimeVal::new(5, 0);

/// A netlink socket.
#[derive(Debug)]
pub struct Netlink {
    protocol: isize,
    pub(super) socket: Socket,
    pub(super) sequence: u32,
    pub(super) buffer: Vec<u8>,
}

impl Netlink {
    /// A socket of this protocol (`NETLINK_NETFILTER`, ...).
    pub fn open(protocol: isize) -> Result<Self, NetlinkError> {
        Ok(Self { protocol, socket: socket(protocol)?, sequence: 0, buffer: Vec::with_capacity(BUFFER) })
    }

    /// Sends a request and waits for its acknowledgement.
    pub fn request(&mut self, request: &Request) -> Result<(), NetlinkError> {
        let mut outcome = Ok(());
        self.request_all(std::slice::from_ref(request), |_, error| outcome = Err(error))?;
        outcome
    }

    /// Sends requests as one; those that fail are told to `failed`, by index.
    ///
    /// Only the last one is acknowledged, because so many acknowledgements could overrun the socket; failures of all
    /// are told. So there should not be more than a hundred.
    pub fn request_all(
        &mut self,
        requests: &[Request],
        failed: impl FnMut(usize, NetlinkError),
    ) -> Result<(), NetlinkError> {
        self.query_all(requests, &mut |_| (), failed)
    }

    /// The same, and hands what is answered to `each`. There should not be more than a hundred answers.
    pub fn query_all(
        &mut self,
        requests: &[Request],
        each: &mut dyn FnMut(&Received<'_>),
        mut failed: impl FnMut(usize, NetlinkError),
    ) -> Result<(), NetlinkError> {
        let Some(last) = requests.len().checked_sub(1) else { return Ok(()) };
        let mut bytes = Vec::new();
        let first = self.sequence.wrapping_add(1);
        for (index, request) in requests.iter().enumerate() {
            self.sequence = self.sequence.wrapping_add(1);
            request.write_to(&mut bytes, self.sequence, if index == last { NLM_F_ACK } else { 0 })?;
        }
        self.send(&bytes, requests.len())?;
        loop {
            self.receive()?;
            for received in Messages(&self.buffer) {
                let received = received?;
                // What is left of an earlier conversation has an index beyond the last.
                let index = usize::try_from(received.sequence.wrapping_sub(first)).unwrap_or(usize::MAX);
                match received.verdict() {
                    _ if index > last => continue,
                    None => {
                        each(&received);
                        continue;
                    }
                    Some(Err(error)) => failed(index, error),
                    Some(Ok(())) => {}
                }
                if index == last {
                    return Ok(());
                }
            }
        }
    }

    /// Sends any number of requests, in this order, in as few datagrams as may be; those that fail are told to
    /// `failed`, by index.
    pub fn request_in_batches(
        &mut self,
        requests: impl IntoIterator<Item = Request>,
        mut failed: impl FnMut(usize, NetlinkError),
    ) -> Result<(), NetlinkError> {
        let (mut batch, mut bytes, mut done) = (Vec::with_capacity(BATCH), 0, 0);
        for request in requests {
            bytes += request.size();
            batch.push(request);
            if batch.len() == BATCH || bytes >= BATCH_BYTES {
                self.request_all(&batch, |index, error| failed(done + index, error))?;
                (bytes, done) = (0, done + batch.len());
                batch.clear();
            }
        }
        self.request_all(&batch, |index, error| failed(done + index, error))
    }

    /// Sends a request and hands what is answered to `each`, until it is acknowledged.
    pub fn query(
        &mut self,
        request: &Request,
        each: &mut dyn FnMut(&Received<'_>) -> Result<(), NetlinkError>,
    ) -> Result<(), NetlinkError> {
        self.exchange(request, NLM_F_ACK, each).map(|_| ())
    }

    /// Asks for all entries and hands each to `each`. A try that was interrupted is repeated from the beginning, so
    /// entries may come again.
    pub fn dump(
        &mut self,
        request: &Request,
        each: &mut dyn FnMut(&Received<'_>) -> Result<(), NetlinkError>,
    ) -> Result<Dump, NetlinkError> {
        for _ in 0..DUMP_TRIES {
            match self.exchange(request, NLM_F_DUMP, each) {
                Ok(Dump::Complete) => return Ok(Dump::Complete),
                Ok(Dump::Interrupted) => {}
                Err(error) if matches!(error.errno(), Some(libc::ENOBUFS | libc::EINTR)) => {}
                Err(error) => return Err(error),
            }
            // The kernel may still be at it, and does one dump at a time for a socket.
            self.socket = socket(self.protocol)?;
        }
        Ok(Dump::Interrupted)
    }

    /// The same, without trying again: nothing is handed over twice.
    pub fn dump_once(
        &mut self,
        request: &Request,
        each: &mut dyn FnMut(&Received<'_>) -> Result<(), NetlinkError>,
    ) -> Result<Dump, NetlinkError> {
        self.exchange(request, NLM_F_DUMP, each)
    }

    /// As `dump`, for who needs all entries.
    pub fn dump_all(
        &mut self,
        request: &Request,
        each: &mut dyn FnMut(&Received<'_>) -> Result<(), NetlinkError>,
    ) -> Result<(), NetlinkError> {
        match self.dump(request, each)? {
            Dump::Complete => Ok(()),
            Dump::Interrupted => Err(NetlinkError::Interrupted),
        }
    }

    /// Sends a request and hands what is answered to `each`, until the dump ends or the request is acknowledged.
    fn exchange(
        &mut self,
        request: &Request,
        flags: u16,
        each: &mut dyn FnMut(&Received<'_>) -> Result<(), NetlinkError>,
    ) -> Result<Dump, NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        request.write_to(&mut bytes, self.sequence, flags)?;
        self.send(&bytes, 1)?;
        let mut answers = Responses::new(self.sequence, flags == NLM_F_ACK);
        loop {
            self.receive()?;
            if let Some(end) = answers.take(&self.buffer, each)? {
                return Ok(end);
            }
        }
    }

    pub(super) fn send(&self, bytes: &[u8], requests: usize) -> Result<(), NetlinkError> {
        let sent = uninterrupted(|| self.socket.send(bytes, 0))?;
        traffic::sent(requests, bytes.len());
        if sent == bytes.len() { Ok(()) } else { Err(NetlinkError::TooLong) }
    }

    /// Fills the buffer with the next datagram.
    pub(super) fn receive(&mut self) -> Result<(), NetlinkError> {
        self.buffer.clear();
        // With MSG_TRUNC the length is the datagram's own, even if the buffer does not hold it.
        let length = uninterrupted(|| self.socket.recv(&mut self.buffer, libc::MSG_TRUNC))?;
        traffic::received(length);
        if length == self.buffer.len() && length > 0 { Ok(()) } else { Err(NetlinkError::Malformed) }
    }
}

fn socket(protocol: isize) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &ANSWER_TIMEOUT)?;
    // Errors come with the kernel's words and without a copy of the request. Kernels before 4.12 know neither.
    let _ = (socket.set_ext_ack(true), socket.set_cap_ack(true));
    // rtnetlink lists only what is asked for. Kernels before 4.20 list all.
    let _ = socket.set_netlink_get_strict_chk(true);
    Ok(socket)
}

fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let waited = ANSWER_TIMEOUT.num_seconds();
                let text = format!("the kernel has not answered a netlink request for {waited} s");
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            result => return result,
        }
    }
}
