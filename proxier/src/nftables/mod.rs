//! nftables mode: one table a family, written over netlink, with no chain for a Service.
//!
//! In: snapshots. Out: the table `kube-proxy` of one family, and what was done.
//! Must not know: API objects, other modes. The table and how a packet goes through it: `README.md` beside this.

mod build;
mod chains;
mod claims;
mod cleanup;
mod expected;
mod features;
mod names;
mod numbers;
mod plan;
mod ranges;
mod read;
mod render;
mod rules;
mod settings;
mod state;
mod structure;
mod sync;
mod view;

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use tracing::warn;

pub use self::cleanup::cleanup;
pub use self::expected::{
    Endpoints, Expected, ExpectedChain, ExpectedElement, ExpectedSet, expected, is_always_there, is_own_set, place_of,
};
pub use self::features::{FeatureError, check, check_release};
pub use self::names::{Place, TABLE};
use self::plan::Sets;
use self::settings::Settings;
use self::state::State;
use self::sync::Failure;
use crate::backend::{Backend, Rejected, SyncError, SyncStats, pause_after};
use crate::family::IpFamily;
use crate::kernel::nftables::{NftError, NftTables};
use crate::kernel::{Host, cpu_time};
use crate::model::{Config, Scope, ServicePortName, Snapshot};

/// How many Service ports one sync may find refused before it gives up until the next.
const MAX_REJECTIONS: usize = 1000;

/// nftables mode in one family.
#[derive(Debug)]
pub struct Nftables {
    family: IpFamily,
    config: Config,
    kernel: Box<dyn NftTables>,
    host: Box<dyn Host>,
    sets: Sets,
    /// From how many elements on those of a set are asked for by their keys.
    many: usize,
    /// What the kernel holds; `None` if that has to be read first.
    state: Option<State>,
    rejected: HashMap<ServicePortName, String>,
    failed_deletions: usize,
    next_check: Option<Instant>,
}

impl From<NftError> for SyncError {
    fn from(error: NftError) -> Self {
        Self(error.to_string())
    }
}

impl Nftables {
    /// A mode that has not looked at the kernel yet.
    #[must_use]
    pub fn new(family: IpFamily, config: Config, kernel: Box<dyn NftTables>, host: Box<dyn Host>) -> Self {
        let sets = Sets::of(family);
        let rejected = HashMap::new();
        let many = read::MANY;
        Self { family, config, kernel, host, sets, many, state: None, rejected, failed_deletions: 0, next_check: None }
    }

    /// The same, for tests: of a set with so many endpoints, all are asked for by their keys.
    #[must_use]
    pub fn many(self, many: usize) -> Self {
        Self { many, ..self }
    }

    fn settings(&mut self, snapshot: &Snapshot<'_>) -> Settings {
        let (host, family) = (&mut self.host, self.family);
        Settings::of(family, &self.config, snapshot, || {
            host.addresses(family).unwrap_or_else(|error| {
                warn!("cannot read this node's addresses, node ports will not work: {error}");
                Vec::new()
            })
        })
    }

    fn stats(&mut self, full: bool) -> SyncStats {
        let rejected =
            |(port, reason): (&ServicePortName, &String)| Rejected { port: port.clone(), reason: reason.clone() };
        let [no_local_internal, no_local_external] = self.state.as_ref().map_or([0; 2], |state| state.lacking);
        SyncStats {
            full,
            rejected: self.rejected.iter().map(rejected).collect(),
            no_local_internal,
            no_local_external,
            rules: Vec::new(),
            failed_writes: 0,
            failed_deletions: std::mem::take(&mut self.failed_deletions),
        }
    }

    fn attempt(
        &mut self,
        snapshot: &Snapshot<'_>,
        changed: Option<&BTreeSet<ServicePortName>>,
    ) -> Result<SyncStats, Failure> {
        let settings = self.settings(snapshot);
        let state = self.state.take().filter(|state| state.settings == settings);
        match (changed, state) {
            (Some(changed), Some(state)) => self.change(snapshot, changed, state).map(|()| self.stats(false)),
            _ => self.compare(snapshot, &settings).map(|()| self.stats(true)),
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
            let Failure { ports, error } = match self.attempt(snapshot, changed) {
                Ok(stats) => return Ok(SyncStats { failed_writes, ..stats }),
                Err(failure) => failure,
            };
            failed_writes += 1;
            // What was refused may have been so because the kernel holds something else than we thought.
            if changed.take().is_some() {
                continue;
            }
            if ports.is_empty() || self.rejected.len() + ports.len() > MAX_REJECTIONS {
                return Err(error);
            }
            for (port, reason) in ports {
                if self.rejected.insert(port, reason).is_some() {
                    return Err(error);
                }
            }
        }
    }

    fn damage(&mut self, now: Instant) -> Result<Option<String>, SyncError> {
        let mut generation = self.kernel.generation()?;
        let Some(state) = &self.state else { return Ok(Some("the table was not written whole".to_owned())) };
        let untouched = state.generation == Some(generation);
        self.sweep();
        if untouched {
            return Ok(None);
        }
        // Somebody changed nf_tables; perhaps not our table.
        if self.next_check.is_some_and(|at| now < at) {
            return Ok(None);
        }
        let before = cpu_time();
        generation = self.kernel.generation()?;
        let damage = self.difference()?;
        self.next_check = Some(now + pause_after(cpu_time().saturating_sub(before)));
        if damage.is_none() {
            // The number of before it was read: what came after will be looked at next time.
            if let Some(state) = &mut self.state {
                state.generation = Some(generation);
            }
        }
        Ok(damage)
    }

    fn cleanup(&mut self) -> Result<(), Vec<SyncError>> {
        self.state = None;
        cleanup::cleanup(self.kernel.as_mut(), self.family).map(drop).map_err(|error| vec![error.into()])
    }
}
