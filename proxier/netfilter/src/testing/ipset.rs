//! Fake ipsets, which return the kernel's errors. Clones share one state.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::ipset::{Entry, IpPortProto, ObservedSet, Set, SetName, SetType};
use crate::kernel::ipset::described;
use crate::kernel::{IpSetError, IpSets, SetOperation};
use crate::{Counters, IpFamily};

#[derive(Debug, Default)]
struct FakeSet {
    /// `None` if the type is not supported.
    set: Option<Set>,
    described: String,
    references: u32,
    entries: BTreeSet<Entry>,
}

#[derive(Debug, Default)]
struct IpSetState {
    sets: BTreeMap<SetName, FakeSet>,
    failing: Option<fn() -> IpSetError>,
    refused: Option<SetName>,
    operations: Vec<SetOperation>,
    listings: usize,
}

/// Fake ipsets, initially none.
#[derive(Clone, Debug, Default)]
pub struct FakeIpSets(Arc<Mutex<IpSetState>>);

impl FakeIpSets {
    fn state(&self) -> MutexGuard<'_, IpSetState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The successful operations since the last call, in order.
    #[must_use]
    pub fn take_operations(&self) -> Vec<SetOperation> {
        std::mem::take(&mut self.state().operations)
    }

    /// The number of listings of sets or entries.
    #[must_use]
    pub fn listings(&self) -> usize {
        self.state().listings
    }

    /// Sets the number of references to a set; returns whether it exists.
    pub fn refer(&self, name: SetName, references: u32) -> bool {
        self.state().sets.get_mut(&name).map(|fake| fake.references = references).is_some()
    }

    /// Adds a set of an unsupported type, such as `list:set`.
    pub fn add_foreign(&self, name: SetName, described: &str) {
        let fake = FakeSet { described: described.to_owned(), ..FakeSet::default() };
        self.state().sets.insert(name, fake);
    }

    /// Makes every call fail with this error; `None` makes calls succeed.
    pub fn fail(&self, how: Option<fn() -> IpSetError>) {
        self.state().failing = how;
    }

    /// Makes every operation on this set fail; `None` for no set.
    pub fn refuse(&self, name: Option<SetName>) {
        self.state().refused = name;
    }

    /// The sorted entries of a set; `None` if it does not exist.
    #[must_use]
    pub fn entries_in(&self, name: SetName) -> Option<Vec<Entry>> {
        self.state().sets.get(&name).map(|fake| fake.entries.iter().copied().collect())
    }
}

/// All sets and entries as `ipset save` prints them, without parameters that the kernel chooses.
impl fmt::Display for FakeIpSets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, fake) in &self.state().sets {
            match &fake.set {
                Some(set) => writeln!(f, "{set}")?,
                None => writeln!(f, "create {name} {}", fake.described)?,
            }
            fake.entries.iter().try_for_each(|entry| writeln!(f, "add {name} {entry}"))?;
        }
        Ok(())
    }
}

impl IpSetState {
    fn check_failing(&self) -> Result<(), IpSetError> {
        self.failing.map_or(Ok(()), |how| Err(how()))
    }

    fn apply(&mut self, operation: &SetOperation) -> Result<(), IpSetError> {
        if self.refused == Some(operation.name()) {
            return Err(IpSetError::Refused { object: operation.object(), reason: "refused by the test".to_owned() });
        }
        match *operation {
            SetOperation::Create(set) => match self.sets.get(&set.name) {
                Some(fake) if fake.set.is_some_and(|found| set.is_satisfied_by(&found)) => {}
                Some(fake) => return Err(IpSetError::clash(&set, &fake.found(set.name))),
                None => {
                    let fake = FakeSet { set: Some(set), described: described(&set), ..FakeSet::default() };
                    self.sets.insert(set.name, fake);
                }
            },
            SetOperation::Destroy(name) => {
                if self.existing(operation, name)?.references > 0 {
                    return Err(IpSetError::InUse(name));
                }
                self.sets.remove(&name);
            }
            SetOperation::Flush(name) => self.existing(operation, name)?.entries.clear(),
            SetOperation::Swap(one, other) => self.swap(operation, one, other)?,
            SetOperation::Add(name, entry) => self.add(operation, name, entry, false)?,
            SetOperation::AddNew(name, entry) => self.add(operation, name, entry, true)?,
            SetOperation::Delete(name, entry) => {
                let fake = self.existing(operation, name)?;
                fake.fits(operation, &entry)?;
                if !fake.entries.remove(&canonical(entry)) {
                    return Err(IpSetError::NotFound(operation.object()));
                }
            }
        }
        Ok(())
    }

