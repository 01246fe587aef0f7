//! What the last successful sync wrote, as fingerprints instead of rules.
//!
//! Kept small: 10,000 Services with 10 endpoints each have 120,000 chains.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Instant;

use netfilter::SavedChain;
use netfilter::iptables::{Chain, Table};

use super::base::node_port_dispatch;
use super::names;
use super::render::SHARED;
use super::settings::IptablesSettings;
use crate::model::ServicePortName;
use crate::xtables::TableChain;

/// A programmed Service port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ProgrammedPort {
    /// Its own chains, sorted by name.
    pub own: Box<[(Chain, SavedChain)]>,
    /// Fingerprints of its rules in each of the chains of [`SHARED`].
    pub shared: [SavedChain; SHARED.len()],
    /// Number of endpoints, usable or not.
    pub endpoints: u32,
    pub lacks_internal_local: bool,
    pub lacks_external_local: bool,
}

impl ProgrammedPort {
    pub fn own(&self, chain: &Chain) -> Option<SavedChain> {
        let at = self.own.binary_search_by(|(name, _)| name.cmp(chain)).ok()?;
        Some(self.own[at].1)
    }

    fn rules(&self, table: Table) -> usize {
        let shared = SHARED.iter().zip(&self.shared).filter(|((of, _), _)| *of == table);
        let own = self.own.iter().filter(|_| table == Table::Nat).map(|(_, chain)| chain.rules);
        shared.map(|(_, chain)| chain.rules).chain(own).map(|n| n as usize).sum()
    }
}

/// Totals over all Service ports, updated incrementally.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub endpoints: usize,
    pub filter_rules: usize,
    pub nat_rules: usize,
    pub no_local_internal: usize,
    pub no_local_external: usize,
}

impl Totals {
    fn add(&mut self, port: &ProgrammedPort) {
        self.endpoints += port.endpoints as usize;
        self.filter_rules += port.rules(Table::Filter);
        self.nat_rules += port.rules(Table::Nat);
        self.no_local_internal += usize::from(port.lacks_internal_local);
        self.no_local_external += usize::from(port.lacks_external_local);
    }

    fn subtract(&mut self, port: &ProgrammedPort) {
        self.endpoints -= port.endpoints as usize;
        self.filter_rules -= port.rules(Table::Filter);
        self.nat_rules -= port.rules(Table::Nat);
        self.no_local_internal -= usize::from(port.lacks_internal_local);
        self.no_local_external -= usize::from(port.lacks_external_local);
    }
}

/// The chains that this mode has written.
#[derive(Debug, Default)]
pub(super) struct ProgrammedChains {
    /// In order: a change of a shared chain passes over all of them.
    pub ports: BTreeMap<ServicePortName, ProgrammedPort>,
    /// The chains that do not depend on Services, and the shared ones.
    pub fixed: HashMap<(Table, Chain), SavedChain>,
    /// Stale chains whose deletion is postponed (large clusters).
    pub retired: HashSet<Chain>,
    pub last_deletion: Option<Instant>,
    pub settings: Option<IptablesSettings>,
    pub totals: Totals,
}

/// The changes of a sync.
#[derive(Debug, Default)]
pub(super) struct SyncOutcome {
    /// Whether `ports` and `fixed` are complete.
    pub full: bool,
    pub ports: Vec<(ServicePortName, Option<ProgrammedPort>)>,
    pub fixed: Vec<((Table, Chain), SavedChain)>,
    pub retired: Vec<Chain>,
    /// Stale chains that had to be kept, emptied.
    pub emptied: Vec<Chain>,
    /// Whether stale chains were deleted, including postponed ones.
    pub deleted: bool,
    pub written: [usize; Table::ALL.len()],
}

impl ProgrammedChains {
    /// Records the changes of a sync.
    pub fn commit(&mut self, outcome: SyncOutcome, settings: IptablesSettings, now: Instant) {
        if outcome.full {
            self.ports.clear();
            self.fixed.clear();
            self.totals = Totals::default();
        }
        if outcome.deleted {
            self.retired.clear();
            self.last_deletion = Some(now);
        }
        self.retired.extend(outcome.retired);
        for (name, programmed) in outcome.ports {
            let old = match programmed {
                Some(new) => {
                    for (chain, _) in &new.own {
                        self.retired.remove(chain);
                    }
                    self.totals.add(&new);
                    self.ports.insert(name, new)
                }
                None => self.ports.remove(&name),
            };
            if let Some(old) = old {
                self.totals.subtract(&old);
            }
        }
        self.fixed.extend(outcome.fixed);
        self.settings = Some(settings);
    }

    /// The number of this mode's rules in a table.
    pub fn rules(&self, table: Table) -> usize {
        let of_ports = match table {
            Table::Filter => self.totals.filter_rules,
            Table::Nat => self.totals.nat_rules,
            Table::Mangle => 0,
        };
        // Rules in shared chains are counted by Service port, except the last ones of nat's KUBE-SERVICES.
        let others = self.fixed.iter().filter(|(chain, _)| chain.0 == table && !SHARED.contains(chain));
        let tail = self.settings.as_ref().filter(|_| table == Table::Nat).map(node_port_dispatch);
        of_ports + others.map(|(_, chain)| chain.rules as usize).sum::<usize>() + tail.map_or(0, |rules| rules.len())
    }

    /// All expected chains with their fingerprints.
    pub fn expected_chains(&self) -> impl Iterator<Item = (TableChain, SavedChain)> {
        let canary = |table| ((table, names::CANARY), SavedChain::default());
        let fixed = self.fixed.iter().map(|(place, chain)| (*place, *chain));
        let own = self
            .ports
            .values()
            .flat_map(|port| port.own.iter())
            .map(|(chain, fingerprint)| ((Table::Nat, *chain), *fingerprint));
        Table::ALL.into_iter().map(canary).chain(fixed).chain(own)
    }
}
