//! Cheap drift detection: a deleted table, and changed base chains.
//!
//! Other drift takes a read of the whole table.

use netfilter::kernel::nftables::{ChainState, NftError, NftTables};
use netfilter::nft::{Name, Table};
use tracing::debug;

use super::chain_counts::ChainRefCounts;
use super::names::{self, PacketOrigin, SharedChain};
use super::rules;
use super::settings::NftablesSettings;

/// The base chains as the last sync left them.
#[derive(Debug)]
pub(super) struct BaseChainCheck {
    chains: Vec<Name>,
    /// Those of them that exist while a Service port needs them.
    shared: Vec<Name>,
    known: Vec<Option<ChainState>>,
    /// The generation ID at the last check.
    generation: Option<u32>,
}

impl BaseChainCheck {
    /// Records the base chains; `None` if they cannot be read, leaving the check of every `syncPeriod`.
    pub fn new(kernel: &mut dyn NftTables, settings: &NftablesSettings, counts: &ChainRefCounts) -> Option<Self> {
        let fixed = rules::fixed(settings).into_iter().filter(|(chain, _)| chain.base.is_some());
        let shared: Vec<Name> = shared(counts).collect();
        let chains = fixed.map(|(chain, _)| chain.name).chain(shared.iter().cloned()).collect();
        let mut check = Self { chains, shared, known: Vec::new(), generation: None };
        check.known = check
            .read(kernel, &names::table(settings.family))
            .inspect_err(|error| debug!("cannot read base chains: {error}"))
            .ok()?;
        Some(check)
    }

    /// Whether a partial sync has added or deleted base chains since.
    pub fn is_outdated(&self, counts: &ChainRefCounts) -> bool {
        !shared(counts).eq(self.shared.iter().cloned())
    }

    /// Describes the first difference after a foreign change. Reads once per generation ID.
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

/// The base chains that exist because a Service port needs them.
fn shared(counts: &ChainRefCounts) -> impl Iterator<Item = Name> {
    let all = PacketOrigin::ALL.into_iter().map(SharedChain::SourceRanges);
    all.filter(|chain| counts.exists(*chain)).map(|chain| chain.to_name())
}
