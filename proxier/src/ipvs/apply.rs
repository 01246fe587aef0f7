//! Applies the desired state to the kernel, in an order that keeps traffic served.
//!
//! First what makes connections possible: virtual and real servers, set entries, addresses, rules that match the sets.
//! Then what ends them: addresses, servers, set entries.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::Instant;

use ipnet::IpNet;
use netfilter::ipset::{Entry, SetName};
use netfilter::iptables::Rule;
use netfilter::ipvs::{RealServer, ServerKey, VirtualServer};
use netfilter::kernel::{AddressOperation, IpSetError, IpvsError, LinkError, Operation, SetOperation};
use netfilter::{Owner, Restore, SavedChain};
use tracing::{debug, warn};

use super::Ipvs;
use super::graceful::{Deadlines, Retained};
use super::names::{DEVICE, IPVS_OUT_FILTER, SetId};
use super::plan::{self, CurrentServer, ServerSpec};
use super::rules::{self, CHAINS, ChainRenderer};
use super::settings::IpvsSettings;
use crate::backend::SyncError;
use crate::model::ServicePortName;
use crate::xtables::{ObservedTables, TableChain};

/// The owner of rules about single load balancers in a transaction.
const BARRED: Owner = 0;

/// The observed kernel state that is not recorded in the mode's state.
#[derive(Debug)]
pub(super) struct ObservedKernel {
    servers: HashMap<ServerKey, VirtualServer>,
    /// Addresses of the device with a foreign prefix length.
    odd: HashMap<IpAddr, IpNet>,
    tables: ObservedTables,
}

/// Pending operations, and the virtual servers before them.
#[derive(Debug, Default)]
struct ServerOperations {
    make: Vec<Operation>,
    end: Vec<Operation>,
    before: BTreeMap<ServerKey, Option<VirtualServer>>,
    /// Virtual servers with a failed operation.
    failed: BTreeSet<ServerKey>,
}

/// A set entry to add or delete.
#[derive(Clone, Copy, Debug)]
struct EntryChange {
    id: SetId,
    entry: Entry,
    held: bool,
}

/// Failures that concern no single Service port.
#[derive(Debug, Default)]
struct GeneralErrors(Vec<String>);

impl GeneralErrors {
    fn result(self) -> Result<(), SyncError> {
        let mut errors = self.0.into_iter();
        let Some(first) = errors.next() else { return Ok(()) };
        let more = errors.count();
        Err(SyncError(if more > 0 { format!("{first}; and {more} more") } else { first }))
    }
}

impl Ipvs {
    /// Reads the whole kernel state.
    pub(super) fn observe(&mut self) -> Result<ObservedKernel, SyncError> {
        let tables = self.read_tables()?;
        for id in SetId::existing(self.config.service_metrics) {
            let mut entries = Vec::new();
            if !self.state.is_usable(id) {
                self.state.entries[id as usize].observe(entries);
                continue;
            }
            self.kernel.sets.entries(set_name(id, self), &mut |entry| entries.push(entry))?;
            self.state.entries[id as usize].observe(entries);
        }
        let bound = self.kernel.bound(self.family)?;
        self.state.addresses.observe(bound.iter().map(IpNet::addr));
        let odd = bound.into_iter().filter(|net| *net != IpNet::from(net.addr()));
        let odd = odd.map(|net| (net.addr(), net)).collect();
        let servers = self.virtual_servers()?;
        self.state.mark_dirty(self.state.all_keys());
        self.state.mark_dirty(servers.keys().copied());
        Ok(ObservedKernel { servers, odd, tables })
    }

    /// Lists the virtual servers of the family.
    ///
    /// The kernel resumes a dump by the number of servers listed so far, so it skips some if the other family deletes
    /// others meanwhile: the list is repeated if a known server is missing.
    pub(super) fn virtual_servers(&mut self) -> Result<HashMap<ServerKey, VirtualServer>, SyncError> {
        let known = self.state.all_keys();
        let mut servers = HashMap::with_capacity(known.len());
        for _ in 0..2 {
            self.kernel.table.virtual_servers(self.family, &mut |server| _ = servers.insert(server.key, server))?;
            if known.iter().all(|key| servers.contains_key(key)) {
                break;
            }
        }
        Ok(servers)
    }

