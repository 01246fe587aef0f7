//! How much netlink a thread has talked.
//!
//! In: what is sent and received. Out: sums, for benches and tests of what a change costs.
//! Must not know: what any message means.

use std::cell::Cell;

/// What a thread has sent and received since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Requests sent.
    pub requests: usize,
    /// Datagrams they were sent in: as many system calls.
    pub datagrams: usize,
    /// The bytes of those.
    pub bytes: usize,
    /// Datagrams received.
    pub answers: usize,
    /// The bytes of those.
    pub answer_bytes: usize,
}

thread_local! {
    static TRAFFIC: Cell<Traffic> = const { Cell::new(Traffic { requests: 0, datagrams: 0, bytes: 0, answers: 0, answer_bytes: 0 }) };
}

/// What the calling thread has sent and received over netlink since it began.
#[must_use]
pub fn traffic() -> Traffic {
    TRAFFIC.get()
}

impl Traffic {
    /// What came after an earlier look.
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
