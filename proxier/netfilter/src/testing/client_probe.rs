//! A fake probe of TCP clients. Clones share one state.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use crate::kernel::ClientProbe;
use crate::{Flow, IpFamily};

/// A probe that records the flows of probed clients.
#[derive(Clone, Debug, Default)]
pub struct FakeClientProbe(Arc<Mutex<Vec<Flow>>>);

impl FakeClientProbe {
    /// The flows whose clients were probed, in order.
    #[must_use]
    pub fn probed(&self) -> Vec<Flow> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ClientProbe for FakeClientProbe {
    fn probe(&mut self, _: IpFamily, flows: &[Flow]) -> io::Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(flows);
        Ok(())
    }
}
