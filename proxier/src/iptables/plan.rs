//! Plans the transactions that turn the kernel state into the snapshot's, writing only differences.
//!
//! A transaction commits each table as a whole. Where the tool takes quadratic time in the number of chains, a large
//! change is split: first the Service ports' own chains, each port's within one transaction, then the shared chains
//! that jump to them, then deletions. So packets meet every Service port in its old or its new state.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use netfilter::iptables::{Chain, Rule, Table};
use netfilter::{Owner, Restore, SavedChain};

use super::base::{self, ENSURED};
use super::names;
use super::programmed::{ProgrammedChains, ProgrammedPort, SyncOutcome};
use super::render::{PortRules, SHARED, SharedRules};
use super::settings::{IptablesSettings, LARGE_CLUSTER_ENDPOINTS};
use crate::model::{CategorizedEndpoints, ServicePort, ServicePortName, Snapshot};
use crate::xtables::ObservedTables;

/// The index in [`SHARED`] of nat's KUBE-SERVICES, which ends with the node port jump.
pub(super) const NAT_SERVICES: usize = 4;

/// Changed Service ports with their owner numbers and their rules in shared chains.
pub(super) type RenderedPorts<'a> = BTreeMap<&'a ServicePortName, (Owner, SharedRules)>;

/// A transaction and the Service ports that its owner numbers index.
#[derive(Debug)]
pub(super) struct OwnedRestore<'a, 'b> {
    pub restore: &'b Restore,
    pub owners: &'b [&'a ServicePortName],
}

/// The input of a plan.
#[derive(Clone, Copy, Debug)]
pub(super) struct PlanInput<'a> {
    pub snapshot: &'a Snapshot<'a>,
    pub settings: &'a IptablesSettings,
    pub state: &'a ProgrammedChains,
    /// The kernel state; if present, everything is compared.
    pub observed: Option<&'a ObservedTables>,
    /// The Service ports in scope, if not all.
    pub changed: Option<&'a BTreeSet<ServicePortName>>,
    /// Service ports that the tool refuses and that get no rules.
    pub rejected: &'a HashMap<ServicePortName, String>,
    /// Chains that foreign rules refer to, which can be emptied but not deleted.
    pub referenced: &'a HashMap<Chain, String>,
    /// The number of chains from which a transaction is split.
    pub batch: usize,
    /// Whether the tool changes chains rule by rule.
    pub edits_rules: bool,
    /// How long deletions of stale chains may be postponed in large clusters.
    pub deletion_interval: Duration,
    pub now: Instant,
}

/// Plans a sync and passes each transaction to `apply`, in order.
///
/// # Errors
/// The first error of `apply`, which ends the plan.
pub(super) fn plan<E>(
    input: PlanInput<'_>,
    apply: impl FnMut(OwnedRestore<'_, '_>) -> Result<(), E>,
) -> Result<SyncOutcome, E> {
    let mut planner = Planner {
        large: input.is_large(),
        input,
        apply,
        owners: Vec::new(),
        restore: Restore::default(),
        outcome: SyncOutcome { full: input.changed.is_none(), ..SyncOutcome::default() },
        stale: Vec::new(),
    };
    match input.changed {
        None => planner.all()?,
        Some(changed) => planner.changed(changed)?,
    }
    planner.delete_stale()?;
    planner.flush()?;
    Ok(planner.outcome)
}

impl<'a> PlanInput<'a> {
    fn programmable(self) -> impl Iterator<Item = (&'a ServicePortName, &'a ServicePort)> {
        let rejected = self.rejected;
        self.snapshot.ports.iter().filter(move |(name, _)| !rejected.contains_key(name))
    }

    fn is_large(&self) -> bool {
        let count = |name| self.snapshot.endpoints.of(name).len();
        let total = match self.changed {
            None => {
                let mut total = 0;
                let mut ports = self.snapshot.ports.keys();
                // Only whether it exceeds the limit matters.
                while total <= LARGE_CLUSTER_ENDPOINTS
                    && let Some(name) = ports.next()
                {
                    total += count(name);
                }
                total
            }
            Some(changed) => {
                let before = |name| self.state.ports.get(name).map_or(0, |port| port.endpoints as usize);
                let old: usize = changed.iter().map(before).sum();
                let new: usize = changed.iter().filter(|name| self.snapshot.ports.contains_key(*name)).map(count).sum();
                self.state.totals.endpoints - old + new
            }
        };
        total > LARGE_CLUSTER_ENDPOINTS
    }
}

