//! Damage that costs microseconds to see: a table that was deleted, base chains that were emptied.
//!
//! The rest takes a look at the whole table.

use netfilter::kernel::nftables::{ChainState, NftError, NftTables};
use netfilter::nft::{Name, Table};
use tracing::debug;

use super::settings::NftablesSettings;
use super::{names, rules};

/// The base chains as a sync of everything left them. Nothing but such a sync of ours changes them.
#[derive(Debug)]
pub(super) struct BaseChainCheck {
    chains: Vec<Name>,
    known: Vec<Option<ChainState>>,
    /// The generation of the last look.
    generation: Option<u32>,
}

impl BaseChainCheck {
    /// The base chains as they are now; `None` if they cannot be read: then the check of every `syncPeriod` is all there is.
    pub fn new(kernel: &mut dyn NftTables, settings: &NftablesSettings) -> Option<Self> {
        let bases = rules::fixed(settings).into_iter().filter(|(chain, _)| chain.base.is_some());
        let mut check =
            Self { chains: bases.map(|(chain, _)| chain.name).collect(), known: Vec::new(), generation: None };
        check.known = check
            .read(kernel, &names::table(settings.family))
            .inspect_err(|error| debug!("base chains cannot be read: {error}"))
            .ok()?;
        Some(check)
    }

    /// The first damage, after another program changed something. Looks once for each generation.
    pub fn look(
        &mut self,
        kernel: &mut dyn NftTables,
        table: &Table,
        generation: u32,
    ) -> Result<Option<String>, NftError> {
        if self.generation == Some(generation) {
            return Ok(None);
        }
        let now = self.read(kernel, table)?;
        self.generation = Some(generation);
        let mut changed = self.chains.iter().zip(self.known.iter().zip(&now)).filter(|(_, (known, now))| known != now);
        let Some((chain, (_, now))) = changed.next() else { return Ok(None) };
        let what = if now.is_some() { "changed" } else { "deleted" };
        Ok(Some(format!("chain {chain} of table {table} was {what}")))
    }

    fn read(&self, kernel: &mut dyn NftTables, table: &Table) -> Result<Vec<Option<ChainState>>, NftError> {
        let chains: Vec<&str> = self.chains.iter().map(|name| &**name).collect();
        kernel.chain_states(table, &chains)
    }
}
