//! A fake host: sysctls, addresses, nfacct counters. Clones share one state.

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

/// A fake host, initially without addresses, sysctls and nfacct.
#[derive(Clone, Debug, Default)]
pub struct FakeHost(Arc<Mutex<HostState>>);

impl FakeHost {
    fn state(&self) -> MutexGuard<'_, HostState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the addresses.
    pub fn set_addresses(&self, addresses: impl IntoIterator<Item = IpAddr>) {
        self.state().addresses = addresses.into_iter().collect();
    }

    /// Makes writing a sysctl fail with this error.
    pub fn refuse(&self, sysctl: &str, reason: io::ErrorKind) {
        self.state().refused.insert(sysctl.to_owned(), reason);
    }

    /// Makes reading a sysctl fail, although it has a value.
    pub fn hide(&self, sysctl: &str) {
        self.state().hidden.insert(sysctl.to_owned());
    }

    /// Makes a sysctl readable again.
    pub fn show(&self, sysctl: &str) {
        self.state().hidden.remove(sysctl);
    }

    /// Makes reading addresses fail with this error; `None` makes it succeed.
    pub fn refuse_addresses(&self, reason: Option<io::ErrorKind>) {
        self.state().address_error = reason;
    }

    /// Adds nfacct support.
    pub fn allow_counters(&self) {
        self.state().counters.get_or_insert_default();
    }

    /// Removes nfacct support.
    pub fn refuse_counters(&self) {
        self.state().counters = None;
    }

    /// Makes conntrack a module: sysctls refused with `NotFound` exist with value 0 once it is loaded.
    pub fn make_conntrack_a_module(&self) {
        self.state().conntrack_is_a_module = true;
    }

    /// The nfacct counters.
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
