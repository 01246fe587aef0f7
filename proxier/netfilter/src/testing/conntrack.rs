//! A fake conntrack table. Clones share one state.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::Flow;
use crate::IpFamily;
use crate::kernel::{ConntrackTable, Deletions};

#[derive(Debug, Default)]
struct ConntrackState {
    flows: Vec<Flow>,
    passes: usize,
    unreadable: bool,
    refuses_deletes: bool,
}

/// A fake conntrack table, initially empty.
#[derive(Clone, Debug, Default)]
pub struct FakeConntrack(Arc<Mutex<ConntrackState>>);

impl FakeConntrack {
    fn state(&self) -> MutexGuard<'_, ConntrackState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an entry.
    pub fn add(&self, flow: Flow) {
        self.state().flows.push(flow);
    }

    /// The current entries.
    #[must_use]
    pub fn flows(&self) -> Vec<Flow> {
        self.state().flows.clone()
    }

    /// The number of passes over the table.
    #[must_use]
    pub fn passes(&self) -> usize {
        self.state().passes
    }

    /// Makes listing fail, or succeed again.
    pub fn set_unreadable(&self, unreadable: bool) {
        self.state().unreadable = unreadable;
    }

    /// Makes deleting fail, or succeed again.
    pub fn refuse_deletes(&self, refuses_deletes: bool) {
        self.state().refuses_deletes = refuses_deletes;
    }
}

impl ConntrackTable for FakeConntrack {
    fn delete(
        &mut self,
        family: IpFamily,
        protocol: u8,
        unwanted: &mut dyn FnMut(&Flow) -> bool,
    ) -> io::Result<Deletions> {
        let mut state = self.state();
        state.passes += 1;
        if state.unreadable {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let mut chosen = |flow: &Flow| {
            let matches = flow.protocol == protocol && IpFamily::of(&flow.original.source.ip()) == family;
            matches && unwanted(flow)
        };
        if state.refuses_deletes {
            let failed = state.flows.iter().filter(|flow| chosen(flow)).count();
            let reason = (failed > 0).then(|| io::ErrorKind::PermissionDenied.into());
            return Ok(Deletions { failed, reason, ..Deletions::default() });
        }
        let before = state.flows.len();
        state.flows.retain(|flow| !chosen(flow));
        Ok(Deletions { flows: before - state.flows.len(), ..Deletions::default() })
    }
}
