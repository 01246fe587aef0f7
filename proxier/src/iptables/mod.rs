//! iptables mode: kube-proxy's chains, written by `iptables-restore --noflush`.
//!
//! The chains and the path of a packet through them are in `README.md` beside this file.

mod base;
mod cleanup;
mod deletion;
mod edits;
mod expected;
mod generation;
mod host;
mod isolate;
pub mod names;
mod plan;
mod programmed;
mod refusals;
mod render;
mod settings;
mod traffic;

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use netfilter::IpFamily;
use netfilter::iptables::{Chain, Table};
use netfilter::kernel::iptables::{IptablesTool, RestoreError};
use netfilter::kernel::{Host, ToolError, cpu_time};
use tracing::warn;

pub use self::cleanup::mode_chains;
use self::deletion::ReferencedChains;
pub use self::expected::{ExpectedPart, HostFacts, expected, expected_parts};
use self::generation::GenerationTracker;
use self::isolate::{Culprit, RefusalSearch};
pub use self::names::is_of_service_port;
use self::plan::{OwnedRestore, PlanInput};
use self::programmed::ProgrammedChains;
pub use self::refusals::read_refusals;
use self::settings::{HostFeatures, IptablesSettings};
pub use self::settings::{INVALID_DROPPED_COUNTER, LOCALHOST_NODE_PORTS_COUNTER};
pub use self::traffic::read_connections;
use crate::addresses::NodeAddresses;
use crate::backend::{Backend, RejectedPorts, SyncError, SyncStats, TableRules, budget_pause, list_rejected, reject};
use crate::hash_support::HashSupport;
use crate::model::{Config, Scope, ServicePortName, Snapshot};
use crate::xtables::{FormattingExceptions, ObservedTables, QuickCheck, TableCheck};

/// iptables mode in one family.
#[derive(Debug)]
pub struct Iptables {
    family: IpFamily,
    config: Config,
    tool: Box<dyn IptablesTool>,
    host: Box<dyn Host>,
    addresses: NodeAddresses,
    features: HostFeatures,
    /// Whether `nf_conntrack_tcp_be_liberal` was read, or does not exist.
    knows_liberal: bool,
    /// Whether the tool refused `-m nfacct`.
    nfacct_refused: bool,
    /// Whether `route_localnet` could not be set, which is logged.
    no_route_localnet: bool,
    state: ProgrammedChains,
    rejected: RejectedPorts,
    formatting: FormattingExceptions,
    generation: GenerationTracker,
    quick: QuickCheck,
    tables: TableCheck,
    /// The duration of the last full read.
    reading: Duration,
    referenced: ReferencedChains,
    /// Counts the Services whose endpoints should be chosen by a hash, which rules of iptables cannot do.
    hash_support: HashSupport,
    next_check: Option<Instant>,
}

/// A failed attempt, with the Service ports at fault if the tool named any.
#[derive(Debug)]
struct RestoreFailure {
    ports: Vec<Culprit>,
    /// Whether no Service port is the reason: the tool named only lines of none, or refused no line at all.
    elsewhere: bool,
    /// Chains that the tool refused to delete.
    undeletable: Vec<Chain>,
    error: SyncError,
}

impl From<ToolError> for SyncError {
    fn from(error: ToolError) -> Self {
        Self(error.to_string())
    }
}

impl Iptables {
    /// Creates the mode without reading the kernel.
    #[must_use]
    pub fn new(family: IpFamily, config: Config, tool: Box<dyn IptablesTool>, host: Box<dyn Host>) -> Self {
        let features = HostFeatures { random_fully: tool.random_fully(), nfacct: false, tcp_be_liberal: false };
        let mut mode = Self {
            family,
            config,
            tool,
            host,
            addresses: NodeAddresses::new(family),
            features,
            knows_liberal: false,
            nfacct_refused: false,
            no_route_localnet: false,
            state: ProgrammedChains::default(),
            rejected: HashMap::new(),
            formatting: FormattingExceptions::default(),
            generation: GenerationTracker::default(),
            quick: QuickCheck::of(&base::ENTRY_CHAINS),
            tables: TableCheck::default(),
            reading: Duration::ZERO,
            referenced: ReferencedChains::default(),
            hash_support: HashSupport::never(),
            next_check: None,
        };
        mode.read_liberal();
        mode
    }

    fn settings(&mut self, snapshot: &Snapshot<'_>) -> IptablesSettings {
        let (host, addresses, family) = (&mut self.host, &mut self.addresses, self.family);
        let read = || addresses.update(host.addresses(family), snapshot.node);
        IptablesSettings::of(family, &self.config, snapshot, self.features, read)
    }

    fn observe(&mut self) -> Result<ObservedTables, SyncError> {
        let (start, tables) = (Instant::now(), [Table::Nat, Table::Filter, Table::Mangle]);
        self.tables.check(self.family, self.tool.as_mut(), &tables)?;
        let read = ObservedTables::read(self.tool.as_mut(), &tables, base::jumps())?;
        self.reading = start.elapsed();
        Ok(read)
    }

