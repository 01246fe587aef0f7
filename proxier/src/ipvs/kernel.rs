//! The parts of the kernel that IPVS mode works with.
//!
//! In: one implementation of each part. Out: questions that need several of them. Must not know: Services.

use std::net::IpAddr;

use ipnet::IpNet;
use netfilter::IpFamily;
use netfilter::kernel::{Host, IpSetError, IpSets, IptablesTool, IpvsError, IpvsTable, LinkError, Links};

use super::names::DEVICE;
use crate::backend::SyncError;

/// All of them, for one family.
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
    /// The addresses of all devices but ours.
    pub(super) fn node_addresses(&mut self, family: IpFamily) -> Result<Vec<IpAddr>, SyncError> {
        let error = |error| SyncError(format!("cannot read this node's addresses: {error}"));
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

/// The addresses of our device; none if there is no such device. Link-local ones are the kernel's own.
/// Ours are networks of one address; the kernel deletes others only by the prefix that they have.
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
