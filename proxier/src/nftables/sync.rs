//! Syncs the table to a snapshot and attributes refusals to Service ports.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use netfilter::kernel::nftables::{NftError, Refusal};
use netfilter::nft::{Element, Key, Name, Operation, Transaction};
use tracing::debug;

use super::names::{self, Policy, SetId, SharedChain};
use super::numbers::NumberedEndpoints;
use super::owners::AddressOwners;
use super::plan::{DesiredElement, ElementIndex, OwnedTransaction, Plan, SetDefinitions};
use super::port_spec::PortSpec;
use super::programmed::{MemberChanges, ProgrammedPort, ProgrammedTable, SharedRefCounts};
use super::read::{ObservedTable, numbers_in};
use super::render::{Rendered, render, render_change, render_shared};
use super::settings::NftablesSettings;
use super::shared_chains::is_shared_chain;
use super::{Nftables, rules, structure};
use crate::backend::SyncError;
use crate::model::{CategorizedEndpoints, Destination, ServicePortName, Snapshot};

/// The number of attempts with the generation check before writing without it.
const MAX_ATTEMPTS: u32 = 3;
/// Maximum number of foreign chains in a message.
const MAX_FOREIGN_LOGGED: usize = 5;

/// A failed attempt, with the Service ports at fault if known.
#[derive(Debug)]
pub(super) struct TransactionFailure {
    pub ports: Vec<(ServicePortName, String)>,
    pub error: SyncError,
}

impl From<NftError> for TransactionFailure {
    fn from(error: NftError) -> Self {
        Self { ports: Vec::new(), error: error.into() }
    }
}

