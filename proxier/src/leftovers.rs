//! Traces of modes that do not run: an earlier kube-proxy's, of whatever make.
//!
//! In: a family, and which mode runs, if any does. Out: the kernel without the traces of all others.
//! Must not know: Services. Where there is nothing to remove, it costs a few questions to the kernel and no program.

use tracing::info;

use crate::backend::SyncError;
use crate::family::IpFamily;
use crate::ipvs::{self, Remains};
use crate::kernel::{Flavour, SystemIpSets, SystemIptables, SystemIpvs, SystemLinks, delete_table};
use crate::netfilter::iptables::Table;
use crate::xtables::Owned;
use crate::{iptables, kernel::LinkError};

/// The table of nftables mode, in each family.
const NFTABLES_TABLE: &str = "kube-proxy";

/// A mode at work, whose traces are no leftovers; with the flavour of its iptables, as far as it can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Running {
    /// iptables mode.
    Iptables(Option<Flavour>),
    /// IPVS mode.
    Ipvs(Option<Flavour>),
}

impl Running {
    fn flavour(self) -> Option<Flavour> {
        let (Self::Iptables(flavour) | Self::Ipvs(flavour)) = self;
        flavour
    }

    fn owned(self) -> Owned {
        match self {
            Self::Iptables(_) => iptables::owned(),
            Self::Ipvs(_) => ipvs::owned(),
        }
    }
}

/// Removes all traces of kube-proxy in a family but those of the mode that runs. What another program made stays. While
/// `patient`, connections through IPVS may end by themselves; that has to be asked again then.
///
/// # Errors
/// All that went wrong, and what stays; what could be removed is removed.
pub fn remove(family: IpFamily, running: Option<Running>, patient: bool) -> Result<(), Vec<SyncError>> {
    let mut errors = Vec::new();
    let mut ipvs_was_here = false;
    for flavour in Flavour::ALL {
        // Where it cannot be told, either may be in use.
        let in_use = running.filter(|running| running.flavour().is_none_or(|own| own == flavour));
        match remove_rules(family, flavour, in_use) {
            Ok(found) => ipvs_was_here |= found,
            Err(found) => errors.extend(found),
        }
    }
    if !matches!(running, Some(Running::Ipvs(_))) {
        errors.extend(remove_ipvs(family, ipvs_was_here, patient).err().unwrap_or_default());
    }
    match delete_table(family, NFTABLES_TABLE) {
        Ok(true) => info!("{family}: deleted the nf_tables table {NFTABLES_TABLE}"),
        Ok(false) => {}
        Err(error) => {
            errors.push(SyncError(format!("{family}: cannot delete the nf_tables table {NFTABLES_TABLE}: {error}")));
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

/// Removes chains and jumps of one flavour. Whether IPVS mode had some, which tells that there is more of it.
fn remove_rules(family: IpFamily, flavour: Flavour, in_use: Option<Running>) -> Result<bool, Vec<SyncError>> {
    let told = |error: &dyn std::fmt::Display| SyncError(format!("{family}: iptables, flavour {flavour}: {error}"));
    let Some((mut tools, tables)) =
        SystemIptables::find_existing(family, flavour).map_err(|error| vec![told(&error)])?
    else {
        return Ok(false);
    };
    let ipvs_was_here =
        tables.contains(&Table::Filter) && ipvs::was_here(&mut tools).map_err(|error| vec![told(&error)])?;
    let leftovers = match in_use {
        Some(Running::Iptables(_)) => ipvs::owned(),
        Some(Running::Ipvs(_)) => iptables::owned(),
        None => iptables::owned().and(ipvs::owned()),
    };
    let removed = leftovers.remove(&mut tools, &tables, in_use.map(Running::owned).as_ref());
    removed.map_err(|errors| errors.iter().map(|error| told(error)).collect::<Vec<_>>())?;
    Ok(ipvs_was_here)
}

/// Removes what IPVS mode has besides rules, after those.
fn remove_ipvs(family: IpFamily, was_here: bool, patient: bool) -> Result<(), Vec<SyncError>> {
    let told = |error: &dyn std::fmt::Display| vec![SyncError(format!("{family}: IPVS mode: {error}"))];
    let mut links = SystemLinks::open().map_err(|error: LinkError| told(&error))?;
    if !was_here && !ipvs::has_device(&mut links).map_err(|error| told(&error))? {
        return Ok(());
    }
    let mut sets = SystemIpSets::open().map_err(|error| told(&error))?;
    // Where there is no IPVS now, it holds nothing.
    let mut table = SystemIpvs::open().ok();
    let table = table.as_mut().map(|table| -> &mut dyn crate::kernel::IpvsTable { table });
    info!("{family}: removing what IPVS mode left");
    Remains { table, sets: &mut sets, links: &mut links }
        .remove(family, patient)
        .map_err(|errors| errors.iter().flat_map(|error| told(error)).collect())
}
