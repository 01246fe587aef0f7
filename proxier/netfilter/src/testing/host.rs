//! A host as a value: sysctls, addresses, counters.
//!
//! In: what a test says of it. Out: what a mode may ask, and what the mode did to it.
//! Must not know: modes. Clones share one state.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::IpFamily;
use crate::kernel::Host;

#[derive(Debug, Default)]
struct HostState {
    sysctls: BTreeMap<String, i64>,
    addresses: Vec<IpAddr>,
    refused: BTreeMap<String, io::ErrorKind>,
    hidden: BTreeSet<String>,
    address_error: Option<io::ErrorKind>,
    counters: Option<BTreeSet<String>>,
    conntrack_is_a_module: bool,
}

/// A host without addresses, sysctls and nfacct, until a test adds them.
#[derive(Clone, Debug, Default)]
pub struct FakeHost(Arc<Mutex<HostState>>);

impl FakeHost {
    fn state(&self) -> MutexGuard<'_, HostState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives it addresses, in place of those it had.
    pub fn set_addresses(&self, addresses: impl IntoIterator<Item = IpAddr>) {
        self.state().addresses = addresses.into_iter().collect();
    }

    /// From now on a sysctl cannot be set, for this reason.
    pub fn refuse(&self, sysctl: &str, reason: io::ErrorKind) {
        self.state().refused.insert(sysctl.to_owned(), reason);
    }

    /// From now on a sysctl cannot be read, though it has a value.
    pub fn hide(&self, sysctl: &str) {
        self.state().hidden.insert(sysctl.to_owned());
    }

    /// Ends what [`FakeHost::hide`] began.
    pub fn show(&self, sysctl: &str) {
        self.state().hidden.remove(sysctl);
    }

    /// From now on addresses cannot be read, for this reason; `None` ends that.
    pub fn refuse_addresses(&self, reason: Option<io::ErrorKind>) {
        self.state().address_error = reason;
    }

    /// From now on the kernel knows nfacct.
    pub fn allow_counters(&self) {
        self.state().counters.get_or_insert_default();
    }

    /// From now on no counter can be made, nor found to be there.
    pub fn refuse_counters(&self) {
        self.state().counters = None;
    }

    /// From now on its conntrack is a module: sysctls that were refused as not found are there, and 0, once it is loaded.
    pub fn make_conntrack_a_module(&self) {
        self.state().conntrack_is_a_module = true;
    }

    /// The counters that were made.
    #[must_use]
    pub fn counters(&self) -> BTreeSet<String> {
        self.state().counters.clone().unwrap_or_default()
    }
}

impl Host for FakeHost {
    fn sysctl(&mut self, name: &str) -> io::Result<i64> {
        let state = self.state();
        if state.hidden.contains(name) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        state.sysctls.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn set_sysctl(&mut self, name: &str, value: i64) -> io::Result<()> {
        let mut state = self.state();
        if state.sysctls.get(name) != Some(&value) {
            if let Some(reason) = state.refused.get(name) {
                return Err((*reason).into());
            }
            state.sysctls.insert(name.to_owned(), value);
        }
        Ok(())
    }

    fn addresses(&mut self, family: IpFamily) -> io::Result<Vec<IpAddr>> {
        let state = self.state();
        if let Some(reason) = state.address_error {
            return Err(reason.into());
        }
        Ok(state.addresses.iter().copied().filter(|ip| IpFamily::of(ip) == family).collect())
    }

    fn kernel_version(&mut self) -> Option<(u32, u32)> {
        Some((6, 18))
    }

    fn ensure_counter(&mut self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        let counters = state.counters.as_mut().ok_or_else(|| io::Error::other("this host has no nfacct"))?;
        counters.insert(name.to_owned());
        Ok(())
    }

    fn load_conntrack(&mut self) {
        let mut state = self.state();
        if state.conntrack_is_a_module {
            let HostState { refused, sysctls, .. } = &mut *state;
            for (name, _) in refused.extract_if(.., |_, reason| *reason == io::ErrorKind::NotFound) {
                sysctls.insert(name, 0);
            }
        }
    }
}
