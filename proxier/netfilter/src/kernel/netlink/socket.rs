//! A netlink socket: requests with acknowledgement, and dumps.
//!
//! A socket belongs to the network namespace of the thread that opens it.

use std::io;

use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use super::receive::{Messages, Received};
use super::responses::Responses;
use super::traffic;
use super::{BATCH, BATCH_BYTES, Dump, NLM_F_ACK, NLM_F_DUMP, NetlinkError, Request};

/// The number of attempts before an incomplete dump is accepted; kube-proxy makes as many.
const DUMP_TRIES: u32 = 5;

/// The receive buffer. The kernel sends dump messages of up to 32 KiB if the reader has room.
const BUFFER: usize = 64 * 1024;

/// The timeout for an answer. The kernel answers within the system call, so a missing answer was lost.
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
    /// Opens a socket of a protocol such as `NETLINK_NETFILTER`.
    pub fn open(protocol: isize) -> Result<Self, NetlinkError> {
        Ok(Self { protocol, socket: socket(protocol)?, sequence: 0, buffer: Vec::with_capacity(BUFFER) })
    }

    /// Sends a request and waits for its acknowledgement.
    pub fn request(&mut self, request: &Request) -> Result<(), NetlinkError> {
        let mut outcome = Ok(());
        self.request_all(std::slice::from_ref(request), |_, error| outcome = Err(error))?;
        outcome
    }

    /// Sends up to a hundred requests in one datagram and passes failures to `failed` by index.
    ///
    /// Only the last request is acknowledged, because acknowledgements of all could overflow the receive buffer.
    /// Failures are reported for each request.
    pub fn request_all(
        &mut self,
        requests: &[Request],
        failed: impl FnMut(usize, NetlinkError),
    ) -> Result<(), NetlinkError> {
        self.query_all(requests, &mut |_| (), failed)
    }

    /// As [`Netlink::request_all`], and passes answers to `each`; at most a hundred.
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
                // Answers to an earlier request have an index beyond the last.
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

    /// Sends any number of requests in order, in few datagrams, and passes failures to `failed` by index.
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

    /// Sends a request and passes its answers to `each` until the acknowledgement.
    pub fn query(
        &mut self,
        request: &Request,
        each: &mut dyn FnMut(&Received<'_>) -> Result<(), NetlinkError>,
    ) -> Result<(), NetlinkError> {
        self.exchange(request, NLM_F_ACK, each).map(|_| ())
    }

    /// Dumps a table and passes each entry to `each`.
    ///
    /// An interrupted dump is restarted, so entries may be passed again.
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
            // The kernel may still be dumping, and allows one dump at a time on a socket.
            self.socket = socket(self.protocol)?;
        }
        Ok(Dump::Interrupted)
    }

    /// As [`Netlink::dump`], without restarting: no entry is passed twice.
    pub fn dump_once(
        &mut self,
        request: &Request,
        each: &mut dyn FnMut(&Received<'_>) -> Result<(), NetlinkError>,
    ) -> Result<Dump, NetlinkError> {
        self.exchange(request, NLM_F_DUMP, each)
    }

    /// As [`Netlink::dump_once`], with all entries in memory before the first is passed.
    ///
    /// The kernel fills a datagram when the one before it is read, and any change between two of them interrupts the dump:
    /// the time of `each` does not count.
    pub fn dump_collected(
        &mut self,
        request: &Request,
        each: &mut dyn FnMut(&Received<'_>) -> Result<(), NetlinkError>,
    ) -> Result<Dump, NetlinkError> {
        self.ask(request, NLM_F_DUMP)?;
        let (mut collected, mut answers) = (Vec::new(), Responses::new(self.sequence, false));
        let end = loop {
            self.receive()?;
            let end = answers.take(&self.buffer, &mut |_| Ok(()))?;
            collected.push(self.buffer.clone());
            if let Some(end) = end {
                break end;
            }
        };
        let mut answers = Responses::new(self.sequence, false);
        for datagram in &collected {
            answers.take(datagram, each)?;
        }
        Ok(end)
    }

    /// As [`Netlink::dump`], but fails if the dump stays incomplete.
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

    /// Sends a request and passes its answers to `each` until the dump ends or the acknowledgement arrives.
    fn exchange(
        &mut self,
        request: &Request,
        flags: u16,
        each: &mut dyn FnMut(&Received<'_>) -> Result<(), NetlinkError>,
    ) -> Result<Dump, NetlinkError> {
        self.ask(request, flags)?;
        let mut answers = Responses::new(self.sequence, flags == NLM_F_ACK);
        loop {
            self.receive()?;
            if let Some(end) = answers.take(&self.buffer, each)? {
                return Ok(end);
            }
        }
    }

    /// Sends a request with the next sequence number.
    fn ask(&mut self, request: &Request, flags: u16) -> Result<(), NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        request.write_to(&mut bytes, self.sequence, flags)?;
        self.send(&bytes, 1)
    }

    pub(super) fn send(&self, bytes: &[u8], requests: usize) -> Result<(), NetlinkError> {
        let sent = uninterrupted(|| self.socket.send(bytes, 0))?;
        traffic::sent(requests, bytes.len());
        if sent == bytes.len() { Ok(()) } else { Err(NetlinkError::TooLong) }
    }

    /// Receives the next datagram into the buffer.
    pub(super) fn receive(&mut self) -> Result<(), NetlinkError> {
        self.buffer.clear();
        // With MSG_TRUNC, recv returns the datagram's length even if it exceeds the buffer.
        let length = uninterrupted(|| self.socket.recv(&mut self.buffer, libc::MSG_TRUNC))?;
        traffic::received(length);
        if length == self.buffer.len() && length > 0 { Ok(()) } else { Err(NetlinkError::Malformed) }
    }

    /// Receives the next datagram into the buffer if one is queued; returns whether there was one.
    pub(super) fn receive_queued(&mut self) -> Result<bool, NetlinkError> {
        self.buffer.clear();
        match self.socket.recv(&mut self.buffer, libc::MSG_TRUNC | libc::MSG_DONTWAIT) {
            Ok(length) if length == self.buffer.len() && length > 0 => {
                traffic::received(length);
                Ok(true)
            }
            Ok(_) => Err(NetlinkError::Malformed),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

fn socket(protocol: isize) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &ANSWER_TIMEOUT)?;
    // Errors carry the kernel's message and no copy of the request. Kernels before 4.12 support neither.
    let _ = (socket.set_ext_ack(true), socket.set_cap_ack(true));
    // rtnetlink filters dumps by the request. Kernels before 4.20 dump everything.
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
