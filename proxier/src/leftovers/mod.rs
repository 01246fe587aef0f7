//! State left behind by inactive modes, ours or upstream's.
//!
//! In: a family, and the active mode if there is one. Out: the kernel without the state of all other modes. Where there is
//! nothing to remove, it costs a few netlink requests and no program. A family's thread never does it: see [`Worker`].

mod chains;
mod nf_tables;
mod worker;

use netfilter::IpFamily;
use netfilter::iptables::Table;
use netfilter::kernel::LinkError;
use netfilter::kernel::{Flavour, SystemIpSets, SystemIptables, SystemIpvs, SystemLinks, WriterPriority, delete_table};
use tracing::{info, warn};

use crate::backend::SyncError;
use crate::iptables;
use crate::ipvs::{self, Remains};
use crate::nftables::TABLE as NFTABLES_TABLE;
use crate::xtables::Owned;

pub use self::worker::{Removal, Worker};

/// A mode at work, whose traces are no leftovers; with the flavour of its iptables, as far as it can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Running {
    /// iptables mode.
    Iptables(Option<Flavour>),
    /// IPVS mode.
    Ipvs(Option<Flavour>),
    /// nftables mode, which needs no iptables.
    Nftables,
}

impl Running {
    /// Whether it may have rules of that flavour: where it cannot be told, either may be in use.
    fn uses(self, flavour: Flavour) -> bool {
        match self {
            Self::Iptables(own) | Self::Ipvs(own) => own.is_none_or(|own| own == flavour),
            Self::Nftables => false,
        }
    }

    fn owned(self) -> Option<Owned> {
        match self {
            Self::Iptables(_) => Some(iptables::owned()),
            Self::Ipvs(_) => Some(ipvs::owned()),
            Self::Nftables => None,
        }
    }
}

/// Removes all state of kube-proxy in a family but that of the mode that runs: what packets meet first, then the rest, in steps
/// in background steps of `priority`, which yield to syncs. What another program made stays. While `patient`, connections through IPVS may end by
/// themselves; then it has to be called again.
///
/// # Errors
/// All that went wrong, and what stays; what could be removed is removed.
pub fn remove(
    family: IpFamily,
    running: Option<Running>,
    patient: bool,
    priority: &WriterPriority,
) -> Result<(), Vec<SyncError>> {
    let mut errors = Vec::new();
    let mut ipvs_was_here = false;
    for flavour in Flavour::ALL {
        let in_use = running.filter(|running| running.uses(flavour));
        match remove_rules(family, flavour, in_use, priority) {
            Ok((found, kept)) => {
                ipvs_was_here |= found;
                errors.extend(kept);
            }
            Err(error) => errors.push(SyncError(format!("{family}: iptables, flavour {flavour}: {error}"))),
        }
    }
    if !matches!(running, Some(Running::Ipvs(_))) {
        errors.extend(remove_ipvs(family, ipvs_was_here, patient).err().unwrap_or_default());
    }
    if running != Some(Running::Nftables) {
        errors.extend(remove_table(family).err());
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

fn remove_table(family: IpFamily) -> Result<(), SyncError> {
    match delete_table(family, NFTABLES_TABLE) {
        Ok(true) => info!("{family}: deleted the nf_tables table {NFTABLES_TABLE}"),
        Ok(false) => {}
        Err(error) => {
            let text = format!("{family}: cannot delete the nf_tables table {NFTABLES_TABLE}: {error}");
            return Err(SyncError(text));
        }
    }
    Ok(())
}

/// Removes chains and jumps of one flavour. Returns whether IPVS mode had some, which tells that there is more of it, and what could
/// not be removed.
fn remove_rules(
    family: IpFamily,
    flavour: Flavour,
    in_use: Option<Running>,
    priority: &WriterPriority,
) -> Result<(bool, Vec<SyncError>), SyncError> {
    let found = SystemIptables::find_existing(family, flavour).map_err(SyncError)?;
    let (tables, mut tools) = match found {
        (tables, _) if tables.is_empty() => return Ok((false, Vec::new())),
        // Not an error for kube-proxy either: no node needs the programs of both.
        (_, None) => {
            warn!(
                "{family}: there are tables of iptables, flavour {flavour}, and no programs in PATH to look into them; \
                 what a kube-proxy left there stays"
            );
            return Ok((false, Vec::new()));
        }
        (tables, Some(tools)) => (tables, tools.as_background(priority.clone())),
    };
    let ipvs_was_here = tables.contains(&Table::Filter) && ipvs::was_here(&mut tools)?;
    let leftovers = match in_use {
        Some(Running::Iptables(_)) => ipvs::owned(),
        Some(Running::Ipvs(_)) => iptables::owned(),
        Some(Running::Nftables) | None => iptables::owned().and(ipvs::owned()),
    };
    let running = in_use.and_then(Running::owned);
    let mut errors = Vec::new();
    // Nat first: it has nearly all, and what is looked through for the other tables is less then.
    let (nat, others): (Vec<Table>, Vec<Table>) = tables.into_iter().partition(|table| *table == Table::Nat);
    for table in nat.into_iter().chain(others) {
        let unwanted = leftovers.unwanted(table, running.as_ref());
        errors.extend(match flavour {
            Flavour::Legacy => unwanted.remove(&mut tools),
            Flavour::Nft => nf_tables::remove(family, unwanted, &mut tools, priority),
        });
    }
    let told = |SyncError(error)| SyncError(format!("{family}: iptables, flavour {flavour}: {error}"));
    Ok((ipvs_was_here, errors.into_iter().map(told).collect()))
}

/// Removes what IPVS mode has besides rules, after those.
fn remove_ipvs(family: IpFamily, was_here: bool, patient: bool) -> Result<(), Vec<SyncError>> {
    let told = |error: &dyn std::fmt::Display| vec![SyncError(format!("{family}: IPVS mode: {error}"))];
    let mut links = SystemLinks::open().map_err(|error: LinkError| told(&error))?;
    if !was_here && !ipvs::has_device(&mut links).map_err(|error| told(&error))? {
        return Ok(());
    }
    let mut sets = SystemIpSets::open().map_err(|error| told(&error))?;
    let mut table = SystemIpvs::open_if_present().map_err(|error| told(&error))?;
    let table = table.as_mut().map(|table| -> &mut dyn netfilter::kernel::IpvsTable { table });
    info!("{family}: removing what IPVS mode left");
    Remains { table, sets: &mut sets, links: &mut links }
        .remove(family, patient)
        .map_err(|errors| errors.iter().flat_map(|error| told(error)).collect())
}