    /// Applies all pending changes.
    pub(super) fn apply(
        &mut self,
        settings: &IpvsSettings,
        observed: Option<&ObservedKernel>,
        now: Instant,
    ) -> Result<(), SyncError> {
        let mut errors = GeneralErrors::default();
        let mut work = self.plan_servers(settings, observed, now)?;
        let make = std::mem::take(&mut work.make);
        self.apply_servers(&make, &mut work, observed.is_some(), &mut errors)?;
        let [added, deleted] = self.set_changes(&mut errors);
        self.apply_sets(&added, &mut errors)?;
        let (bind, unbind) = self.state.addresses.take_changes();
        self.apply_addresses(bind.into_iter().map(|ip| AddressOperation::Add(ip.into())), &mut errors)?;
        self.write_rules(settings, observed)?;
        let as_bound = |ip: IpAddr| observed.and_then(|observed| observed.odd.get(&ip).copied()).unwrap_or(ip.into());
        self.apply_addresses(unbind.into_iter().map(|ip| AddressOperation::Delete(as_bound(ip))), &mut errors)?;
        let end = std::mem::take(&mut work.end);
        self.apply_servers(&end, &mut work, observed.is_some(), &mut errors)?;
        self.apply_sets(&deleted, &mut errors)?;
        errors.result()
    }

    /// Plans every dirty virtual server, and records its new state.
    fn plan_servers(
        &mut self,
        settings: &IpvsSettings,
        observed: Option<&ObservedKernel>,
        now: Instant,
    ) -> Result<ServerOperations, SyncError> {
        let mut work = ServerOperations::default();
        for key in self.state.take_dirty() {
            let desired = self.state.desired_server(key, settings);
            if desired.is_none() && self.is_excluded(key.address.ip()) {
                self.record(key, None, Deadlines::new(), now);
                continue;
            }
            let found = self.current_server(key, desired.as_ref(), observed)?;
            let (retained, draining) = (self.state.retained(key), self.state.draining.of(key));
            let retained = Retained::of(retained.as_deref());
            let plan = plan::plan(key, desired.as_ref(), found.as_ref(), draining, retained, now);
            if found.is_none() && desired.is_none() {
                self.record(key, None, Deadlines::new(), now);
                continue;
            }
            let before = found.map(|found| found.server);
            let rest = |server| ServerSpec { server, reals: [].into() };
            let spec = desired.clone().or(before.filter(|_| plan.stays).map(rest));
            self.record(key, spec, plan.draining, now);
            self.state.keep(key, desired.is_none() && plan.stays);
            work.before.insert(key, before);
            work.make.extend(plan.make);
            work.end.extend(plan.end);
        }
        Ok(work)
    }

    pub(super) fn is_excluded(&self, ip: IpAddr) -> bool {
        self.ipvs.exclude_cidrs.iter().any(|net| net.contains(&ip))
    }

    /// Records the new state of a virtual server.
    fn record(&mut self, key: ServerKey, spec: Option<ServerSpec>, draining: Deadlines, now: Instant) {
        self.state.uncertain.remove(&key);
        if spec.is_none() {
            self.state.keep(key, false);
        }
        self.state.set_spec(key, spec);
        self.state.draining.set(key, draining, now);
    }

    /// The current state of a virtual server; reads the kernel only if the recorded state does not suffice.
    fn current_server(
        &mut self,
        key: ServerKey,
        desired: Option<&ServerSpec>,
        observed: Option<&ObservedKernel>,
    ) -> Result<Option<CurrentServer>, SyncError> {
        let server = match observed {
            Some(observed) => observed.servers.get(&key).copied(),
            None => self.state.spec(key).map(|spec| spec.server),
        };
        let Some(server) = server else { return Ok(None) };
        if observed.is_none()
            && !self.state.uncertain.contains(&key)
            && let Some(spec) = self.state.spec(key)
        {
            let (retained, draining) = (self.state.retained(key), self.state.draining.of(key));
            if !plan::has_to_count(key, desired, spec, draining, Retained::of(retained.as_deref())) {
                return Ok(Some(CurrentServer::remembered(spec, draining)));
            }
        }
        // The kernel may list a server twice.
        let mut reals = BTreeMap::new();
        let each = &mut |real: RealServer, connections| _ = reals.insert(real.address, (real, Some(connections)));
        self.kernel.table.real_servers(key, each)?;
        Ok(Some(CurrentServer { server, reals: reals.into_values().collect() }))
    }

