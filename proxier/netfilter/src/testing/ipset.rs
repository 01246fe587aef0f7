//! Ipsets as a value.
//!
//! In: operations. Out: what the kernel would hold, its refusals, and how often it was asked.
//! Must not know: which rules ask the sets. Clones share one state.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::IpFamily;
use crate::ipset::{Entry, FoundSet, Place, Set, SetName, SetType};
use crate::kernel::ipset::described;
use crate::kernel::{IpSetError, IpSets, SetOperation};

#[derive(Debug, Default)]
struct Held {
    /// `None` for a set of a type that is none of ours.
    set: Option<Set>,
    described: String,
    references: u32,
    entries: BTreeSet<Entry>,
}

#[derive(Debug, Default)]
struct State {
    sets: BTreeMap<SetName, Held>,
    failing: Option<fn() -> IpSetError>,
    refused: Option<SetName>,
    operations: Vec<SetOperation>,
    listings: usize,
}

/// No sets, until somebody creates some.
#[derive(Clone, Debug, Default)]
pub struct FakeIpSets(Arc<Mutex<State>>);

impl FakeIpSets {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was done since the last call, in order, without what was refused.
    #[must_use]
    pub fn take_operations(&self) -> Vec<SetOperation> {
        std::mem::take(&mut self.state().operations)
    }

    /// How often sets or entries were listed.
    #[must_use]
    pub fn listings(&self) -> usize {
        self.state().listings
    }

    /// Says how many rules refer to a set. `false` if there is no such set.
    pub fn refer(&self, name: SetName, references: u32) -> bool {
        self.state().sets.get_mut(&name).map(|held| held.references = references).is_some()
    }

    /// Puts a set of a type there that is none of ours: `list:set`.
    pub fn add_foreign(&self, name: SetName, described: &str) {
        let held = Held { described: described.to_owned(), ..Held::default() };
        self.state().sets.insert(name, held);
    }

    /// Has everything fail so from now on, or nothing.
    pub fn fail(&self, how: Option<fn() -> IpSetError>) {
        self.state().failing = how;
    }

    /// Has every operation on this set refused from now on, or none.
    pub fn refuse(&self, name: Option<SetName>) {
        self.state().refused = name;
    }

    /// The entries of a set, in order, if there is such a set.
    #[must_use]
    pub fn held(&self, name: SetName) -> Option<Vec<Entry>> {
        self.state().sets.get(&name).map(|held| held.entries.iter().copied().collect())
    }
}

/// Everything, as `ipset save` prints it, in order, without what the kernel chooses.
impl fmt::Display for FakeIpSets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, held) in &self.state().sets {
            match &held.set {
                Some(set) => writeln!(f, "{set}")?,
                None => writeln!(f, "create {name} {}", held.described)?,
            }
            held.entries.iter().try_for_each(|entry| writeln!(f, "add {name} {entry}"))?;
        }
        Ok(())
    }
}

impl State {
    fn asked(&self) -> Result<(), IpSetError> {
        self.failing.map_or(Ok(()), |how| Err(how()))
    }

    fn apply(&mut self, operation: &SetOperation) -> Result<(), IpSetError> {
        if self.refused == Some(operation.name()) {
            return Err(IpSetError::Refused { object: operation.object(), reason: "the test refuses it".to_owned() });
        }
        match *operation {
            SetOperation::Create(set) => match self.sets.get(&set.name) {
                Some(held) if held.set == Some(set) => {}
                Some(held) => return Err(IpSetError::clash(&set, &held.found(set.name))),
                None => {
                    let held = Held { set: Some(set), described: described(&set), ..Held::default() };
                    self.sets.insert(set.name, held);
                }
            },
            SetOperation::Destroy(name) => {
                if self.held(operation, name)?.references > 0 {
                    return Err(IpSetError::InUse(name));
                }
                self.sets.remove(&name);
            }
            SetOperation::Flush(name) => self.held(operation, name)?.entries.clear(),
            SetOperation::Swap(one, other) => self.swap(operation, one, other)?,
            SetOperation::Add(name, entry) => self.add(operation, name, entry, false)?,
            SetOperation::AddNew(name, entry) => self.add(operation, name, entry, true)?,
            SetOperation::Delete(name, entry) => {
                let held = self.held(operation, name)?;
                held.fits(operation, &entry)?;
                if !held.entries.remove(&canonical(entry)) {
                    return Err(IpSetError::NotFound(operation.object()));
                }
            }
        }
        Ok(())
    }

    fn held(&mut self, operation: &SetOperation, name: SetName) -> Result<&mut Held, IpSetError> {
        self.sets.get_mut(&name).ok_or_else(|| IpSetError::no_set(operation))
    }

    fn add(&mut self, operation: &SetOperation, name: SetName, entry: Entry, new: bool) -> Result<(), IpSetError> {
        let held = self.held(operation, name)?;
        held.fits(operation, &entry)?;
        let entry = canonical(entry);
        if held.entries.contains(&entry) {
            return if new { Err(IpSetError::Exists(operation.object())) } else { Ok(()) };
        }
        let room = held.set.filter(|set| set.family.is_some()).map_or(usize::MAX, |set| to_usize(set.max_entries));
        if held.entries.len() >= room {
            return Err(IpSetError::Full { name, entry: entry.to_string() });
        }
        held.entries.insert(entry);
        Ok(())
    }

