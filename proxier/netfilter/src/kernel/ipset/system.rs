//! ipset in the running kernel.
//!
//! A netlink socket belongs to the network namespace of the thread that opens it.

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::super::netlink::{Netlink, NetlinkError};
use super::wire::{self, Verb};
use super::{IpSetError, IpSets, SetOperation, error::refusal};
use crate::ipset::{Entry, ObservedSet, Set, SetName, SetQuery, SetType};
use crate::{Counters, IpFamily};

/// The number of entries in one message; an attribute holds at most 64 KiB.
pub(super) const ENTRIES: usize = 400;

/// The sets of the network namespace in which this was opened.
#[derive(Debug)]
pub struct SystemIpSets {
    socket: Netlink,
    revisions: Vec<((SetType, Option<IpFamily>), u8)>,
}

impl SystemIpSets {
    /// Opens ipset. The kernel loads the modules that it needs.
    ///
    /// # Errors
    /// If the kernel does not support ipset or refuses permission.
    pub fn open() -> Result<Self, IpSetError> {
        let mut socket = Netlink::open(NETLINK_NETFILTER).map_err(failure)?;
        match socket.query(&wire::protocol(), &mut |_| Ok(())) {
            // nfnetlink's error for a missing subsystem.
            Err(error) if error.errno() == Some(libc::EINVAL) => Err(IpSetError::Missing),
            outcome => outcome.map(|()| Self { socket, revisions: Vec::new() }).map_err(failure),
        }
    }

    /// The newest revision of a type that the kernel supports.
    fn revision(&mut self, set: &Set) -> Result<u8, IpSetError> {
        let key = (set.set_type, set.family);
        if let Some((_, revision)) = self.revisions.iter().find(|(known, _)| *known == key) {
            return Ok(*revision);
        }
        let mut revision = None;
        let outcome = self.socket.query(&wire::revisions(set.set_type, set.family), &mut |received| {
            revision = wire::read_revision(received.attributes(wire::HEADER));
            Ok(())
        });
        outcome.map_err(|error| refusal(&SetOperation::Create(*set), error))?;
        let revision = revision.ok_or(IpSetError::Missing)?;
        self.revisions.push((key, revision));
        Ok(revision)
    }

    /// Asks the kernel what a rule asks it: whether a set of any type has what a packet is like.
    ///
    /// # Errors
    /// If the kernel does not say, or it takes something that is not known here, as a hardware address.
    pub fn test(&mut self, query: &SetQuery) -> Result<bool, IpSetError> {
        let name = SetName::parse(&query.set).ok_or_else(|| IpSetError::NotFound(format!("ipset {}", query.set)))?;
        self.test_in(name, query)
    }

    fn test_in(&mut self, name: SetName, query: &SetQuery) -> Result<bool, IpSetError> {
        let found = self.set(name)?.ok_or_else(|| IpSetError::NotFound(format!("ipset {name}")))?;
        let kind = found.described.split(' ').next().unwrap_or_default();
        let mut words = found.described.split(' ').skip_while(|word| *word != "family").skip(1);
        if words.next().is_some_and(|family| family != IpFamily::of(&query.source.ip()).ipset()) {
            return Ok(false);
        }
        if kind == "list:set" {
            let mut members = Vec::new();
            let dump = self.socket.dump_all(&wire::list(name), &mut |received| {
                members.extend(wire::members(received.attributes(wire::HEADER)));
                Ok(())
            });
            dump.map_err(failure)?;
            return members.into_iter().try_fold(false, |has, member| Ok(has || self.test_in(member, query)?));
        }
        let parts: Vec<&str> = kind.split(':').nth(1).unwrap_or_default().split(',').collect();
        // The kernel says no where a rule names fewer parts than the set has.
        if parts.len() > query.of_source.len() {
            return Ok(false);
        }
        let Some(request) = wire::test(name, &parts, query) else {
            let reason = format!("a packet's part of {kind} is not known");
            return Err(IpSetError::Refused { object: format!("ipset {name}"), reason });
        };
        match self.socket.request(&request) {
            Ok(()) => Ok(true),
            // It is not there, or the set cannot have it.
            Err(error) if error.errno().is_some_and(is_no) => Ok(false),
            Err(error) => Err(failure(error)),
        }
    }

    fn create(&mut self, set: &Set) -> Result<(), IpSetError> {
        let revision = self.revision(set)?;
        match self.socket.request(&wire::create(set, revision)) {
            Err(error) if error.errno() == Some(libc::EEXIST) => match self.set(set.name)? {
                Some(found) if found.set.is_some_and(|found| set.is_satisfied_by(&found)) => Ok(()),
                Some(found) => Err(IpSetError::clash(set, &found)),
                None => Err(refusal(&SetOperation::Create(*set), error)),
            },
            outcome => outcome.map_err(|error| refusal(&SetOperation::Create(*set), error)),
        }
    }

    /// Creates, destroys, flushes and swaps sets; `first` is the index of the first operation.
    fn change_sets(
        &mut self,
        operations: &[SetOperation],
        first: usize,
        failed: &mut dyn FnMut(usize, IpSetError),
    ) -> Result<(), IpSetError> {
        for (index, operation) in operations.iter().enumerate() {
            let request = match *operation {
                SetOperation::Create(set) => {
                    self.create(&set).unwrap_or_else(|error| failed(first + index, error));
                    continue;
                }
                SetOperation::Destroy(name) => wire::destroy(name),
                SetOperation::Flush(name) => wire::flush(name),
                SetOperation::Swap(one, other) => wire::swap(one, other),
                SetOperation::Add(..) | SetOperation::AddNew(..) | SetOperation::Delete(..) => continue,
            };
            match self.socket.request(&request) {
                Err(error) if error.errno().is_none() => return Err(failure(error)),
                outcome => outcome.unwrap_or_else(|error| failed(first + index, refusal(operation, error))),
            }
        }
        Ok(())
    }

