//! Multicast notifications.

use std::io;

use netlink_sys::Socket;

use super::receive::{Messages, Received};
use super::{NetlinkError, traffic};

/// The receive buffer. Notifications are small; a larger one counts as lost.
const BUFFER: usize = 32 * 1024;

/// The number of datagrams that one call reads; the rest is left for the next call.
const DATAGRAMS: usize = 4096;

/// Whether all notifications since the last call were passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// All were passed on.
    All,
    /// Some were lost: the receive buffer overflowed (`ENOBUFS`) or a message was malformed.
    SomeLost,
}

/// A socket that is a member of multicast groups, in the network namespace of the thread that opens it.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    buffer: Vec<u8>,
}

impl Listener {
    /// Joins groups, given by number (`RTNLGRP_…`).
    pub fn open(protocol: isize, groups: &[u32]) -> Result<Self, NetlinkError> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.set_non_blocking(true)?;
        groups.iter().try_for_each(|group| socket.add_membership(*group))?;
        Ok(Self { socket, buffer: Vec::with_capacity(BUFFER) })
    }

    /// Passes all pending notifications to `each`, without blocking.
    pub fn drain(&mut self, each: &mut dyn FnMut(&Received<'_>)) -> Result<Drained, NetlinkError> {
        let mut drained = Drained::All;
        for _ in 0..DATAGRAMS {
            self.buffer.clear();
            let length = match self.socket.recv(&mut self.buffer, libc::MSG_TRUNC) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    drained = Drained::SomeLost;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            traffic::received(length);
            if length != self.buffer.len() {
                drained = Drained::SomeLost;
            }
            if hand_over(&self.buffer, each) == Drained::SomeLost {
                drained = Drained::SomeLost;
            }
        }
        Ok(drained)
    }
}

/// Passes the notifications of one datagram to `each`; a malformed one counts as lost.
pub(super) fn hand_over(datagram: &[u8], each: &mut dyn FnMut(&Received<'_>)) -> Drained {
    let mut drained = Drained::All;
    for received in Messages(datagram) {
        match received {
            Ok(received) => each(&received),
            Err(_) => drained = Drained::SomeLost,
        }
    }
    drained
}
