//! The kernel interfaces of IPVS mode.

use std::net::IpAddr;

use ipnet::IpNet;
use netfilter::IpFamily;
use netfilter::kernel::{Host, IpSetError, IpSets, IptablesTool, IpvsError, IpvsTable, LinkError, Links};

use super::names::DEVICE;
use crate::backend::SyncError;

/// The kernel interfaces of one family.
#[derive(Debug)]
pub struct Kernel {
    /// Rules.
    pub tool: Box<dyn IptablesTool>,
    /// Virtual servers.
    pub table: Box<dyn IpvsTable>,
    /// Sets.
    pub sets: Box<dyn IpSets>,
    /// The dummy device.
    pub links: Box<dyn Links>,
    /// Sysctls and addresses.
    pub host: Box<dyn Host>,
}

impl Kernel {
    /// The addresses of all devices except kube-ipvs0.
    pub(super) fn node_addresses(&mut self, family: IpFamily) -> Result<Vec<IpAddr>, SyncError> {
        let error = |error| SyncError(format!("cannot list addresses: {error}"));
        let mut all = self.host.addresses(family).map_err(error)?;
        all.sort_unstable();
        // An address that another device has too is listed twice, and stays.
        for ours in self.bound(family)? {
            if let Ok(at) = all.binary_search(&ours.addr()) {
                all.remove(at);
            }
        }
        Ok(all)
    }

    pub(super) fn bound(&mut self, family: IpFamily) -> Result<Vec<IpNet>, SyncError> {
        bound(self.links.as_mut(), family)
    }
}

/// The addresses of kube-ipvs0 without the kernel's own link-local ones; empty without the device.
///
/// Ours are /32 and /128 networks; the kernel deletes foreign ones only with their prefix length.
pub(super) fn bound(links: &mut dyn Links, family: IpFamily) -> Result<Vec<IpNet>, SyncError> {
    let mut bound = Vec::new();
    match links.addresses(DEVICE, family, &mut |net: IpNet| bound.push(net)) {
        Ok(()) | Err(LinkError::NoDevice(_)) => {}
        Err(error) => return Err(error.into()),
    }
    bound.retain(|net| !family.is_link_local(&net.addr()));
    Ok(bound)
}

impl From<IpvsError> for SyncError {
    fn from(error: IpvsError) -> Self {
        Self(error.to_string())
    }
}

impl From<IpSetError> for SyncError {
    fn from(error: IpSetError) -> Self {
        Self(error.to_string())
    }
}

impl From<LinkError> for SyncError {
    fn from(error: LinkError) -> Self {
        Self(error.to_string())
    }
}