    fn apply_servers(
        &mut self,
        operations: &[Operation],
        work: &mut ServerOperations,
        observed: bool,
        errors: &mut GeneralErrors,
    ) -> Result<(), SyncError> {
        if operations.is_empty() {
            return Ok(());
        }
        let mut failures = Vec::new();
        self.kernel.table.apply(operations, &mut |index, error| failures.push((index, error)))?;
        for (index, error) in failures {
            let operation = &operations[index];
            let key = operation.key();
            let deletion = matches!(operation, Operation::DeleteVirtual(_) | Operation::DeleteReal(..));
            match error {
                IpvsError::NotFound(_) if deletion => continue,
                // Later failures follow from the first one.
                _ if work.failed.contains(&key) => {
                    self.distrust(operation, work.before.get(&key).copied().flatten());
                    continue;
                }
                IpvsError::Exists(_) | IpvsError::NotFound(_) if !observed => return Err(error.into()),
                IpvsError::Missing { .. }
                | IpvsError::NotPermitted
                | IpvsError::NoScheduler(_)
                | IpvsError::Failed(_) => return Err(error.into()),
                IpvsError::Exists(_) | IpvsError::NotFound(_) | IpvsError::Refused { .. } => {}
            }
            work.failed.insert(key);
            self.distrust(operation, work.before.get(&key).copied().flatten());
            let owner: Vec<ServicePortName> = self.state.claimants(key).first().cloned().into_iter().collect();
            self.reject(owner, error.to_string(), errors);
        }
        Ok(())
    }

    /// Corrects the recorded state of a virtual server after a failed operation.
    fn distrust(&mut self, operation: &Operation, before: Option<VirtualServer>) {
        let key = operation.key();
        self.state.uncertain.insert(key);
        match operation {
            Operation::AddVirtual(_) => self.state.set_spec(key, None),
            Operation::UpdateVirtual(_) | Operation::DeleteVirtual(_) => {
                let reals = self.state.spec(key).map_or_else(|| [].into(), |spec| spec.reals.clone());
                self.state.set_spec(key, before.map(|server| ServerSpec { server, reals }));
            }
            Operation::AddReal(_, real) => {
                let spec = self.state.spec(key).map(|spec| spec.without(real.address));
                self.state.set_spec(key, spec);
            }
            Operation::UpdateReal(..) | Operation::DeleteReal(..) => {}
        }
    }

    /// Records a refusal with the Service ports that need the object, or as a general error.
    fn reject(&mut self, owners: Vec<ServicePortName>, reason: String, errors: &mut GeneralErrors) {
        if owners.is_empty() {
            errors.0.push(reason);
            return;
        }
        for owner in owners {
            self.rejected.entry(owner).or_insert_with(|| reason.clone());
        }
    }

    /// The set entries to add, and those to delete.
    fn set_changes(&mut self, errors: &mut GeneralErrors) -> [Vec<EntryChange>; 2] {
        let (mut added, mut deleted, mut unusable) = (Vec::new(), Vec::new(), BTreeMap::new());
        for id in SetId::ALL {
            let (add, delete) = self.state.entries[id as usize].take_changes();
            if let Some(reason) = self.state.unusable.get(&id) {
                unusable.extend(add.into_iter().map(|entry| ((id, entry), reason.clone())));
                continue;
            }
            added.extend(add.into_iter().map(|entry| EntryChange { id, entry, held: true }));
            deleted.extend(delete.into_iter().map(|entry| EntryChange { id, entry, held: false }));
        }
        self.reject_entries(unusable, errors);
        [added, deleted]
    }

    fn apply_sets(&mut self, changes: &[EntryChange], errors: &mut GeneralErrors) -> Result<(), SyncError> {
        if changes.is_empty() {
            return Ok(());
        }
        let operations: Vec<SetOperation> = changes
            .iter()
            .map(|&EntryChange { id, entry, held }| {
                let name = set_name(id, self);
                if held { SetOperation::Add(name, entry) } else { SetOperation::Delete(name, entry) }
            })
            .collect();
        let (mut failures, mut refused) = (BTreeMap::new(), BTreeMap::new());
        self.kernel.sets.apply(&operations, &mut |index, error| _ = failures.insert(index, error))?;
        for (index, &EntryChange { id, entry, held }) in changes.iter().enumerate() {
            match failures.remove(&index) {
                None => self.state.entries[id as usize].set_present(entry, held),
                Some(IpSetError::NotFound(_)) if !held => self.state.entries[id as usize].set_present(entry, false),
                Some(error @ (IpSetError::Full { .. } | IpSetError::Refused { .. } | IpSetError::Mismatch(_))) => {
                    refused.insert((id, entry), error.to_string());
                }
                Some(error) => return Err(error.into()),
            }
        }
        self.reject_entries(refused, errors);
        Ok(())
    }

    /// Attributes refused entries to the Service ports that need them.
    ///
    /// All Service ports are visited once, however many entries were refused.
    fn reject_entries(&mut self, mut refused: BTreeMap<(SetId, Entry), String>, errors: &mut GeneralErrors) {
        if refused.is_empty() {
            return;
        }
        let mut rejected = Vec::new();
        self.state.for_each_desired(|name, desired| {
            let bound = desired.servers.iter().filter(|server| server.bound);
            let bound = bound.map(|server| (SetId::BoundIps, Entry::Ip(server.key.address.ip())));
            let own = desired.entries.iter().copied().chain(bound);
            rejected.extend(own.filter(|key| refused.contains_key(key)).map(|key| (name.clone(), key)));
        });
        for (name, key) in &rejected {
            if let Some(reason) = refused.get(key) {
                self.reject(vec![name.clone()], reason.clone(), errors);
            }
        }
        rejected.iter().for_each(|(_, key)| _ = refused.remove(key));
        errors.0.extend(refused.into_values());
    }