    /// Adds or deletes entries of one set; `first` is the index of the first operation.
    fn change(
        &mut self,
        verb: Verb,
        operations: &[SetOperation],
        first: usize,
        failed: &mut dyn FnMut(usize, IpSetError),
    ) -> Result<(), IpSetError> {
        let mut done = 0;
        while let Some(left) = operations.get(done..).filter(|left| !left.is_empty()) {
            let batch = &left[..left.len().min(ENTRIES)];
            let entries = batch.iter().filter_map(|operation| entry(operation).map(|(_, _, entry)| entry));
            match self.socket.request(&wire::change(verb, batch[0].name(), entries)) {
                Ok(()) => done += batch.len(),
                Err(NetlinkError::Refused { errno, words, shown }) => {
                    // Entries before the failed one were applied, later ones were not processed. Without a reported
                    // entry, the error is about the set or the type of all entries, and none was applied.
                    let error = || NetlinkError::Refused { errno, words: words.clone(), shown: Vec::new() };
                    let at = wire::failed_entry(&shown).filter(|_| !about_set(errno));
                    let refused = at.map_or(0..batch.len(), |at| at.min(batch.len() - 1)..at.min(batch.len() - 1) + 1);
                    for index in refused.clone() {
                        failed(first + done + index, refusal(&batch[index], error()));
                    }
                    done += refused.end;
                }
                Err(error) => return Err(failure(error)),
            }
        }
        Ok(())
    }
}

/// `IPSET_ERR_EXIST` and `IPSET_ERR_BITMAP_RANGE`
fn is_no(errno: i32) -> bool {
    matches!(errno, 4103 | 4352)
}

/// Whether an error is about the set rather than an entry.
fn about_set(errno: i32) -> bool {
    matches!(errno, libc::ENOENT | libc::EPERM)
}

/// The verb, set and entry of an operation on an entry.
fn entry(operation: &SetOperation) -> Option<(Verb, SetName, Entry)> {
    match *operation {
        SetOperation::Add(name, entry) => Some((Verb::Add, name, entry)),
        SetOperation::AddNew(name, entry) => Some((Verb::AddNew, name, entry)),
        SetOperation::Delete(name, entry) => Some((Verb::Delete, name, entry)),
        _ => None,
    }
}

/// Maps an error that is not about an object.
fn failure(error: NetlinkError) -> IpSetError {
    match error.errno() {
        Some(libc::EPERM | libc::EACCES) => IpSetError::NotPermitted,
        // The kernel has no nfnetlink.
        Some(libc::EPROTONOSUPPORT) => IpSetError::Missing,
        _ => IpSetError::Failed(error.into()),
    }
}

impl IpSets for SystemIpSets {
    fn sets(&mut self, each: &mut dyn FnMut(ObservedSet)) -> Result<(), IpSetError> {
        let dump = self.socket.dump_all(&wire::list_headers(None), &mut |received| {
            wire::found(received.attributes(wire::HEADER)).into_iter().for_each(&mut *each);
            Ok(())
        });
        dump.map_err(failure)
    }

    fn set(&mut self, name: SetName) -> Result<Option<ObservedSet>, IpSetError> {
        let mut found = None;
        let dump = self.socket.dump_all(&wire::list_headers(Some(name)), &mut |received| {
            found = wire::found(received.attributes(wire::HEADER)).or(found.take());
            Ok(())
        });
        match dump {
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(None),
            dump => dump.map(|()| found).map_err(failure),
        }
    }

    fn counted_entries(&mut self, name: SetName, each: &mut dyn FnMut(Entry, Counters)) -> Result<(), IpSetError> {
        let (mut set_type, mut foreign) = (None, None);
        let dump = self.socket.dump_all(&wire::list(name), &mut |received| {
            let message = received.attributes(wire::HEADER);
            if let Some(found) = wire::found(message) {
                set_type = found.set.map(|set| set.set_type);
                foreign = Some(found.described).filter(|_| set_type.is_none());
            }
            let entries = set_type.into_iter().flat_map(|set_type| wire::entries(message, set_type));
            entries.for_each(|(entry, counters)| each(entry, counters));
            Ok(())
        });
        match dump {
            Err(error) if error.errno() == Some(libc::ENOENT) => Err(IpSetError::NotFound(format!("ipset {name}"))),
            Err(error) => Err(failure(error)),
            Ok(()) => foreign.map_or(Ok(()), |described| Err(IpSetError::foreign(name, &described))),
        }
    }

    fn apply(
        &mut self,
        operations: &[SetOperation],
        failed: &mut dyn FnMut(usize, IpSetError),
    ) -> Result<(), IpSetError> {
        // Order matters: entries are added before their set is swapped. Each run of equal kind is sent and answered
        // before the next. Entries of another type form a run of their own, because the kernel does not count them.
        let kind =
            |operation: &SetOperation| entry(operation).map(|(verb, name, entry)| (verb, name, entry.set_type()));
        let mut first = 0;
        for run in operations.chunk_by(|a, b| kind(a) == kind(b)) {
            match kind(&run[0]) {
                Some((verb, ..)) => self.change(verb, run, first, failed)?,
                None => self.change_sets(run, first, failed)?,
            }
            first += run.len();
        }
        Ok(())
    }
}