impl Nftables {
    /// Full sync: reads the whole table and writes the difference.
    pub(super) fn full_sync(
        &mut self,
        snapshot: &Snapshot<'_>,
        settings: &NftablesSettings,
    ) -> Result<(), TransactionFailure> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            let generation = self.kernel.generation()?;
            let found = self.observe(settings)?;
            let mut state = ProgrammedTable::new(settings.clone());
            let rejected = &self.rejected;
            let ports = || snapshot.ports.iter().filter(|(name, _)| !rejected.contains_key(*name));
            for (name, port) in ports() {
                let destinations: Vec<Destination> = port.destinations().collect();
                state.owners.replace(name, &[], &destinations, |_| ());
            }
            for (name, _) in ports() {
                let current = |spec: &PortSpec, policy, _: &[SocketAddr]| numbers_in(&found.elements, spec, policy);
                let programmed = programmed(name, snapshot, &state.owners, settings.hashes, current);
                state.replace(name, programmed);
            }
            let names: Vec<&ServicePortName> = ports().map(|(name, _)| name).collect();
            // After three conflicts, write without the generation check; drift detection repairs the rest.
            let checked = attempts < MAX_ATTEMPTS;
            let written = if found.table.is_none() {
                self.build(&mut state, &names, generation, checked).map(|generation| (generation, None))
            } else {
                let plan = whole(&mut state, &self.sets, found, &names);
                let written = self.write(&plan, &state, checked.then_some(generation), Some(generation));
                written.map(|generation| (generation, Some(plan.last)))
            };
            match written {
                Err(WriteError::Changed) if checked => {}
                Err(error) => return Err(error.failure()),
                Ok((generation, unused)) => {
                    state.generation = generation;
                    self.state = Some(state);
                    unused.iter().for_each(|unused| self.remove_unused(unused));
                    return Ok(());
                }
            }
        }
    }

    /// Partial sync: writes the changes of these Service ports.
    pub(super) fn partial_sync(
        &mut self,
        snapshot: &Snapshot<'_>,
        changed: &BTreeSet<ServicePortName>,
        mut state: ProgrammedTable,
    ) -> Result<(), TransactionFailure> {
        let mut affected: BTreeSet<ServicePortName> = changed.clone();
        for name in changed {
            let port = snapshot.ports.get(name).filter(|_| !self.rejected.contains_key(name));
            let old = state.ports.get(name).map_or(Box::default(), |port| port.destinations.clone());
            let new: Vec<Destination> = port.into_iter().flat_map(|port| port.destinations()).collect();
            state.owners.replace(name, &old, &new, |other| _ = affected.insert(other.clone()));
        }
        let (mut held, mut wanted, mut members) = (ElementIndex::default(), Vec::new(), MemberChanges::default());
        let settings = state.settings.rendering();
        for name in &affected {
            let programmed = if self.rejected.contains_key(name) {
                None
            } else {
                let current = |_: &PortSpec, policy, _: &[SocketAddr]| {
                    state.ports.get(name).map_or(NumberedEndpoints::default(), |p| p.spec.endpoints(policy).clone())
                };
                programmed(name, snapshot, &state.owners, state.settings.hashes, current)
            };
            let old = state.ports.get(name).map(|old| &old.spec);
            let [old, new] = render_change(name, [old, programmed.as_ref().map(|new| &new.spec)], &settings);
            state.replace(name, programmed);
            if let Some(old) = old {
                state.counts.subtract(&old, &mut members);
                old.elements.into_iter().for_each(|(set, element)| held.insert(set, element));
            }
            if let Some(Rendered { elements, .. }) = new.inspect(|new| state.counts.add(new, &mut members)) {
                wanted.extend(elements.into_iter().map(|(set, element)| DesiredElement {
                    owner: Some(name),
                    set,
                    element,
                }));
            }
        }
        let [gone, new] = state.counts.settle(members);
        gone.into_iter().for_each(|(set, key)| held.insert(set, Element::member(key)));
        wanted.extend(new.into_iter().map(|(set, key)| DesiredElement {
            owner: None,
            set,
            element: Element::member(key),
        }));
        let mut plan = Plan::on(names::table(self.family));
        grow_and_shrink(&mut plan, &mut state);
        plan.elements(&self.sets, held, wanted);
        let known = state.generation;
        let generation = self.write(&plan, &state, None, known).map_err(WriteError::failure)?;
        state.generation = generation;
        self.state = Some(state);
        self.remove_unused(&plan.last);
        Ok(())
    }

    /// Applies the first two parts of a plan.
    ///
    /// Returns the generation ID if it was `known` before and no other process has changed nf_tables since.
    fn write(
        &mut self,
        plan: &Plan<'_>,
        state: &ProgrammedTable,
        expected: Option<u32>,
        known: Option<u32>,
    ) -> Result<Option<u32>, WriteError> {
        let batches = self.send(plan, state, expected)?;
        if batches == 0 { Ok(known) } else { Ok(self.generation_after(known, batches)?) }
    }

    /// Applies the first two parts of a plan. Returns the number of batches.
    pub(super) fn send(
        &mut self,
        plan: &Plan<'_>,
        state: &ProgrammedTable,
        expected: Option<u32>,
    ) -> Result<u32, WriteError> {
        let mut batches = 0;
        let OwnedTransaction { transaction, .. } = &plan.first;
        if !transaction.is_empty() {
            batches +=
                self.kernel.apply(transaction, expected).map_err(|error| attribute(&plan.first, state, error))?;
        }
        if !plan.later.is_empty() {
            batches +=
                self.kernel.apply(&plan.later, expected.filter(|_| batches == 0)).map_err(|error| match error {
                    NftError::Changed => WriteError::Changed,
                    error => error.into(),
                })?;
        }
        Ok(batches)
    }

    /// The generation ID, if it was `known` before these batches and no other process has changed nf_tables since.
    pub(super) fn generation_after(&mut self, known: Option<u32>, batches: u32) -> Result<Option<u32>, NftError> {
        let generation = self.kernel.generation()?;
        Ok(known.filter(|known| known.wrapping_add(batches) == generation).map(|_| generation))
    }

    /// Deletes unused chains and sets. Deletions that the kernel still refuses are retried later.
    fn remove_unused(&mut self, last: &Transaction) {
        if last.is_empty() {
            return;
        }
        match (self.kernel.apply(last, None), &mut self.state) {
            (Ok(batches), Some(state)) => {
                state.counts.chains.forget_idle();
                state.generation = state.generation.map(|generation| generation.wrapping_add(batches));
            }
            (Ok(_), None) => {}
            (Err(error), state) => {
                self.failed_deletions += 1;
                debug!("cannot delete unused chains and sets, retrying: {error}");
                // Unused objects that were found, not created, are only known again after a full read.
                if let Some(state) = state.as_mut().filter(|state| !state.counts.chains.has_idle()) {
                    state.generation = None;
                }
            }
        }
    }

    /// Retries the deletions that `remove_unused` could not do.
    pub(super) fn retry_deletions(&mut self) {
        let Some(state) = &self.state else { return };
        let mut plan = Plan::on(names::table(self.family));
        unused(&mut plan, state);
        self.remove_unused(&plan.last);
    }

    /// Describes how the table differs from what was written: the first operation that repairs it, the number of
    /// further operations, and chains of other programs.
    ///
    /// # Errors
    /// If the table cannot be read.
    pub(super) fn drift(&mut self) -> Result<Option<String>, NftError> {
        let Some(mut state) = self.state.take() else { return Ok(None) };
        let found = self.observe(&state.settings);
        let mut names: Vec<ServicePortName> = state.ports.keys().cloned().collect();
        names.sort_unstable();
        let names: Vec<&ServicePortName> = names.iter().collect();
        let plan = found.map(|found| whole(&mut state, &self.sets, found, &names));
        self.state = Some(state);
        let plan = plan?;
        let all = [&plan.first.transaction, &plan.later, &plan.last];
        let mut operations = all.into_iter().flat_map(Transaction::operations);
        let Some(first) = operations.next() else { return Ok(None) };
        let first: String = first.of(&names::table(self.family)).to_string().chars().take(200).collect();
        let mut text = format!("repair takes `{first}`");
        let more = operations.count();
        if more > 0 {
            text += &format!(" and {more} more operations");
        }
        let foreign: Vec<&str> = foreign_chains(&plan.last).take(MAX_FOREIGN_LOGGED).collect();
        if !foreign.is_empty() {
            text += &format!("; chains of other programs are in the table: {}", foreign.join(", "));
        }
        Ok(Some(text))
    }
}

