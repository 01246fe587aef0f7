//! Traces of modes that do not run: an earlier kube-proxy's, of whatever make.
//!
//! In: a family, and which mode runs, if any does. Out: the kernel without the traces of all others.
//! Must not know: Services. Where there is nothing to remove, it costs a few questions to the kernel and no program.

use tracing::{info, warn};

use crate::backend::SyncError;
use crate::family::IpFamily;
use crate::iptables;
use crate::kernel::{Flavour, SystemIptables, delete_table};

/// The table of nftables mode, in each family.
const NFTABLES_TABLE: &str = "kube-proxy";

/// A mode at work, whose traces are no leftovers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Running {
    /// iptables mode, in this flavour, as far as it can be told.
    Iptables(Option<Flavour>),
}

/// Removes all traces of kube-proxy in a family but those of the mode that runs. What another program made stays.
///
/// # Errors
/// All that went wrong; what could be removed is removed.
pub fn remove(family: IpFamily, running: Option<Running>) -> Result<(), Vec<SyncError>> {
    let mut errors = Vec::new();
    for flavour in Flavour::ALL {
        let own = match running {
            None => false,
            // Either may be.
            Some(Running::Iptables(None)) => true,
            Some(Running::Iptables(Some(own))) => own == flavour,
        };
        if !own {
            errors.extend(remove_iptables(family, flavour).err().unwrap_or_default());
        }
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

fn remove_iptables(family: IpFamily, flavour: Flavour) -> Result<(), Vec<SyncError>> {
    let told = |error: &dyn std::fmt::Display| SyncError(format!("{family}: iptables, flavour {flavour}: {error}"));
    match SystemIptables::find_existing(family, flavour) {
        Ok((tables, _)) if tables.is_empty() => Ok(()),
        // Not an error for kube-proxy either: nobody needs the programs of both.
        Ok((_, None)) => {
            warn!(
                "{family}: there are tables of iptables, flavour {flavour}, and no programs in PATH to look into them; \
                 what a kube-proxy left there stays"
            );
            Ok(())
        }
        Ok((tables, Some(mut tools))) => {
            let cleaned = iptables::cleanup(&mut tools, &tables);
            cleaned.map_err(|errors| errors.iter().map(|error| told(error)).collect())
        }
        Err(error) => Err(vec![told(&error)]),
    }
}
