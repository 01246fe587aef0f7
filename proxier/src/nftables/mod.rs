//! nftables mode: one table per family, written over netlink, without per-Service chains.
//!
//! The table and the path of a packet through it are in `README.md` beside this file.

mod build;
mod chain_counts;
mod cleanup;
mod expected;
mod features;
mod localhost;
mod names;
mod numbers;
mod owners;
mod plan;
mod port_spec;
mod programmed;
mod quick;
mod ranges;
mod read;
mod render;
mod rules;
mod settings;
mod shared_chains;
mod structure;
mod sync;
mod traffic;

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use netfilter::IpFamily;
use netfilter::kernel::nftables::{NftError, NftTables};
use netfilter::kernel::{Host, cpu_time};

pub use self::cleanup::cleanup;
pub use self::expected::{
    EndpointLookup, Expected, ExpectedChain, ExpectedElement, ExpectedSet, checks_source_ranges, expected,
    is_always_there, is_kube_proxy, is_own_set, place_of,
};
pub use self::features::{FeatureError, can_hash, check, check_release};
pub use self::localhost::rejected_localhost_packets;
pub use self::names::{TABLE, VipOrNodePort, is_localhost_reject};
use self::plan::SetDefinitions;
use self::programmed::ProgrammedTable;
use self::quick::BaseChainCheck;
use self::settings::NftablesSettings;
use self::sync::TransactionFailure;
pub use self::traffic::{counts_connections, read_connections, read_traffic};
use crate::addresses::NodeAddresses;
use crate::backend::{Backend, RejectedPorts, SyncError, SyncStats, budget_pause, list_rejected, reject};
use crate::hash_support::HashSupport;
use crate::model::{Config, Scope, ServicePortName, Snapshot};

/// nftables mode in one family.
#[derive(Debug)]
pub struct Nftables {
    family: IpFamily,
    config: Config,
    kernel: Box<dyn NftTables>,
    host: Box<dyn Host>,
    addresses: NodeAddresses,
    sets: SetDefinitions,
    /// The set size from which elements are looked up by key instead of listed.
    lookup_threshold: usize,
    /// The programmed state; `None` if the kernel must be read first.
    state: Option<ProgrammedTable>,
    rejected: RejectedPorts,
    failed_deletions: usize,
    next_check: Option<Instant>,
    quick: Option<BaseChainCheck>,
    hash_support: HashSupport,
}

impl From<NftError> for SyncError {
    fn from(error: NftError) -> Self {
        Self(error.to_string())
    }
}

impl Nftables {
    /// Creates the mode without reading the kernel.
    #[must_use]
    pub fn new(family: IpFamily, config: Config, kernel: Box<dyn NftTables>, host: Box<dyn Host>) -> Self {
        let sets = SetDefinitions::of(family, config.service_metrics);
        let rejected = HashMap::new();
        let lookup_threshold = read::LOOKUP_THRESHOLD;
        Self {
            family,
            config,
            kernel,
            host,
            addresses: NodeAddresses::new(family),
            sets,
            lookup_threshold,
            state: None,
            rejected,
            failed_deletions: 0,
            next_check: None,
            quick: None,
            hash_support: HashSupport::default(),
        }
    }

    /// The same with a lower lookup threshold, for tests.
    #[must_use]
    pub fn lookup_threshold(self, lookup_threshold: usize) -> Self {
        Self { lookup_threshold, ..self }
    }

    fn settings(&mut self, snapshot: &Snapshot<'_>) -> NftablesSettings {
        let (host, addresses, family) = (&mut self.host, &mut self.addresses, self.family);
        let read = || addresses.update(host.addresses(family), snapshot.node);
        let settings = NftablesSettings::of(family, &self.config, snapshot, read);
        NftablesSettings { hashes: self.hash_support.is_supported(), ..settings }
    }

    fn record_base_chains(&mut self) -> Option<BaseChainCheck> {
        let state = self.state.as_ref()?;
        BaseChainCheck::new(self.kernel.as_mut(), &state.settings, &state.counts.chains)
    }

    fn stats(&mut self, full: bool) -> SyncStats {
        let [no_local_internal, no_local_external] =
            self.state.as_ref().map_or([0; 2], |state| state.no_local_endpoints);
        SyncStats {
            full,
            rejected: list_rejected(&self.rejected),
            no_local_internal,
            no_local_external,
            unhashed_services: self.hash_support.services_without(),
            rules: Vec::new(),
            failed_writes: 0,
            failed_deletions: std::mem::take(&mut self.failed_deletions),
        }
    }