/// The chains that a plan deletes and that no layout of kube-proxy has.
fn foreign_chains(last: &Transaction) -> impl Iterator<Item = &str> {
    last.operations().iter().filter_map(|operation| match operation {
        Operation::DeleteChain(name) if !is_shared_chain(name) => Some(&**name),
        _ => None,
    })
}

/// Plans a full sync from the observed table.
fn whole<'a>(
    state: &mut ProgrammedTable,
    sets: &SetDefinitions,
    found: ObservedTable,
    names: &[&'a ServicePortName],
) -> Plan<'a> {
    let mut plan = Plan::on(names::table(state.settings.family));
    let ObservedTable { table, conflict, elements } = found;
    if conflict.is_some() {
        plan.first.push(Operation::DeleteTable, None);
    }
    let (mut wanted, mut members) = (Vec::new(), MemberChanges::default());
    let node_port_ips = state.settings.node_port_ips.iter().flatten();
    for ip in node_port_ips {
        let element = Element::member(Key::default().address(*ip).build());
        wanted.push(DesiredElement { owner: None, set: SetId::NodePortIps, element });
    }
    state.counts = SharedRefCounts::new();
    let settings = state.settings.rendering();
    for name in names {
        let Some(port) = state.ports.get(*name) else { continue };
        let rendered = render(name, &port.spec, &settings);
        state.counts.add(&rendered, &mut members);
        let of_port = rendered.elements.into_iter();
        wanted.extend(of_port.map(|(set, element)| DesiredElement { owner: Some(*name), set, element }));
    }
    let [_, new] = state.counts.settle(members);
    wanted.extend(new.into_iter().map(|(set, key)| DesiredElement { owner: None, set, element: Element::member(key) }));
    let (chains, affinity_sets) = state.counts.chains.take_new();
    let read = table.as_ref().filter(|_| conflict.is_none());
    structure::plan(&mut plan, read, &state.settings, sets, &chains, affinity_sets.end);
    plan.elements(sets, elements, wanted);
    plan
}