pub(super) struct Planner<'a, F> {
    pub(super) input: PlanInput<'a>,
    large: bool,
    apply: F,
    owners: Vec<&'a ServicePortName>,
    pub(super) restore: Restore,
    pub(super) outcome: SyncOutcome,
    stale: Vec<Chain>,
}

impl<'a, F, E> Planner<'a, F>
where
    F: FnMut(OwnedRestore<'_, '_>) -> Result<(), E>,
{
    /// Plans a full sync against the observed tables.
    fn all(&mut self) -> Result<(), E> {
        let nothing = ObservedTables::default();
        let observed = self.input.observed.unwrap_or(&nothing);
        self.base(observed);
        let mut shared: [Vec<(Owner, Rule)>; SHARED.len()] = Default::default();
        let mut active = HashSet::new();
        for (name, port) in self.input.programmable() {
            let (owner, programmed, rules) = self.port(name, port, |chain| observed.chain(Table::Nat, chain));
            active.extend(programmed.own.iter().map(|(chain, _)| *chain));
            for (all, rules) in shared.iter_mut().zip(rules) {
                all.extend(rules.into_iter().map(|rule| (owner, rule)));
            }
            self.outcome.ports.push((name.clone(), Some(programmed)));
            self.flush_if_large()?;
        }
        for (index, rules) in shared.iter().enumerate() {
            let (table, chain) = SHARED[index];
            self.shared(index, rules, observed.chain(table, &chain));
        }
        for jump in &observed.missing_jumps {
            self.restore.insert(jump.table, jump.from, &jump.rule);
        }
        let ours = observed.table(Table::Nat).chains.keys().filter(|chain| names::is_of_service(chain));
        self.stale.extend(ours.filter(|chain| !active.contains(*chain)));
        Ok(())
    }

    /// Plans a partial sync against what the last sync wrote.
    fn changed(&mut self, changed: &'a BTreeSet<ServicePortName>) -> Result<(), E> {
        let mut dirty = [false; SHARED.len()];
        let none = ProgrammedPort::default();
        let mut rendered: RenderedPorts<'_> = BTreeMap::new();
        for name in changed {
            let old = self.input.state.ports.get(name);
            let port = self.input.snapshot.ports.get(name).filter(|_| !self.input.rejected.contains_key(name));
            let new = port.map(|port| {
                let (owner, programmed, rules) = self.port(name, port, |chain| old?.own(chain));
                rendered.insert(name, (owner, rules));
                programmed
            });
            let (before, after) = (old.unwrap_or(&none), new.as_ref().unwrap_or(&none));
            for (dirty, (before, after)) in dirty.iter_mut().zip(before.shared.iter().zip(&after.shared)) {
                *dirty |= before != after;
            }
            self.stale.extend(before.own.iter().map(|(chain, _)| *chain).filter(|chain| after.own(chain).is_none()));
            if old.is_some() || new.is_some() {
                self.outcome.ports.push((name.clone(), new));
            }
            self.flush_if_large()?;
        }
        for (index, dirty) in dirty.iter_mut().enumerate() {
            *dirty = *dirty && !self.edit_shared(index, changed, &rendered);
        }
        if dirty.contains(&true) {
            self.rewrite_shared(&dirty);
        }
        Ok(())
    }

    /// Renders one Service port and writes its chains that differ from `current`.
    fn port(
        &mut self,
        name: &'a ServicePortName,
        port: &ServicePort,
        current: impl Fn(&Chain) -> Option<SavedChain>,
    ) -> (Owner, ProgrammedPort, SharedRules) {
        let owner = Owner::try_from(self.owners.len()).unwrap_or(Owner::MAX);
        self.owners.push(name);
        let endpoints = self.input.snapshot.endpoints.of(name);
        let categorized = CategorizedEndpoints::of(&endpoints, port, self.input.snapshot.node);
        let mut port_rules = PortRules::new(name, port, &categorized, self.input.settings, !self.large);
        let shared = port_rules.shared();
        let mut own = Vec::with_capacity(categorized.reachable.len() + 4);
        let restore = &mut self.restore;
        port_rules.own(|chain, rules| {
            let fingerprint = restore.update(Table::Nat, chain, &rules, current(&chain), Some(owner));
            own.push((chain, fingerprint));
        });
        own.sort_unstable_by_key(|(chain, _)| *chain);
        let programmed = ProgrammedPort {
            own: own.into(),
            shared: std::array::from_fn(|index| SavedChain::of(&shared[index])),
            endpoints: u32::try_from(endpoints.len()).unwrap_or(u32::MAX),
            lacks_internal_local: port_rules.lacks_internal_local(),
            lacks_external_local: port_rules.lacks_external_local(),
        };
        (owner, programmed, shared)
    }

    /// Rewrites the shared chains whose content changed.
    fn rewrite_shared(&mut self, dirty: &[bool; SHARED.len()]) {
        let mut shared: [Vec<(Owner, Rule)>; SHARED.len()] = Default::default();
        for (name, port) in self.input.programmable() {
            let endpoints = self.input.snapshot.endpoints.of(name);
            let categorized = CategorizedEndpoints::of(&endpoints, port, self.input.snapshot.node);
            let rules = PortRules::new(name, port, &categorized, self.input.settings, !self.large).shared();
            let owner = Owner::try_from(self.owners.len()).unwrap_or(Owner::MAX);
            self.owners.push(name);
            for (index, rules) in rules.into_iter().enumerate().filter(|(index, _)| dirty[*index]) {
                shared[index].extend(rules.into_iter().map(|rule| (owner, rule)));
            }
        }
        for (index, rules) in shared.iter().enumerate().filter(|(index, _)| dirty[*index]) {
            self.shared(index, rules, None);
        }
    }

    /// Writes one shared chain with all Service ports' rules, if it differs.
    fn shared(&mut self, index: usize, rules: &[(Owner, Rule)], current: Option<SavedChain>) {
        let (table, chain) = SHARED[index];
        let tail = if index == NAT_SERVICES { base::node_port_dispatch(self.input.settings) } else { Vec::new() };
        let fingerprint = SavedChain::of(rules.iter().map(|(_, rule)| rule).chain(&tail));
        if current != Some(fingerprint) {
            self.restore.declare(table, chain, None);
            for (owner, rule) in rules {
                self.restore.append(table, chain, rule, Some(*owner));
            }
            for rule in &tail {
                self.restore.append(table, chain, rule, None);
            }
        }
        self.outcome.fixed.push(((table, chain), fingerprint));
    }

    fn base(&mut self, observed: &ObservedTables) {
        for (table, chain, rules) in base::chains(self.input.settings) {
            let fingerprint = self.restore.update(table, chain, &rules, observed.chain(table, &chain), None);
            self.outcome.fixed.push(((table, chain), fingerprint));
        }
        let written: HashSet<_> = self.outcome.fixed.iter().map(|(chain, _)| *chain).collect();
        for (table, chain) in ENSURED {
            if observed.chain(table, &chain).is_none() && !written.contains(&(table, chain)) {
                self.restore.declare(table, chain, None);
            }
        }
    }

    /// Deletes stale chains; in large clusters at most once per interval, like kube-proxy.
    fn delete_stale(&mut self) -> Result<(), E> {
        let state = self.input.state;
        let recently =
            state.last_deletion.is_some_and(|at| self.input.now.duration_since(at) <= self.input.deletion_interval);
        if self.large && recently {
            self.outcome.retired = std::mem::take(&mut self.stale);
            return Ok(());
        }
        self.outcome.deleted = true;
        if !self.outcome.full {
            let revived: HashSet<Chain> = self
                .outcome
                .ports
                .iter()
                .filter_map(|(_, port)| port.as_ref())
                .flat_map(|port| port.own.iter().map(|(chain, _)| *chain))
                .collect();
            self.stale.extend(state.retired.iter().filter(|chain| !revived.contains(*chain)));
        }
        if self.restore.chains() + self.stale.len() > self.input.batch {
            self.flush()?;
        }
        let mut stale = std::mem::take(&mut self.stale);
        names::sort_for_deletion(&mut stale);
        for chain in stale {
            if self.input.referenced.contains_key(&chain) {
                let observed = self.input.observed.and_then(|observed| observed.chain(Table::Nat, &chain));
                if observed.is_none_or(|chain| chain.rules > 0) {
                    self.restore.declare(Table::Nat, chain, None);
                }
                self.outcome.emptied.push(chain);
            } else {
                self.restore.delete(Table::Nat, chain);
            }
            self.flush_if_large()?;
        }
        Ok(())
    }

    fn flush_if_large(&mut self) -> Result<(), E> {
        if self.restore.chains() >= self.input.batch { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), E> {
        if self.restore.is_empty() {
            return Ok(());
        }
        (self.apply)(OwnedRestore { restore: &self.restore, owners: &self.owners })?;
        for table in Table::ALL {
            self.outcome.written[table as usize] += self.restore.rules(table);
        }
        self.restore = Restore::default();
        Ok(())
    }
}