    fn swap(&mut self, operation: &SetOperation, one: SetName, other: SetName) -> Result<(), IpSetError> {
        let kinds = [one, other].map(|name| self.sets.get(&name).map(Held::kind));
        let [Some(first), Some(second)] = kinds else { return Err(IpSetError::no_set(operation)) };
        if first != second {
            return Err(IpSetError::Mismatch(operation.object()));
        }
        if one == other {
            return Ok(());
        }
        // The kernel's rules keep pointing at the name's index, which is what is exchanged.
        let (Some(mut a), Some(mut b)) = (self.sets.remove(&one), self.sets.remove(&other)) else { return Ok(()) };
        std::mem::swap(&mut a.references, &mut b.references);
        for (held, name) in [(a, other), (b, one)] {
            let set = held.set.map(|set| Set { name, ..set });
            self.sets.insert(name, Held { set, ..held });
        }
        Ok(())
    }
}

impl Held {
    /// What has to be equal of two sets to be swapped.
    fn kind(&self) -> (Option<(SetType, Option<IpFamily>)>, Option<String>) {
        let kind = self.set.map(|set| (set.set_type, set.family));
        (kind, kind.is_none().then(|| self.described.clone()))
    }

    fn found(&self, name: SetName) -> FoundSet {
        let entries = u32::try_from(self.entries.len()).ok();
        let (set, described) = (self.set, self.described.clone());
        FoundSet { name, set, described, references: self.references, entries }
    }

    /// Whether an entry can be in this set.
    fn fits(&self, operation: &SetOperation, entry: &Entry) -> Result<(), IpSetError> {
        let mismatch = || IpSetError::Mismatch(operation.object());
        let set = self.set.filter(|set| set.set_type == entry.set_type()).ok_or_else(mismatch)?;
        let addresses = match *entry {
            Entry::IpPort(place) => vec![place.ip],
            Entry::IpPortIp(place, other) => vec![place.ip, other],
            Entry::IpPortNet(place, net) => vec![place.ip, net.addr()],
            Entry::Ip(ip) => vec![ip],
            Entry::Port(_) => Vec::new(),
        };
        if addresses.iter().any(|ip| Some(IpFamily::of(ip)) != set.family) {
            return Err(mismatch());
        }
        let wrong = match *entry {
            Entry::IpPort(Place { protocol: 0, .. })
            | Entry::IpPortIp(Place { protocol: 0, .. }, _)
            | Entry::IpPortNet(Place { protocol: 0, .. }, _) => Some("invalid protocol"),
            Entry::IpPortNet(_, net) if net.prefix_len() == 0 => Some("invalid prefix length"),
            Entry::Ip(IpAddr::V4(ip)) if ip.is_unspecified() => Some("the address is zero"),
            Entry::Ip(IpAddr::V6(ip)) if ip.is_unspecified() => Some("the address is zero"),
            _ => None,
        };
        match wrong {
            Some(reason) => Err(IpSetError::Refused { object: operation.object(), reason: reason.to_owned() }),
            None => Ok(()),
        }
    }
}

/// The kernel keeps the network, not the address that named it.
fn canonical(entry: Entry) -> Entry {
    match entry {
        Entry::IpPortNet(place, net) => Entry::IpPortNet(place, net.trunc()),
        other => other,
    }
}

fn to_usize(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

impl IpSets for FakeIpSets {
    fn sets(&mut self, each: &mut dyn FnMut(FoundSet)) -> Result<(), IpSetError> {
        let mut state = self.state();
        state.asked()?;
        state.listings += 1;
        let found: Vec<FoundSet> = state.sets.iter().map(|(name, held)| held.found(*name)).collect();
        drop(state);
        found.into_iter().for_each(each);
        Ok(())
    }

    fn set(&mut self, name: SetName) -> Result<Option<FoundSet>, IpSetError> {
        let state = self.state();
        state.asked()?;
        Ok(state.sets.get(&name).map(|held| held.found(name)))
    }

    fn entries(&mut self, name: SetName, each: &mut dyn FnMut(Entry)) -> Result<(), IpSetError> {
        let mut state = self.state();
        state.asked()?;
        state.listings += 1;
        let held = state.sets.get(&name).ok_or_else(|| IpSetError::NotFound(format!("ipset {name}")))?;
        if held.set.is_none() {
            return Err(IpSetError::foreign(name, &held.described));
        }
        let entries: Vec<Entry> = held.entries.iter().copied().collect();
        drop(state);
        entries.into_iter().for_each(each);
        Ok(())
    }

    fn apply(
        &mut self,
        operations: &[SetOperation],
        failed: &mut dyn FnMut(usize, IpSetError),
    ) -> Result<(), IpSetError> {
        self.state().asked()?;
        for (index, operation) in operations.iter().enumerate() {
            let outcome = self.state().apply(operation);
            match outcome {
                Ok(()) => self.state().operations.push(*operation),
                Err(error) => failed(index, error),
            }
        }
        Ok(())
    }
}