    fn apply_addresses(
        &mut self,
        operations: impl Iterator<Item = AddressOperation>,
        errors: &mut GeneralErrors,
    ) -> Result<(), SyncError> {
        let operations: Vec<AddressOperation> = operations.collect();
        if operations.is_empty() {
            return Ok(());
        }
        let mut failures = BTreeMap::new();
        self.kernel.links.apply(DEVICE, &operations, &mut |index, error| _ = failures.insert(index, error))?;
        for (index, operation) in operations.iter().enumerate() {
            let (ip, held) = match operation {
                AddressOperation::Add(net) => (net.addr(), true),
                AddressOperation::Delete(net) => (net.addr(), false),
            };
            match failures.remove(&index) {
                // Another program did it already.
                None | Some(LinkError::Exists { .. } | LinkError::NotFound { .. }) => {
                    self.state.addresses.set_present(ip, held);
                }
                Some(error @ LinkError::Refused { .. }) => {
                    let owners = self
                        .state
                        .ports_where(|desired| desired.servers.iter().any(|s| s.bound && s.key.address.ip() == ip));
                    self.reject(owners, error.to_string(), errors);
                }
                Some(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Writes the chains that differ.
    fn write_rules(&mut self, settings: &IpvsSettings, observed: Option<&ObservedKernel>) -> Result<(), SyncError> {
        let used = SetId::ALL.map(|id| self.state.is_used(id));
        if observed.is_none() && self.state.used == Some(used) && !self.state.barred.is_dirty() {
            return Ok(());
        }
        self.state.barred.take_changes();
        let barred: Vec<Rule> = self.state.barred.referenced().into_iter().map(rules::bar).collect();
        let (restore, chains) = self.restore(settings, observed, &barred);
        match self.write(&restore) {
            Ok(()) => self.state.chains = chains,
            Err((error, false)) => return Err(error),
            Err((error, true)) => {
                // All else works on a kernel without xt_ipvs.
                warn!("cannot keep the host from load balancers whose source ranges exclude it: {error}");
                let owners = self.state.ports_where(|desired| !desired.barred.is_empty());
                self.reject(owners, error.0, &mut GeneralErrors::default());
                let (restore, chains) = self.restore(settings, observed, &[]);
                self.write(&restore).map_err(|(error, _)| error)?;
                self.state.chains = chains;
            }
        }
        self.state.used = Some(used);
        Ok(())
    }

    fn restore(
        &self,
        settings: &IpvsSettings,
        observed: Option<&ObservedKernel>,
        barred: &[Rule],
    ) -> (Restore, HashMap<TableChain, SavedChain>) {
        let rules =
            ChainRenderer { settings, used: |id| self.state.is_used(id), usable: |id| self.state.is_usable(id) };
        let (mut restore, mut chains) = (Restore::default(), HashMap::new());
        for (table, chain) in CHAINS {
            let current = match observed {
                Some(observed) => observed.tables.chain(table, &chain),
                None => self.state.chains.get(&(table, chain)).copied(),
            };
            let print = if chain == IPVS_OUT_FILTER {
                restore.update(table, chain, barred, current, Some(BARRED))
            } else {
                restore.update(table, chain, &rules.of(table, chain), current, None)
            };
            chains.insert((table, chain), print);
        }
        for jump in observed.iter().flat_map(|observed| &observed.tables.missing_jumps) {
            restore.insert(jump.table, jump.from, &jump.rule);
        }
        (restore, chains)
    }

    /// Applies a transaction. The flag of an error: only rules about single load balancers were refused.
    fn write(&mut self, restore: &Restore) -> Result<(), (SyncError, bool)> {
        if restore.is_empty() {
            return Ok(());
        }
        debug!("{}: writing {} chains", self.family, restore.chains());
        self.kernel.tool.restore(restore).map_err(|error| {
            let barred = |line: &usize| restore.owner(*line) == Some(BARRED);
            let only = !error.lines.is_empty() && error.lines.iter().all(barred);
            (SyncError(error.message), only)
        })
    }
}

/// The name of a set in the mode's family.
fn set_name(id: SetId, mode: &Ipvs) -> SetName {
    SetName::new(id.name(mode.family))
}
