//! News about addresses that a test makes. Clones share one state.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::kernel::AddressWatch;

/// A source of news; it has none until a test makes some.
#[derive(Clone, Debug, Default)]
pub struct FakeAddressWatch(Arc<AtomicBool>);

impl FakeAddressWatch {
    /// The next question is answered with yes.
    pub fn change(&self) {
        self.0.store(true, Ordering::Release);
    }
}

impl AddressWatch for FakeAddressWatch {
    fn changed(&mut self, _now: Instant) -> bool {
        self.0.swap(false, Ordering::AcqRel)
    }
}
