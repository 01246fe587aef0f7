//! Tables of nf_tables that the kernel does not run, or that only another process may change.

use netfilter::IpFamily;
use netfilter::iptables::Table;
use netfilter::kernel::iptables::IptablesTool;
use netfilter::kernel::nftables::NftError;
use tracing::{debug, error, info};

use crate::backend::SyncError;

/// Checks the flags of tables, and logs each change of `flags dormant` once.
#[derive(Debug, Default)]
pub struct TableCheck {
    dormant: [bool; Table::ALL.len()],
}

impl TableCheck {
    /// Checks tables. A dormant table is logged and left as it is: iptables shares its tables with other programs, and
    /// one of them deactivated it.
    ///
    /// # Errors
    /// If another process owns a table (`flags owner`): the kernel refuses every change.
    pub fn check(&mut self, family: IpFamily, tool: &mut dyn IptablesTool, tables: &[Table]) -> Result<(), SyncError> {
        for &table in tables {
            let name = format!("{} {}", family.nft(), table.name());
            let flags = match tool.table_flags(table) {
                Ok(flags) => flags.unwrap_or_default(),
                Err(error) => {
                    debug!("cannot read the flags of nf_tables table {name}: {error}");
                    continue;
                }
            };
            if let Some(owner) = flags.owner {
                return Err(SyncError(NftError::Owned { table: name, owner }.to_string()));
            }
            let known = &mut self.dormant[table as usize];
            match (std::mem::replace(known, flags.is_dormant), flags.is_dormant) {
                (false, true) => error!(
                    "nf_tables table {name} is dormant: the kernel runs none of its chains, so packets do not meet \
                     kube-proxy's rules in it; activate it with: nft add table {name}"
                ),
                (true, false) => info!("nf_tables table {name} is no longer dormant"),
                _ => {}
            }
        }
        Ok(())
    }
}
