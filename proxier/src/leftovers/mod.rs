//! State left behind by inactive modes, ours or upstream's.
//!
//! Without leftovers, a removal costs a few netlink requests and starts no program. It runs on its own thread: see
//! [`CleanupWorker`].

mod chains;
mod nf_tables;
mod worker;

use netfilter::IpFamily;
use netfilter::iptables::Table;
use netfilter::kernel::LinkError;
use netfilter::kernel::{
    Flavour, IptablesTool, NativeIptables, SystemIpSets, SystemIptables, SystemIpvs, SystemLinks, WriterPriority,
    WriterRole, delete_table, existing_tables,
};
use tracing::{info, warn};

use crate::backend::SyncError;
use crate::iptables;
use crate::ipvs::{self, IpvsCleanup};
use crate::nftables::TABLE as NFTABLES_TABLE;
use crate::xtables::ModeChains;

pub use self::worker::{CleanupFn, CleanupWorker};

/// The active mode, whose state is kept, with its iptables flavour if known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActiveMode {
    /// iptables mode.
    Iptables(Option<Flavour>),
    /// IPVS mode.
    Ipvs(Option<Flavour>),
    /// nftables mode, which needs no iptables.
    Nftables,
}

impl ActiveMode {
    /// Whether the mode may have rules of that flavour; of an unknown flavour, it may.
    fn uses(self, flavour: Flavour) -> bool {
        match self {
            Self::Iptables(own) | Self::Ipvs(own) => own.is_none_or(|own| own == flavour),
            Self::Nftables => false,
        }
    }

    fn mode_chains(self) -> Option<ModeChains> {
        match self {
            Self::Iptables(_) => Some(iptables::mode_chains()),
            Self::Ipvs(_) => Some(ipvs::mode_chains()),
            Self::Nftables => None,
        }
    }
}

/// Removes all kube-proxy state of a family except that of the active mode.
///
/// Starts with the chains that packets meet first, in steps that yield to syncs. State of other programs stays. With
/// `wait_for_connections`, virtual servers with open connections stay; the removal must then be repeated.
///
/// # Errors
/// All failures, and what stays; everything that can be removed is removed.
pub fn remove(
    family: IpFamily,
    running: Option<ActiveMode>,
    wait_for_connections: bool,
    priority: &WriterPriority,
) -> Result<(), Vec<SyncError>> {
    let mut errors = Vec::new();
    let mut ipvs_was_here = false;
    for flavour in Flavour::ALL {
        let in_use = running.filter(|running| running.uses(flavour));
        // Syncs of the nf_tables flavour neither take the lock of the legacy tables nor wait for it.
        let apart = WriterPriority::default();
        let is_apart = flavour == Flavour::Legacy && running.is_some() && in_use.is_none();
        match remove_rules(family, flavour, in_use, if is_apart { &apart } else { priority }) {
            Ok((found, kept)) => {
                ipvs_was_here |= found;
                errors.extend(kept);
            }
            Err(error) => errors.push(SyncError(format!("{family}: iptables, flavour {flavour}: {error}"))),
        }
    }
    if !matches!(running, Some(ActiveMode::Ipvs(_))) {
        errors.extend(remove_ipvs(family, ipvs_was_here, wait_for_connections).err().unwrap_or_default());
    }
    if running != Some(ActiveMode::Nftables) {
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

/// Removes chains and jumps of one flavour.
///
/// Returns whether IPVS mode had chains, which means that it may have more state, and what could not be removed.
fn remove_rules(
    family: IpFamily,
    flavour: Flavour,
    in_use: Option<ActiveMode>,
    priority: &WriterPriority,
) -> Result<(bool, Vec<SyncError>), SyncError> {
    let tables = existing_tables(family, flavour).map_err(|error| SyncError(error.to_string()))?;
    if tables.is_empty() {
        return Ok((false, Vec::new()));
    }
    let Some(mut tools) = tools(family, flavour, WriterRole::Background(priority.clone()))? else {
        // As in kube-proxy, not an error: a node needs the programs of one flavour only.
        warn!(
            "{family}: cannot clean up iptables tables of flavour {flavour}: no programs in PATH to read them; what \
             kube-proxy left there stays"
        );
        return Ok((false, Vec::new()));
    };
    let ipvs_was_here = tables.contains(&Table::Filter) && ipvs::was_here(tools.as_mut())?;
    let leftovers = match in_use {
        Some(ActiveMode::Iptables(_)) => ipvs::mode_chains(),
        Some(ActiveMode::Ipvs(_)) => iptables::mode_chains(),
        Some(ActiveMode::Nftables) | None => iptables::mode_chains().and(ipvs::mode_chains()),
    };
    let running = in_use.and_then(ActiveMode::mode_chains);
    let mut errors = Vec::new();
    // The nat table first: it has most chains, and afterwards the other tables are read faster.
    let (nat, others): (Vec<Table>, Vec<Table>) = tables.into_iter().partition(|table| *table == Table::Nat);
    for table in nat.into_iter().chain(others) {
        let stale = leftovers.stale(table, running.as_ref());
        errors.extend(match flavour {
            Flavour::Legacy => stale.remove(tools.as_mut()),
            Flavour::Nft => nf_tables::remove(family, stale, tools.as_mut(), priority),
        });
    }
    let with_flavour = |SyncError(error)| SyncError(format!("{family}: iptables, flavour {flavour}: {error}"));
    Ok((ipvs_was_here, errors.into_iter().map(with_flavour).collect()))
}

/// The tool that reads and changes the tables of a flavour; `None` without the programs that legacy tables need.
fn tools(family: IpFamily, flavour: Flavour, role: WriterRole) -> Result<Option<Box<dyn IptablesTool>>, SyncError> {
    if flavour == Flavour::Nft {
        return Ok(Some(Box::new(NativeIptables::new(family).as_writer(role))));
    }
    let programs = SystemIptables::find_legacy(family).map_err(SyncError)?;
    Ok(programs.map(|programs| -> Box<dyn IptablesTool> { Box::new(programs.as_writer(role)) }))
}

/// Removes IPVS mode's virtual servers, sets and device, after its rules.
fn remove_ipvs(family: IpFamily, was_here: bool, wait_for_connections: bool) -> Result<(), Vec<SyncError>> {
    let with_mode = |error: &dyn std::fmt::Display| vec![SyncError(format!("{family}: IPVS mode: {error}"))];
    let mut links = SystemLinks::open().map_err(|error: LinkError| with_mode(&error))?;
    if !was_here && !ipvs::has_device(&mut links).map_err(|error| with_mode(&error))? {
        return Ok(());
    }
    let mut sets = SystemIpSets::open().map_err(|error| with_mode(&error))?;
    let mut table = SystemIpvs::open_if_present().map_err(|error| with_mode(&error))?;
    let table = table.as_mut().map(|table| -> &mut dyn netfilter::kernel::IpvsTable { table });
    info!("{family}: removing leftovers of IPVS mode");
    IpvsCleanup { table, sets: &mut sets, links: &mut links }
        .remove(family, wait_for_connections)
        .map_err(|errors| errors.iter().flat_map(|error| with_mode(error)).collect())
}
