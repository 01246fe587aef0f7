//! IPVS mode: virtual servers over netlink, addresses on a dummy device, ipsets, and a few iptables rules.
//!
//! The path of a packet through them is in `README.md` beside this file.

mod apply;
mod cleanup;
mod drift;
mod expected;
mod graceful;
mod kernel;
mod names;
mod observed;
mod plan;
mod prepare;
mod ref_counts;
mod refusals;
mod render;
mod rules;
mod settings;
mod state;
mod traffic;

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

pub use self::cleanup::{IpvsCleanup, has_device, mode_chains, was_here};
pub use self::expected::{Expected, ExpectedServer, expected};
pub use self::graceful::GRACEFUL_TERMINATION_PERIOD;
pub use self::kernel::Kernel;
pub use self::names::DEVICE;
pub use self::observed::{ObservedRealServer, ObservedServer, ObservedSet, ObservedSets, ObservedState};
pub use self::prepare::check;
pub use self::refusals::read_refusals;
pub use self::traffic::read_traffic;
use netfilter::IpFamily;
use netfilter::iptables::Table;
use netfilter::ipvs::Scheduler;
use netfilter::kernel::cpu_time;
use tracing::{debug, warn};

use self::settings::IpvsSettings;
use self::state::IpvsState;
use crate::addresses::NodeAddresses;
use crate::backend::{Backend, RejectedPorts, SyncError, SyncStats, budget_pause, list_rejected};
use crate::hash_support::HashSupport;
use crate::model::config::ServiceMetrics;
use crate::model::{Config, IpvsConfig, Scope, ServicePortName, Snapshot};
use crate::xtables::{FormattingExceptions, ObservedTables, QuickCheck, TableCheck};

/// IPVS mode in one family.
#[derive(Debug)]
pub struct Ipvs {
    family: IpFamily,
    config: Config,
    ipvs: IpvsConfig,
    scheduler: Scheduler,
    kernel: Kernel,
    addresses: NodeAddresses,
    state: IpvsState,
    /// Service ports for which the kernel refused something.
    rejected: RejectedPorts,
    formatting: FormattingExceptions,
    quick: QuickCheck,
    tables: TableCheck,
    /// The duration of the last full read of the rules.
    reading: Duration,
    /// Sysctls and timeouts that could not be set, as logged.
    problem: Option<String>,
    hash_support: HashSupport,
    /// Whether sets that count, of an earlier process with service metrics, may be left.
    has_counting_sets: bool,
    /// When the next checks of the rules and of all other state may run.
    next_checks: [Option<Instant>; 2],
}

impl Ipvs {
    /// Creates the mode without reading the kernel.
    ///
    /// # Errors
    /// If the configured scheduler name is invalid.
    pub fn new(family: IpFamily, config: Config, ipvs: IpvsConfig, kernel: Kernel) -> Result<Self, SyncError> {
        Ok(Self {
            scheduler: prepare::scheduler(&ipvs)?,
            family,
            ipvs,
            kernel,
            addresses: NodeAddresses::new(family),
            state: IpvsState::default(),
            rejected: HashMap::new(),
            formatting: FormattingExceptions::default(),
            quick: QuickCheck::of(&rules::ENTRY_CHAINS),
            tables: TableCheck::default(),
            reading: Duration::ZERO,
            problem: None,
            hash_support: HashSupport::default(),
            has_counting_sets: config.service_metrics == ServiceMetrics::Off,
            config,
            next_checks: [None; 2],
        })
    }

    fn settings(&mut self, snapshot: &Snapshot<'_>) -> IpvsSettings {
        let addresses = self.addresses.update(self.kernel.node_addresses(self.family), snapshot.node);
        let random_fully = self.kernel.tool.random_fully();
        let hashes = self.hash_support.is_supported();
        let settings = IpvsSettings::of(self.family, &self.config, self.scheduler, random_fully, snapshot, &addresses);
        IpvsSettings { hashes, ..settings }
    }

    /// Checks for the scheduler that hashes, if a Service is the first to ask for it.
    fn check_hash(&mut self, snapshot: &Snapshot<'_>, scope: &Scope) {
        let changed = if let Scope::Changed(changed) = scope { Some(changed) } else { None };
        let (table, family) = (&mut self.kernel.table, self.family);
        self.hash_support.update(family, snapshot, changed, || prepare::check_hash(table.as_mut()));
    }