    fn attempt(
        &mut self,
        snapshot: &Snapshot<'_>,
        changed: Option<&BTreeSet<ServicePortName>>,
        now: Instant,
    ) -> Result<SyncStats, RestoreFailure> {
        let plain = |error| RestoreFailure { ports: Vec::new(), elsewhere: true, undeletable: Vec::new(), error };
        self.quick.forget();
        self.hash_support.update(self.family, snapshot, changed, || Ok(()));
        let mut settings = self.settings(snapshot);
        let changed = changed.filter(|_| self.state.settings.as_ref() == Some(&settings));
        let mut writes = self.generation.begin(self.tool.as_mut(), changed.is_none());
        let observed = if changed.is_none() {
            self.ensure_host_state(&settings);
            settings.features = self.features;
            Some(self.observe().map_err(plain)?)
        } else {
            None
        };
        let input = PlanInput {
            snapshot,
            settings: &settings,
            state: &self.state,
            observed: observed.as_ref(),
            changed,
            rejected: &self.rejected,
            referenced: self.referenced.rules(),
            batch: self.tool.batch(),
            edits_rules: self.tool.edits_rules(),
            deletion_interval: self.config.periods.sync,
            now,
        };
        let tool = &mut self.tool;
        let mut outcome = plan::plan(input, |transaction| {
            tool.restore(transaction.restore).map_err(|error| attribute(&transaction, &error))?;
            writes.record(transaction.restore.tables());
            Ok(())
        })?;
        self.generation.commit(self.tool.as_mut(), &writes);
        self.quick.note(self.tool.as_mut(), changed.is_none(), self.generation.is_known());
        self.referenced.note_emptied(std::mem::take(&mut outcome.emptied), outcome.full);
        let written = outcome.written;
        self.state.commit(outcome, settings, now);
        Ok(self.stats(changed.is_none(), written))
    }

    fn stats(&self, full: bool, written: [usize; Table::ALL.len()]) -> SyncStats {
        let rules = [Table::Filter, Table::Nat].map(|table| TableRules {
            table: table.name(),
            total: self.state.rules(table),
            written: written[table as usize],
        });
        SyncStats {
            full,
            rejected: list_rejected(&self.rejected),
            no_local_internal: self.state.totals.no_local_internal,
            no_local_external: self.state.totals.no_local_external,
            unhashed_services: self.hash_support.services_without(),
            rules: rules.to_vec(),
            ..SyncStats::default()
        }
    }
}

/// Attributes refused lines to the Service ports that own them.
fn attribute(transaction: &OwnedRestore<'_, '_>, error: &RestoreError) -> RestoreFailure {
    let mut ports: Vec<Culprit> = Vec::new();
    for &line in &error.lines {
        let owner = transaction.restore.owner(line).and_then(|owner| transaction.owners.get(owner as usize));
        if let Some(&owner) = owner
            && !ports.iter().any(|(port, _)| port == owner)
        {
            let text = transaction.restore.line(line).unwrap_or_default();
            ports.push((owner.clone(), format!("{}; the line: {text}", error.message)));
        }
    }
    // The tool names COMMIT if the kernel refused and the rule is unknown.
    let known = |line: &usize| transaction.restore.line(*line).is_some_and(|text| text != "COMMIT");
    let elsewhere = !error.refused || (ports.is_empty() && error.lines.iter().any(known));
    let undeletable = error.refused_deletions(transaction.restore);
    RestoreFailure { ports, elsewhere, undeletable, error: SyncError(error.message.clone()) }
}

impl Backend for Iptables {
    fn prepare(&mut self) -> Result<(), SyncError> {
        // The Node is unknown here, and not needed: its address is never a loopback one.
        let everywhere = self.config.node_port_addresses.resolve(self.family, self.family.localhost());
        if settings::localhost_node_ports(self.family, &self.config, &everywhere) {
            self.route_localnet()?;
        }
        Ok(())
    }

    fn sync(&mut self, snapshot: &Snapshot<'_>, scope: &Scope, now: Instant) -> Result<SyncStats, SyncError> {
        let mut changed = match scope {
            Scope::Full => {
                self.referenced.refresh(self.tool.as_mut())?;
                None
            }
            Scope::Changed(changed) => Some(changed.clone()),
        };
        self.try_rejected(snapshot, changed.as_ref());
        loop {
            let failure = match self.attempt(snapshot, changed.as_ref(), now) {
                Ok(stats) => {
                    if stats.full {
                        self.learn_formatting()?;
                    }
                    return Ok(stats);
                }
                Err(failure) => failure,
            };
            if self.features.nfacct && failure.error.0.contains("nfacct") {
                // Serving without counters is better than not serving.
                warn!("cannot use nfacct counters in rules: {}", failure.error);
                self.nfacct_refused = true;
                changed = None;
                continue;
            }
            if !failure.undeletable.is_empty()
                && self.referenced.refused(self.tool.as_mut(), failure.undeletable, &failure.error.0)
            {
                changed = None;
                continue;
            }
            if changed.take().is_some() {
                // The refused transaction may have changed some tables, or the recorded state was wrong: read the
                // kernel.
                continue;
            }
            let mut culprits = failure.ports;
            if !culprits.is_empty() || !failure.elsewhere {
                self.isolate(snapshot, &mut culprits);
            }
            if !reject(&mut self.rejected, culprits) {
                return Err(failure.error);
            }
        }
    }

