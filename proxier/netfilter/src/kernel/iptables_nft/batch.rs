//! A batch of requests about one table, each with the line of the [`Restore`](crate::Restore) that it is about.

use super::known::PendingEdit;
use crate::kernel::netlink::{self, NetlinkError, Request};
use crate::kernel::nftables::uapi::*;

/// The size of the end message, rounded up.
const END_BYTES: usize = 64;

/// A batch of requests, each with its line.
pub(super) struct Batch {
    pub requests: netlink::Batch,
    lines: Vec<usize>,
    /// Lines that cannot be sent, with the reason.
    pub refused: Vec<(usize, String)>,
    /// The generation at which the kernel must be.
    pub generation: Option<u32>,
    /// The first of the requests that must stay in one batch.
    whole_from: Option<usize>,
    /// Whether the first request creates the table.
    has_table: bool,
    /// Whether requests refer to rules by their handles.
    pub uses_handles: bool,
    /// The chains that are edited, as this batch leaves them.
    pub edits: Vec<PendingEdit>,
}

impl Batch {
    /// A batch with its begin message only. The kernel refuses it with `ERESTART` after the generation.
    pub fn new(generation: Option<u32>) -> Result<Self, NetlinkError> {
        let mut begin = marker(NFNL_MSG_BATCH_BEGIN);
        if let Some(generation) = generation {
            begin.attribute(NFNL_BATCH_GENID, &generation.to_be_bytes());
        }
        let mut requests = netlink::Batch::default();
        requests.push(&begin)?;
        Ok(Self {
            requests,
            lines: Vec::new(),
            refused: Vec::new(),
            generation,
            whole_from: None,
            has_table: true,
            uses_handles: false,
            edits: Vec::new(),
        })
    }

    /// Completes the batch; without it, the kernel only validates.
    pub fn end(&mut self) -> Result<(), NetlinkError> {
        self.requests.push(&marker(NFNL_MSG_BATCH_END))
    }

    /// The line that a request is about; `None` for the batch itself.
    pub fn line(&self, request: usize) -> Option<usize> {
        self.lines.get(request.checked_sub(1)?).copied()
    }

    /// The first line of all.
    pub fn first_line(&self) -> Option<usize> {
        self.lines.first().copied()
    }

    /// Whether a request creates the table, without which all others are refused.
    pub fn creates_table(&self, request: usize) -> bool {
        self.has_table && request == 1
    }

    pub fn push(&mut self, request: &Request, line: usize) -> Result<(), NetlinkError> {
        self.lines.push(line);
        self.requests.push(request)
    }

    /// Keeps all requests from here on in one batch.
    pub fn keep_whole(&mut self) {
        self.whole_from = Some(self.requests.count());
    }

    /// The size with the end message.
    pub fn size(&self) -> usize {
        self.requests.size() + END_BYTES
    }

    /// Splits off what exceeds `room` bytes, as a batch for the generation after this one's.
    ///
    /// Returns `None` if everything fits.
    ///
    /// # Errors
    /// The size of the requests that must stay together and do not fit.
    pub fn split_off(&mut self, room: usize) -> Result<Option<Self>, usize> {
        if self.size() <= room {
            return Ok(None);
        }
        let whole_from = self.whole_from.unwrap_or(usize::MAX);
        let at = self.requests.fitting(room.saturating_sub(END_BYTES)).min(whole_from);
        let too_big = self.size();
        if at <= 1 {
            return Err(too_big);
        }
        let mut rest = Self::new(self.generation.map(|known| known.wrapping_add(1))).map_err(|_| too_big)?;
        rest.requests.append(&self.requests.split_off(at));
        rest.lines = self.lines.split_off(at - 1);
        rest.whole_from = self.whole_from.map(|from| from - at + 1);
        (rest.has_table, rest.uses_handles) = (false, self.uses_handles);
        Ok(Some(rest))
    }
}

fn marker(kind: u16) -> Request {
    Request::new(kind, 0, &[0, 0, 0, NFNL_SUBSYS_NFTABLES])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(requests: usize, whole_from: usize) -> Batch {
        let mut batch = Batch::new(Some(7)).expect("small");
        for line in 0..requests {
            if line == whole_from {
                batch.keep_whole();
            }
            batch.push(&Request::new(1, 0, &[0; 84]), line).expect("small");
        }
        batch
    }

    fn parts(mut batch: Batch, room: usize) -> Result<Vec<Vec<usize>>, usize> {
        let (mut parts, mut generation) = (Vec::new(), 7);
        loop {
            let rest = batch.split_off(room)?;
            assert_eq!(batch.generation, Some(generation));
            assert!(batch.size() <= room);
            assert_eq!(batch.requests.count() - 1, batch.lines.len());
            parts.push(batch.lines);
            let Some(rest) = rest else { return Ok(parts) };
            (batch, generation) = (rest, generation + 1);
        }
    }

    #[test]
    fn batch_is_cut_where_it_exceeds_the_room_and_not_where_it_must_stay_whole() {
        // The begin and end messages take 28 and 64 bytes, each request 100.
        assert_eq!(parts(batch(5, 9), 600), Ok(vec![vec![0, 1, 2, 3, 4]]));
        assert_eq!(parts(batch(5, 9), 300), Ok(vec![vec![0, 1], vec![2, 3], vec![4]]));
        assert_eq!(parts(batch(5, 3), 300), Ok(vec![vec![0, 1], vec![2], vec![3, 4]]));
        assert_eq!(parts(batch(5, 2), 300), Err(392), "three do not fit");
        assert_eq!(parts(batch(1, 9), 100), Err(192));
    }
}