    fn stats(&self, full: bool) -> SyncStats {
        let [no_local_internal, no_local_external] = self.state.no_local_endpoints();
        SyncStats {
            full,
            rejected: list_rejected(&self.rejected),
            no_local_internal,
            no_local_external,
            unhashed_services: self.hash_support.services_without(),
            rules: Vec::new(),
            ..SyncStats::default()
        }
    }

    /// Sets timeouts and sysctls, logging failures.
    ///
    /// kube-proxy exits on a failure; serving some traffic is more useful.
    fn ensure_host_state(&mut self) {
        let results = [prepare::timeouts(&mut self.kernel, &self.ipvs), prepare::sysctls(&mut self.kernel, &self.ipvs)];
        let problems: Vec<String> = results.into_iter().filter_map(Result::err).map(|error| error.0).collect();
        let problem = (!problems.is_empty()).then(|| problems.join("; "));
        if let Some(problem) = problem.as_ref().filter(|_| problem != self.problem) {
            warn!("{}: {problem}", self.family);
        }
        self.problem = problem;
    }

    /// Full sync: compares everything with the kernel.
    fn full(&mut self, snapshot: &Snapshot<'_>, now: Instant) -> Result<(), SyncError> {
        self.ensure_host_state();
        let unusable = prepare::objects(&mut self.kernel, self.family, self.config.service_metrics)?;
        for (id, reason) in unusable.iter().filter(|(id, reason)| self.state.unusable.get(id) != Some(reason)) {
            let name = id.name(self.family);
            warn!("{}: cannot use ipset {name}, leaving out Service ports that need it: {reason}", self.family);
        }
        self.state.unusable = unusable;
        let settings = self.settings(snapshot);
        let gone: Vec<ServicePortName> =
            self.state.names().filter(|name| !snapshot.ports.contains_key(*name)).cloned().collect();
        for name in &gone {
            self.state.set_desired(name, None, false);
        }
        for name in snapshot.ports.keys() {
            self.state.set_desired(name, render::render(snapshot, name, &settings), false);
        }
        let observed = self.observe()?;
        self.rejected.clear();
        self.apply(&settings, Some(&observed), now)?;
        if self.has_counting_sets {
            self.has_counting_sets = !prepare::destroy_counting_sets(&mut self.kernel, self.family)?;
        }
        self.state.settings = Some(settings);
        self.learn_formatting()
    }

    /// Reads rewritten chains back: chains that still differ are formatted differently by this iptables.
    fn learn_formatting(&mut self) -> Result<(), SyncError> {
        if self.formatting.has_suspects() {
            let tables = ObservedTables::read(self.kernel.tool.as_mut(), &[Table::Nat, Table::Filter], Vec::new())?;
            let expected = self.state.chains.iter().map(|(place, chain)| (*place, *chain));
            self.formatting.learn(expected, &tables);
        }
        Ok(())
    }

    /// Checks all rules (0) or all other state (1) for drift, and schedules the next check.
    ///
    /// A failed check costs as much.
    fn check_again(&mut self, index: usize, now: Instant) -> Result<Option<String>, SyncError> {
        let before = cpu_time();
        let damage = if index == 0 { self.changed_rules() } else { self.changed_rest() };
        self.next_checks[index] = Some(now + budget_pause(cpu_time().saturating_sub(before)));
        damage
    }

    /// Partial sync: compares Service ports with the last sync.
    fn partial(
        &mut self,
        snapshot: &Snapshot<'_>,
        changed: &BTreeSet<ServicePortName>,
        settings: &IpvsSettings,
        now: Instant,
    ) -> Result<(), SyncError> {
        for name in changed {
            let again = self.rejected.remove(name).is_some();
            self.state.set_desired(name, render::render(snapshot, name, settings), again);
        }
        self.apply(settings, None, now)
    }
}

impl Backend for Ipvs {
    fn prepare(&mut self) -> Result<(), SyncError> {
        prepare::timeouts(&mut self.kernel, &self.ipvs)?;
        prepare::sysctls(&mut self.kernel, &self.ipvs)
    }

