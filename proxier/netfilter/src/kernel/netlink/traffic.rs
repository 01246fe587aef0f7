//! Netlink traffic counters of each thread, to measure the cost of a change.

use std::cell::Cell;

/// Requests and bytes that a thread sent and received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Requests sent.
    pub requests: usize,
    /// Datagrams sent, one system call each.
    pub datagrams: usize,
    /// Bytes sent.
    pub bytes: usize,
    /// Datagrams received.
    pub answers: usize,
    /// Bytes received.
    pub answer_bytes: usize,
}

thread_local! {
    static TRAFFIC: Cell<Traffic> = const { Cell::new(Traffic { requests: 0, datagrams: 0, bytes: 0, answers: 0, answer_bytes: 0 }) };
}

/// The traffic of the calling thread since its start.
#[must_use]
pub fn traffic() -> Traffic {
    TRAFFIC.get()
}

impl Traffic {
    /// The traffic since an earlier reading.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            requests: self.requests - earlier.requests,
            datagrams: self.datagrams - earlier.datagrams,
            bytes: self.bytes - earlier.bytes,
            answers: self.answers - earlier.answers,
            answer_bytes: self.answer_bytes - earlier.answer_bytes,
        }
    }
}

pub(super) fn sent(requests: usize, bytes: usize) {
    let now = TRAFFIC.get();
    TRAFFIC.set(Traffic {
        requests: now.requests + requests,
        datagrams: now.datagrams + 1,
        bytes: now.bytes + bytes,
        ..now
    });
}

pub(super) fn received(bytes: usize) {
    let now = TRAFFIC.get();
    TRAFFIC.set(Traffic { answers: now.answers + 1, answer_bytes: now.answer_bytes + bytes, ..now });
}
