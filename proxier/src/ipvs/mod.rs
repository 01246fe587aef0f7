//! IPVS mode: virtual servers over netlink, addresses on a dummy device, ipsets, and a few iptables rules.
//!
//! In: snapshots. Out: the kernel's IPVS table, sets, addresses and chains of one family, and what was done.
//! Must not know: API objects, other modes. How a packet goes through all of it: `README.md` beside this.

mod cleanup;
mod drift;
mod expected;
mod graceful;
mod held;
mod kernel;
mod ledger;
mod names;
mod plan;
mod prepare;
mod render;
mod rules;
mod settings;
mod settle;
mod state;

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

pub use self::cleanup::{Remains, has_device, owned, was_here};
pub use self::expected::{Expected, ExpectedServer, expected};
pub use self::graceful::PATIENCE;
pub use self::held::{Held, HeldReal, HeldServer, HeldSet, Sets};
pub use self::kernel::Kernel;
pub use self::names::DEVICE;
pub use self::prepare::check;
use netfilter::IpFamily;
use netfilter::iptables::Table;
use netfilter::ipvs::Scheduler;
use netfilter::kernel::cpu_time;
use tracing::{debug, warn};

use self::settings::Settings;
use self::state::State;
use crate::addresses::NodeAddresses;
use crate::backend::{Backend, Rejected, SyncError, SyncStats, pause_after};
use crate::model::{Config, IpvsConfig, Scope, ServicePortName, Snapshot};
use crate::xtables::{Accepted, QuickCheck, Tables};

/// IPVS mode in one family.
#[derive(Debug)]
pub struct Ipvs {
    family: IpFamily,
    config: Config,
    ipvs: IpvsConfig,
    scheduler: Scheduler,
    kernel: Kernel,
    addresses: NodeAddresses,
    state: State,
    /// Service ports of which something was refused.
    rejected: HashMap<ServicePortName, String>,
    accepted: Accepted,
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
            state: State::default(),
            rejected: HashMap::new(),
            accepted: Accepted::default(),
            quick: QuickCheck::of(&rules::ENTRANCES),
            reading: Duration::ZERO,
            problem: None,
            next_checks: [None; 2],
        })
    }

    fn settings(&mut self, snapshot: &Snapshot<'_>) -> Settings {
        let addresses = self.addresses.update(self.kernel.node_addresses(self.family), snapshot.node);
        let random_fully = self.kernel.tool.random_fully();
        Settings::of(self.family, &self.config, self.scheduler, random_fully, snapshot, &addresses)
    }

    fn stats(&self, full: bool) -> SyncStats {
        let rejected =
            |(port, reason): (&ServicePortName, &String)| Rejected { port: port.clone(), reason: reason.clone() };
        let [no_local_internal, no_local_external] = self.state.lacking();
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
    fn provide(&mut self) {
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
        self.provide();
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
            self.state.want(name, None, false);
        }
        for name in snapshot.ports.keys() {
            self.state.want(name, render::render(snapshot, name, &settings), false);
        }
        let seen = self.observe()?;
        self.rejected.clear();
        self.settle(&settings, Some(&seen), now)?;
        self.state.settings = Some(settings);
        self.calibrate()
    }

    /// Looks once more at chains that were just repaired: what still reads differently is worded differently by this
    /// version of iptables, and no damage.
    fn calibrate(&mut self) -> Result<(), SyncError> {
        if self.accepted.has_suspects() {
            let tables = Tables::read(self.kernel.tool.as_mut(), &[Table::Nat, Table::Filter], Vec::new())?;
            let expected = self.state.chains.iter().map(|(place, chain)| (*place, *chain));
            self.accepted.settle(expected, &tables);
        }
        Ok(())
    }

    /// Looks at all rules (0) or at all else (1), and says when it may be done again: a look that fails costs as much.
    fn look_again(&mut self, index: usize, now: Instant) -> Result<Option<String>, SyncError> {
        let before = cpu_time();
        let damage = if index == 0 { self.changed_rules() } else { self.changed_rest() };
        self.next_checks[index] = Some(now + pause_after(cpu_time().saturating_sub(before)));
        damage
    }

    /// Some Service ports, compared with what the last sync left.
    fn some(
        &mut self,
        snapshot: &Snapshot<'_>,
        changed: &BTreeSet<ServicePortName>,
        settings: &Settings,
        now: Instant,
    ) -> Result<(), SyncError> {
        for name in changed {
            let again = self.rejected.remove(name).is_some();
            self.state.want(name, render::render(snapshot, name, settings), again);
        }
        self.settle(settings, None, now)
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
            match self.some(snapshot, changed, &settings, now) {
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

    fn damage(&mut self, now: Instant) -> Result<Option<String>, SyncError> {
        // Each by itself: rules are few, but the tool may be slow.
        for index in 0..self.next_checks.len() {
            let readable = index != 0 || self.quick.is_quiet(now, self.reading);
            if !readable || self.next_checks[index].is_some_and(|at| now < at) {
                continue;
            }
            let damage = self.look_again(index, now)?;
            if damage.is_some() {
                return Ok(damage);
            }
        }
        Ok(None)
    }

    fn quick_damage(&mut self, now: Instant) -> Result<Option<String>, SyncError> {
        let jumps = |table| rules::jumps().iter().filter(|jump| jump.table == table).count();
        let rules = |table| self.state.rules(table) + jumps(table);
        let damage = self.quick.look(self.kernel.tool.as_mut(), rules, now);
        let damage = damage.map_err(|error| SyncError(format!("cannot ask for the state of tables: {error}")))?;
        if damage.is_some() || !self.quick.is_due(now, self.reading) || self.next_checks[0].is_some_and(|at| now < at) {
            return Ok(damage);
        }
        self.quick.looked();
        self.look_again(0, now)
    }

    fn facts_changed(&mut self, snapshot: &Snapshot<'_>) -> bool {
        let addresses = self.addresses.update(self.kernel.node_addresses(self.family), snapshot.node);
        self.state.settings.as_ref().is_some_and(|settings| !settings.has_addresses(&self.config, &addresses))
    }

    fn cleanup(&mut self) -> Result<(), Vec<SyncError>> {
        self.state = State::default();
        let Kernel { tool, table, sets, links, .. } = &mut self.kernel;
        let rules = owned().remove(tool.as_mut(), &Table::ALL, None);
        let mut remains = Remains { table: Some(table.as_mut()), sets: sets.as_mut(), links: links.as_mut() };
        let errors: Vec<SyncError> =
            [rules, remains.remove(self.family, false)].into_iter().filter_map(Result::err).flatten().collect();
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    fn next_event(&self) -> Option<Instant> {
        // After a failure the next sync looks at everything, those that wait among it.
        self.state.settings.as_ref().and_then(|_| self.state.draining.next_look())
    }

    fn tick(&mut self, now: Instant) -> Result<(), SyncError> {
        let Some(settings) = self.state.settings.clone() else { return Ok(()) };
        let before = cpu_time();
        let keys = self.state.draining.keys();
        self.state.uncertain.extend(&keys);
        self.state.touch(keys);
        let result = self.settle(&settings, None, now);
        self.state.draining.looked(now, pause_after(cpu_time().saturating_sub(before)));
        result
    }
}
