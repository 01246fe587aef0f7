//! A fake source of address notifications. Clones share one state.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::kernel::AddressWatch;

/// A source without notifications until [`FakeAddressWatch::change`] is called.
#[derive(Clone, Debug, Default)]
pub struct FakeAddressWatch(Arc<AtomicBool>);

impl FakeAddressWatch {
    /// Makes the next call of `changed` return true.
    pub fn change(&self) {
        self.0.store(true, Ordering::Release);
    }
}

impl AddressWatch for FakeAddressWatch {
    fn changed(&mut self, _now: Instant) -> bool {
        self.0.swap(false, Ordering::AcqRel)
    }
}