    fn existing(&mut self, operation: &SetOperation, name: SetName) -> Result<&mut FakeSet, IpSetError> {
        self.sets.get_mut(&name).ok_or_else(|| IpSetError::no_set(operation))
    }

    fn add(&mut self, operation: &SetOperation, name: SetName, entry: Entry, new: bool) -> Result<(), IpSetError> {
        let fake = self.existing(operation, name)?;
        fake.fits(operation, &entry)?;
        let entry = canonical(entry);
        if fake.entries.contains(&entry) {
            return if new { Err(IpSetError::Exists(operation.object())) } else { Ok(()) };
        }
        let room = fake.set.filter(|set| set.family.is_some()).map_or(usize::MAX, |set| to_usize(set.max_entries));
        if fake.entries.len() >= room {
            return Err(IpSetError::Full { name, entry: entry.to_string() });
        }
        fake.entries.insert(entry);
        Ok(())
    }

    fn swap(&mut self, operation: &SetOperation, one: SetName, other: SetName) -> Result<(), IpSetError> {
        let kinds = [one, other].map(|name| self.sets.get(&name).map(FakeSet::kind));
        let [Some(first), Some(second)] = kinds else { return Err(IpSetError::no_set(operation)) };
        if first != second {
            return Err(IpSetError::Mismatch(operation.object()));
        }
        if one == other {
            return Ok(());
        }
        // Rules refer to a set by index, and a swap exchanges the indexes.
        let (Some(mut a), Some(mut b)) = (self.sets.remove(&one), self.sets.remove(&other)) else { return Ok(()) };
        std::mem::swap(&mut a.references, &mut b.references);
        for (fake, name) in [(a, other), (b, one)] {
            let set = fake.set.map(|set| Set { name, ..set });
            self.sets.insert(name, FakeSet { set, ..fake });
        }
        Ok(())
    }
}

impl FakeSet {
    /// The properties that must be equal to swap two sets.
    fn kind(&self) -> (Option<(SetType, Option<IpFamily>)>, Option<String>) {
        let kind = self.set.map(|set| (set.set_type, set.family));
        (kind, kind.is_none().then(|| self.described.clone()))
    }

    fn found(&self, name: SetName) -> ObservedSet {
        let entries = u32::try_from(self.entries.len()).ok();
        let (set, described) = (self.set, self.described.clone());
        ObservedSet { name, set, described, references: self.references, entries }
    }

    /// Checks that the set can contain an entry.
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
            Entry::IpPort(IpPortProto { protocol: 0, .. })
            | Entry::IpPortIp(IpPortProto { protocol: 0, .. }, _)
            | Entry::IpPortNet(IpPortProto { protocol: 0, .. }, _) => Some("invalid protocol"),
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

/// The entry as the kernel stores it: with the host bits of its network cleared.
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
    fn sets(&mut self, each: &mut dyn FnMut(ObservedSet)) -> Result<(), IpSetError> {
        let mut state = self.state();
        state.check_failing()?;
        state.listings += 1;
        let found: Vec<ObservedSet> = state.sets.iter().map(|(name, fake)| fake.found(*name)).collect();
        drop(state);
        found.into_iter().for_each(each);
        Ok(())
    }

    fn set(&mut self, name: SetName) -> Result<Option<ObservedSet>, IpSetError> {
        let state = self.state();
        state.check_failing()?;
        Ok(state.sets.get(&name).map(|fake| fake.found(name)))
    }

    fn counted_entries(&mut self, name: SetName, each: &mut dyn FnMut(Entry, Counters)) -> Result<(), IpSetError> {
        let mut state = self.state();
        state.check_failing()?;
        state.listings += 1;
        let fake = state.sets.get(&name).ok_or_else(|| IpSetError::NotFound(format!("ipset {name}")))?;
        if fake.set.is_none() {
            return Err(IpSetError::foreign(name, &fake.described));
        }
        let entries: Vec<Entry> = fake.entries.iter().copied().collect();
        drop(state);
        entries.into_iter().for_each(|entry| each(entry, Counters::default()));
        Ok(())
    }

    fn apply(
        &mut self,
        operations: &[SetOperation],
        failed: &mut dyn FnMut(usize, IpSetError),
    ) -> Result<(), IpSetError> {
        self.state().check_failing()?;
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