    fn sync(&mut self, snapshot: &Snapshot<'_>, scope: &Scope, now: Instant) -> Result<SyncStats, SyncError> {
        self.quick.forget();
        self.check_hash(snapshot, scope);
        let hashes = self.hash_support.is_supported();
        let applies = |known: &IpvsSettings| known.hashes == hashes && known.same_node(&self.config, snapshot);
        let known = self.state.settings.clone().filter(applies);
        if let (Scope::Changed(changed), Some(settings)) = (scope, known) {
            match self.partial(snapshot, changed, &settings, now) {
                Ok(()) => {
                    self.quick.note(self.kernel.tool.as_mut(), false, true);
                    return Ok(self.stats(false));
                }
                // The recorded state was wrong, or the kernel could not be reached: a full sync finds out.
                Err(error) => debug!("{}: starting a full sync: {error}", self.family),
            }
        }
        // Until the full sync is done, the kernel state is unknown.
        self.state.settings = None;
        self.full(snapshot, now)?;
        self.next_checks = [None; 2];
        self.quick.note(self.kernel.tool.as_mut(), true, true);
        Ok(self.stats(true))
    }

    fn check_drift(&mut self, now: Instant) -> Result<Option<String>, SyncError> {
        // Separately: rules are few, but the tool may be slow.
        for index in 0..self.next_checks.len() {
            let readable = index != 0 || self.quick.is_quiet(now, self.reading);
            if !readable || self.next_checks[index].is_some_and(|at| now < at) {
                continue;
            }
            let damage = self.check_again(index, now)?;
            if damage.is_some() {
                return Ok(damage);
            }
        }
        Ok(None)
    }

    fn check_drift_quickly(&mut self, now: Instant) -> Result<Option<String>, SyncError> {
        let jumps = |table| rules::jumps().iter().filter(|jump| jump.table == table).count();
        let rules = |table| self.state.rules(table) + jumps(table);
        let damage = self.quick.look(self.kernel.tool.as_mut(), rules, now);
        let damage = damage.map_err(|error| SyncError(format!("cannot read the state of tables: {error}")))?;
        if damage.is_some() || !self.quick.is_due(now, self.reading) || self.next_checks[0].is_some_and(|at| now < at) {
            return Ok(damage);
        }
        self.quick.looked();
        self.check_again(0, now)
    }

    fn host_changed(&mut self, snapshot: &Snapshot<'_>) -> bool {
        let addresses = self.addresses.update(self.kernel.node_addresses(self.family), snapshot.node);
        self.state.settings.as_ref().is_some_and(|settings| !settings.has_addresses(&self.config, &addresses))
    }

    fn end_connections(&mut self, ports: &BTreeSet<ServicePortName>, now: Instant) -> Result<(), SyncError> {
        let Some(settings) = self.state.settings.clone() else { return Ok(()) };
        let expired = self.state.expire_draining(ports, now);
        if expired.is_empty() {
            return Ok(());
        }
        self.state.mark_dirty(expired);
        self.apply(&settings, None, now)
    }

    fn cleanup(&mut self) -> Result<(), Vec<SyncError>> {
        self.state = IpvsState::default();
        let Kernel { tool, table, sets, links, .. } = &mut self.kernel;
        let rules = mode_chains().remove(tool.as_mut(), &Table::ALL, None);
        let mut cleanup = IpvsCleanup { table: Some(table.as_mut()), sets: sets.as_mut(), links: links.as_mut() };
        let errors: Vec<SyncError> =
            [rules, cleanup.remove(self.family, false)].into_iter().filter_map(Result::err).flatten().collect();
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    fn next_event(&self) -> Option<Instant> {
        // After a failure, the next full sync includes terminating real servers.
        self.state.settings.as_ref().and_then(|_| self.state.draining.next_check())
    }

    fn tick(&mut self, now: Instant) -> Result<(), SyncError> {
        let Some(settings) = self.state.settings.clone() else { return Ok(()) };
        let before = cpu_time();
        let keys = self.state.draining.keys();
        self.state.uncertain.extend(&keys);
        self.state.mark_dirty(keys);
        let result = self.apply(&settings, None, now);
        self.state.draining.checked(now, budget_pause(cpu_time().saturating_sub(before)));
        result
    }
}
