//! A conntrack table as a value.
//!
//! In: flows that a test puts there. Out: what is left of them, and how often anybody looked.
//! Must not know: whose flows they are. Clones share one state.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::Flow;
use crate::IpFamily;
use crate::kernel::{ConntrackTable, Deleted};

#[derive(Debug, Default)]
struct State {
    flows: Vec<Flow>,
    passes: usize,
    unreadable: bool,
    stubborn: bool,
}

/// A table without flows, until a test adds some.
#[derive(Clone, Debug, Default)]
pub struct FakeConntrack(Arc<Mutex<State>>);

impl FakeConntrack {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a flow.
    pub fn add(&self, flow: Flow) {
        self.state().flows.push(flow);
    }

    /// The flows that are there.
    #[must_use]
    pub fn flows(&self) -> Vec<Flow> {
        self.state().flows.clone()
    }

    /// How often the table was gone through.
    #[must_use]
    pub fn passes(&self) -> usize {
        self.state().passes
    }

    /// Whether listing fails from now on.
    pub fn set_unreadable(&self, unreadable: bool) {
        self.state().unreadable = unreadable;
    }

    /// Whether deleting fails from now on.
    pub fn set_stubborn(&self, stubborn: bool) {
        self.state().stubborn = stubborn;
    }
}

impl ConntrackTable for FakeConntrack {
    fn delete(
        &mut self,
        family: IpFamily,
        protocol: u8,
        unwanted: &mut dyn FnMut(&Flow) -> bool,
    ) -> io::Result<Deleted> {
        let mut state = self.state();
        state.passes += 1;
        if state.unreadable {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let mut chosen = |flow: &Flow| {
            let asked = flow.protocol == protocol && IpFamily::of(&flow.original.source.ip()) == family;
            asked && unwanted(flow)
        };
        if state.stubborn {
            let failed = state.flows.iter().filter(|flow| chosen(flow)).count();
            let reason = (failed > 0).then(|| io::ErrorKind::PermissionDenied.into());
            return Ok(Deleted { failed, reason, ..Deleted::default() });
        }
        let before = state.flows.len();
        state.flows.retain(|flow| !chosen(flow));
        Ok(Deleted { flows: before - state.flows.len(), ..Deleted::default() })
    }
}