    fn attempt(
        &mut self,
        snapshot: &Snapshot<'_>,
        changed: Option<&BTreeSet<ServicePortName>>,
    ) -> Result<SyncStats, TransactionFailure> {
        let (kernel, family) = (&mut self.kernel, self.family);
        self.hash_support.update(family, snapshot, changed, || features::check_hash(kernel.as_mut(), family));
        let settings = self.settings(snapshot);
        let state = self.state.take().filter(|state| state.settings == settings);
        // The recorded base chains are outdated until the attempt succeeds.
        let quick = self.quick.take();
        match (changed, state) {
            (Some(changed), Some(state)) => {
                self.partial_sync(snapshot, changed, state)?;
                let is_outdated = |quick: &BaseChainCheck| {
                    self.state.as_ref().is_none_or(|state| quick.is_outdated(&state.counts.chains))
                };
                self.quick = if quick.as_ref().is_some_and(is_outdated) { self.record_base_chains() } else { quick };
                Ok(self.stats(false))
            }
            _ => {
                self.full_sync(snapshot, &settings)?;
                self.quick = self.record_base_chains();
                Ok(self.stats(true))
            }
        }
    }
}

impl Backend for Nftables {
    fn sync(&mut self, snapshot: &Snapshot<'_>, scope: &Scope, _now: Instant) -> Result<SyncStats, SyncError> {
        let mut changed = match scope {
            Scope::Full => {
                self.rejected.clear();
                None
            }
            Scope::Changed(changed) => {
                self.rejected.retain(|port, _| !changed.contains(port));
                Some(changed)
            }
        };
        let mut failed_writes = 0;
        loop {
            let TransactionFailure { ports, error } = match self.attempt(snapshot, changed) {
                Ok(stats) => return Ok(SyncStats { failed_writes, ..stats }),
                Err(failure) => failure,
            };
            failed_writes += 1;
            // The refusal may be due to an outdated recorded state: read the kernel.
            if changed.take().is_some() {
                continue;
            }
            if !reject(&mut self.rejected, ports) {
                return Err(error);
            }
        }
    }

    fn check_drift(&mut self, now: Instant) -> Result<Option<String>, SyncError> {
        let mut generation = self.kernel.generation()?;
        let Some(state) = &self.state else { return Ok(Some("the table was not written completely".to_owned())) };
        let unchanged = state.generation == Some(generation);
        self.retry_deletions();
        if unchanged {
            return Ok(None);
        }
        // Another program changed nf_tables, perhaps not this table.
        if self.next_check.is_some_and(|at| now < at) {
            return Ok(None);
        }
        let before = cpu_time();
        generation = self.kernel.generation()?;
        let damage = self.drift();
        // A failed read costs as much.
        self.next_check = Some(now + budget_pause(cpu_time().saturating_sub(before)));
        let damage = damage?;
        if damage.is_none() {
            // The generation ID from before the read: later changes are checked next time.
            if let Some(state) = &mut self.state {
                state.generation = Some(generation);
            }
        }
        Ok(damage)
    }

    fn check_drift_quickly(&mut self, now: Instant) -> Result<Option<String>, SyncError> {
        let (Some(state), Some(quick)) = (&self.state, &mut self.quick) else { return Ok(None) };
        let generation = self.kernel.generation()?;
        if state.generation == Some(generation) {
            return Ok(None);
        }
        let damage = quick.look(self.kernel.as_mut(), &names::table(self.family), generation)?;
        if damage.is_some() {
            self.quick = None;
            return Ok(damage);
        }
        if self.next_check.is_some_and(|at| now < at) { Ok(None) } else { self.check_drift(now) }
    }

    fn host_changed(&mut self, snapshot: &Snapshot<'_>) -> bool {
        let settings = self.settings(snapshot);
        self.state.as_ref().is_some_and(|state| state.settings != settings)
    }

    fn cleanup(&mut self) -> Result<(), Vec<SyncError>> {
        self.state = None;
        cleanup::cleanup(self.kernel.as_mut(), self.family).map(drop).map_err(|error| vec![error.into()])
    }
}
