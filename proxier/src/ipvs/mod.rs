//! IPVS mode: virtual servers over netlink, addresses on a dummy device, ipsets, and a few iptables rules.
//!
//! In: snapshots. Out: the kernel's IPVS table, sets, addresses and chains of one family, and what was done.
//! Must not know: API objects, other modes. How a packet goes through all of it: `README.md` beside this.

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
mod render;
mod rules;
mod settings;
mod state;

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

pub use self::cleanup::{IpvsCleanup, has_device, mode_chains, was_here};
pub use self::expected::{Expected, ExpectedServer, expected};
pub use self::graceful::GRACEFUL_TERMINATION_PERIOD;
pub use self::kernel::Kernel;
pub use self::names::DEVICE;
pub use self::observed::{ObservedRealServer, ObservedServer, ObservedSet, ObservedSets, ObservedState};
pub use self::prepare::check;
use netfilter::IpFamily;
use netfilter::iptables::Table;
use netfilter::ipvs::Scheduler;
use netfilter::kernel::cpu_time;
use tracing::{debug, warn};

use self::settings::IpvsSettings;
use self::state::IpvsState;
use crate::addresses::NodeAddresses;
use crate::backend::{Backend, Rejected, SyncError, SyncStats, budget_pause};
use crate::model::{Config, IpvsConfig, Scope, ServicePortName, Snapshot};
use crate::xtables::{FormattingExceptions, ObservedTables, QuickCheck};

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
    /// Service ports of which something was refused.
    rejected: HashMap<ServicePortName, String>,
    formatting: FormattingExceptions,
    quick: QuickCheck,
    /// How long it took to read all rules last.
    reading: Duration,
    /// What of the host could not be set, and the log says so.
    problem: Option<String>,
    /// When to look at the rules again, and when at all else.
    next_checks: [Option<Instant>; 2],
}

impl Ipvs {
    /// A mode that has not looked at the kernel yet.
    ///
    /// # Errors
    /// If no scheduler can have the configured name.
    pub fn new(family: IpFamily, config: Config, ipvs: IpvsConfig, kernel: Kernel) -> Result<Self, SyncError> {
        Ok(Self {
            scheduler: prepare::scheduler(&ipvs)?,
            family,
            config,
            ipvs,
            kernel,
            addresses: NodeAddresses::new(family),
            state: IpvsState::default(),
            rejected: HashMap::new(),
            formatting: FormattingExceptions::default(),
            quick: QuickCheck::of(&rules::ENTRY_CHAINS),
            reading: Duration::ZERO,
            problem: None,
            next_checks: [None; 2],
        })
    }

    fn settings(&mut self, snapshot: &Snapshot<'_>) -> IpvsSettings {
        let addresses = self.addresses.update(self.kernel.node_addresses(self.family), snapshot.node);
        let random_fully = self.kernel.tool.random_fully();
        IpvsSettings::of(self.family, &self.config, self.scheduler, random_fully, snapshot, &addresses)
    }

    fn stats(&self, full: bool) -> SyncStats {
        let rejected =
            |(port, reason): (&ServicePortName, &String)| Rejected { port: port.clone(), reason: reason.clone() };
        let [no_local_internal, no_local_external] = self.state.no_local_endpoints();
        SyncStats {
            full,
            rejected: self.rejected.iter().map(rejected).collect(),
            no_local_internal,
            no_local_external,
            rules: Vec::new(),
            ..SyncStats::default()
        }
    }

    /// Sets timeouts and sysctls. kube-proxy would not start without one of them; some traffic is better than none.
    fn ensure_host_state(&mut self) {
        let results = [prepare::timeouts(&mut self.kernel, &self.ipvs), prepare::sysctls(&mut self.kernel, &self.ipvs)];
        let problems: Vec<String> = results.into_iter().filter_map(Result::err).map(|error| error.0).collect();
        let problem = (!problems.is_empty()).then(|| problems.join("; "));
        if let Some(problem) = problem.as_ref().filter(|_| problem != self.problem) {
            warn!("{}: {problem}", self.family);
        }
        self.problem = problem;
    }

    /// Everything, compared with what the kernel holds.
    fn full(&mut self, snapshot: &Snapshot<'_>, now: Instant) -> Result<(), SyncError> {
        self.ensure_host_state();
        let unusable = prepare::objects(&mut self.kernel, self.family)?;
        for (id, reason) in unusable.iter().filter(|(id, reason)| self.state.unusable.get(id) != Some(reason)) {
            let name = id.name(self.family);
            warn!("{}: cannot use ipset {name}, all that needs no entry of it is programmed: {reason}", self.family);
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
        self.state.settings = Some(settings);
        self.learn_formatting()
    }

    /// Looks once more at chains that were just repaired: what still reads differently is worded differently by this
    /// version of iptables, and no damage.
    fn learn_formatting(&mut self) -> Result<(), SyncError> {
        if self.formatting.has_suspects() {
            let tables = ObservedTables::read(self.kernel.tool.as_mut(), &[Table::Nat, Table::Filter], Vec::new())?;
            let expected = self.state.chains.iter().map(|(place, chain)| (*place, *chain));
            self.formatting.learn(expected, &tables);
        }
        Ok(())
    }

    /// Looks at all rules (0) or at all else (1), and says when it may be done again: a look that fails costs as much.
    fn check_again(&mut self, index: usize, now: Instant) -> Result<Option<String>, SyncError> {
        let before = cpu_time();
        let damage = if index == 0 { self.changed_rules() } else { self.changed_rest() };
        self.next_checks[index] = Some(now + budget_pause(cpu_time().saturating_sub(before)));
        damage
    }

    /// Some Service ports, compared with what the last sync left.
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
        let known = self.state.settings.clone().filter(|settings| settings.same_node(&self.config, snapshot));
        if let (Scope::Changed(changed), Some(settings)) = (scope, known) {
            match self.partial(snapshot, changed, &settings, now) {
                Ok(()) => {
                    self.quick.note(self.kernel.tool.as_mut(), false, true);
                    return Ok(self.stats(false));
                }
                // What was known of the kernel was wrong, or it was out of reach: a look at all of it tells.
                Err(error) => debug!("{}: looking at everything: {error}", self.family),
            }
        }
        // Until it is done, nothing is known for sure.
        self.state.settings = None;
        self.full(snapshot, now)?;
        self.next_checks = [None; 2];
        self.quick.note(self.kernel.tool.as_mut(), true, true);
        Ok(self.stats(true))
    }

    fn check_drift(&mut self, now: Instant) -> Result<Option<String>, SyncError> {
        // Each by itself: rules are few, but the tool may be slow.
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
        let damage = damage.map_err(|error| SyncError(format!("cannot ask for the state of tables: {error}")))?;
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
        // After a failure the next sync looks at everything, those that wait among it.
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