    fn check_drift(&mut self, now: Instant) -> Result<Option<String>, SyncError> {
        if self.generation.is_current(self.tool.as_mut()) {
            self.delete_overdue(now);
            return Ok(None);
        }
        if !self.quick.is_quiet(now, self.reading) {
            return Ok(None);
        }
        if !self.tool.has_chain(Table::Mangle, names::CANARY)? {
            return Ok(Some(format!("chain {} of table mangle was deleted: the tables were flushed", names::CANARY)));
        }
        self.delete_overdue(now);
        if self.next_check.is_some_and(|at| now < at) {
            return Ok(None);
        }
        let (before, writes) = (cpu_time(), self.generation.begin(self.tool.as_mut(), true));
        let observed = self.observe();
        self.release_emptied()?;
        let damage = observed.map(|observed| self.formatting.drift(self.state.expected_chains(), &observed));
        if matches!(damage, Ok(None)) {
            self.generation.commit(self.tool.as_mut(), &writes);
        }
        // A failed read costs as much.
        self.next_check = Some(now + budget_pause(cpu_time().saturating_sub(before)));
        damage
    }

    fn check_drift_quickly(&mut self, now: Instant) -> Result<Option<String>, SyncError> {
        let jumps = |table| base::jumps().iter().filter(|jump| jump.table == table).count();
        let damage = self.quick.look(self.tool.as_mut(), |table| self.state.rules(table) + jumps(table), now);
        let damage = damage.map_err(|error| SyncError(format!("cannot read the state of tables: {error}")))?;
        if damage.is_some() || !self.quick.is_due(now, self.reading) || self.next_check.is_some_and(|at| now < at) {
            return Ok(damage);
        }
        self.quick.looked();
        self.check_drift(now)
    }

    fn host_changed(&mut self, snapshot: &Snapshot<'_>) -> bool {
        self.read_liberal();
        if self.no_route_localnet {
            self.no_route_localnet = self.route_localnet().is_err();
        }
        let settings = self.settings(snapshot);
        self.state.settings.as_ref().is_some_and(|known| *known != settings)
    }

    fn cleanup(&mut self) -> Result<(), Vec<SyncError>> {
        self.state = ProgrammedChains::default();
        self.generation = GenerationTracker::default();
        mode_chains().remove(self.tool.as_mut(), &Table::ALL, None)
    }
}

impl Iptables {
    /// Reads rewritten chains back: chains that still differ are formatted differently by this iptables.
    fn learn_formatting(&mut self) -> Result<(), SyncError> {
        if self.formatting.has_suspects() {
            let observed = self.observe()?;
            self.formatting.learn(self.state.expected_chains(), &observed);
        }
        Ok(())
    }

    /// Adds the Service ports that the tool would refuse like `culprits`, or searches for some if there are none.
    fn isolate(&mut self, snapshot: &Snapshot<'_>, culprits: &mut Vec<Culprit>) {
        let settings = self.settings(snapshot);
        let known = |name: &&ServicePortName| {
            self.rejected.contains_key(*name) || culprits.iter().any(|(culprit, _)| culprit == *name)
        };
        let candidates: Vec<_> = snapshot.ports.keys().filter(|name| !known(name)).collect();
        let search = RefusalSearch { snapshot, settings: &settings };
        let found = if culprits.is_empty() {
            search.culprits(self.tool.as_mut(), &candidates).unwrap_or_default()
        } else {
            search.similar(self.tool.as_mut(), culprits, &candidates)
        };
        culprits.extend(found);
    }

    /// Retries the rejected Service ports in scope separately, so that all others do not wait for the search.
    fn try_rejected(&mut self, snapshot: &Snapshot<'_>, changed: Option<&BTreeSet<ServicePortName>>) {
        let wanted = |name: &ServicePortName| changed.is_none_or(|changed| changed.contains(name));
        let again = std::mem::take(&mut self.rejected);
        let (again, kept): (HashMap<_, _>, HashMap<_, _>) = again.into_iter().partition(|(name, _)| wanted(name));
        self.rejected = kept;
        let mut candidates: Vec<_> = again.keys().filter(|name| snapshot.ports.contains_key(*name)).collect();
        if candidates.is_empty() {
            return;
        }
        candidates.sort_unstable();
        let settings = self.settings(snapshot);
        let search = RefusalSearch { snapshot, settings: &settings };
        // The tests change nf_tables, so the generation is unknown afterwards.
        self.generation = GenerationTracker::default();
        match search.culprits(self.tool.as_mut(), &candidates) {
            Some(refused) => self.rejected.extend(refused),
            None => self.rejected.extend(again),
        }
    }
}