fn grow_and_shrink(plan: &mut Plan<'_>, state: &mut ProgrammedTable) {
    let (chains, affinity_sets) = state.counts.chains.take_new();
    structure::grow(plan, &state.settings, chains.into_iter(), affinity_sets);
    unused(plan, state);
}

fn unused(plan: &mut Plan<'_>, state: &ProgrammedTable) {
    let (chains, affinity_sets) = state.counts.chains.idle();
    structure::shrink(plan, &state.settings, chains, affinity_sets);
}

/// The desired state of a Service port, if it exists. `hashes`: the kernel can choose endpoints by a hash.
pub(super) fn programmed(
    name: &ServicePortName,
    snapshot: &Snapshot<'_>,
    owners: &AddressOwners,
    hashes: bool,
    current: impl Fn(&PortSpec, Policy, &[SocketAddr]) -> NumberedEndpoints,
) -> Option<ProgrammedPort> {
    let port = snapshot.ports.get(name)?;
    let endpoints = snapshot.endpoints.of(name);
    let categorized = CategorizedEndpoints::of(&endpoints, port, snapshot.node);
    let owns = |destination| owners.owns(name, destination);
    let spec = PortSpec::of((name, port), &categorized, hashes, owns, current);
    Some(ProgrammedPort { spec, destinations: port.destinations().collect() })
}

/// Why a write failed.
pub(super) enum WriteError {
    /// nf_tables changed meanwhile: the table must be read again.
    Changed,
    /// The write was refused.
    Failed(TransactionFailure),
}

impl From<NftError> for WriteError {
    fn from(error: NftError) -> Self {
        Self::Failed(error.into())
    }
}

impl WriteError {
    fn failure(self) -> TransactionFailure {
        match self {
            Self::Changed => NftError::Changed.into(),
            Self::Failed(failure) => failure,
        }
    }
}

/// Attributes refused operations to the Service ports that own them.
fn attribute(plan: &OwnedTransaction<'_>, state: &ProgrammedTable, error: NftError) -> WriteError {
    let refusals: &[Refusal] = match &error {
        NftError::Changed => return WriteError::Changed,
        NftError::Refused(refusals) => refusals,
        _ => &[],
    };
    let mut ports: BTreeMap<ServicePortName, String> = BTreeMap::new();
    let mut elsewhere = false;
    for refusal in refusals {
        let owners = refusal.operation.map_or(Vec::new(), |operation| match plan.owner(operation) {
            Some(owner) => vec![owner.clone()],
            None => chain_of(&plan.transaction.operations()[operation]).map_or(Vec::new(), |chain| users(state, chain)),
        });
        elsewhere |= owners.is_empty();
        for owner in owners {
            ports.entry(owner).or_insert_with(|| refusal.to_string());
        }
    }
    // If an unowned operation is refused, leaving out Service ports does not help.
    let ports = if elsewhere { Vec::new() } else { ports.into_iter().collect() };
    WriteError::Failed(TransactionFailure { ports, error: error.into() })
}

/// The chain that an operation creates or fills.
fn chain_of(operation: &Operation) -> Option<&Name> {
    match operation {
        Operation::AddChain(chain) => Some(&chain.name),
        Operation::AddRule { chain, .. } | Operation::FlushChain(chain) => Some(chain),
        _ => None,
    }
}

/// The Service ports that use a chain.
fn users(state: &ProgrammedTable, chain: &Name) -> Vec<ServicePortName> {
    let settings = state.settings.rendering();
    let needs = |shared: &SharedChain| rules::needs(*shared).0.iter().any(|needed| needed.to_name() == *chain);
    let uses = |name: &ServicePortName, spec: &PortSpec| render_shared(name, spec, &settings).chains.iter().any(needs);
    let users = state.ports.iter().filter(|(name, port)| uses(name, &port.spec));
    users.map(|(name, _)| name.clone()).collect()
}
