//! The state that syncs have written, which the next sync compares with.

use std::collections::HashMap;

use netfilter::nft::Bytes;

use super::chain_counts::ChainRefCounts;
use super::names::{ALWAYS, SetId, SharedChain};
use super::owners::AddressOwners;
use super::port_spec::PortSpec;
use super::render::Rendered;
use super::settings::NftablesSettings;
use crate::model::{Destination, ServicePortName};

/// A programmed Service port.
#[derive(Debug)]
pub struct ProgrammedPort {
    /// The input of its elements.
    pub spec: PortSpec,
    /// The destinations that it claims.
    pub destinations: Box<[Destination]>,
}

impl ProgrammedPort {
    /// Whether its cluster IP is dropped because no endpoint is local.
    pub fn lacks_internal_local(&self) -> bool {
        self.spec.any && !self.spec.has_internal()
    }

    /// The same for external traffic.
    pub fn lacks_external_local(&self) -> bool {
        self.spec.any && !self.spec.has_external()
    }
}

/// A set member, stored inline: there are as many as Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Member {
    set: SetId,
    length: u8,
    key: [u8; MEMBER_MAX],
}

/// The length of the longest keys: hairpin connections in IPv6.
const MEMBER_MAX: usize = 40;

impl Member {
    fn of((set, key): &(SetId, Bytes)) -> Self {
        let mut bytes = [0; MEMBER_MAX];
        let length = key.len().min(MEMBER_MAX);
        bytes[..length].copy_from_slice(&key[..length]);
        Self { set: *set, length: u8::try_from(length).unwrap_or(u8::MAX), key: bytes }
    }

    fn key(&self) -> Bytes {
        self.key[..usize::from(self.length)].into()
    }
}

/// Reference counts of objects that Service ports share.
#[derive(Debug)]
pub struct SharedRefCounts {
    members: HashMap<Member, u32>,
    /// The chains.
    pub chains: ChainRefCounts,
}

/// Members whose reference count changed, with whether they had references before.
#[derive(Debug, Default)]
pub struct MemberChanges {
    touched: HashMap<Member, bool>,
}

impl SharedRefCounts {
    /// Creates empty counts, except for the chains that always exist.
    #[must_use]
    pub fn new() -> Self {
        let mut chains = ChainRefCounts::default();
        ALWAYS.into_iter().for_each(|balance| chains.add(SharedChain::Balance(balance)));
        Self { members: HashMap::new(), chains }
    }

    /// Drops the references of a Service port.
    pub fn subtract(&mut self, rendered: &Rendered, changes: &mut MemberChanges) {
        for member in rendered.members.iter().map(Member::of) {
            let count = self.members.entry(member).or_insert(0);
            changes.touched.entry(member).or_insert(*count > 0);
            *count = count.saturating_sub(1);
        }
        rendered.chains.iter().for_each(|chain| self.chains.subtract(*chain));
    }

    /// Adds the references of a Service port.
    pub fn add(&mut self, rendered: &Rendered, changes: &mut MemberChanges) {
        for member in rendered.members.iter().map(Member::of) {
            let count = self.members.entry(member).or_insert(0);
            changes.touched.entry(member).or_insert(*count > 0);
            *count += 1;
        }
        rendered.chains.iter().for_each(|chain| self.chains.add(*chain));
    }

    /// The members that became unreferenced, and the ones that became referenced, each sorted.
    pub fn settle(&mut self, changes: MemberChanges) -> [Vec<(SetId, Bytes)>; 2] {
        let (mut gone, mut new) = (Vec::new(), Vec::new());
        for (member, was) in changes.touched {
            let is = self.members.get(&member).is_some_and(|count| *count > 0);
            if !is {
                self.members.remove(&member);
            }
            match (was, is) {
                (true, false) => gone.push((member.set, member.key())),
                (false, true) => new.push((member.set, member.key())),
                _ => {}
            }
        }
        gone.sort_unstable();
        new.sort_unstable();
        [gone, new]
    }
}

/// The table as this mode has written it.
#[derive(Debug)]
pub struct ProgrammedTable {
    /// The Service ports. Boxed, as nearly half of a large map is free.
    pub ports: HashMap<ServicePortName, Box<ProgrammedPort>>,
    /// The owners of destinations.
    pub owners: AddressOwners,
    /// References to shared objects.
    pub counts: SharedRefCounts,
    /// The settings of the last full sync.
    pub settings: NftablesSettings,
    /// The generation ID, if no other process has changed nf_tables since the state was known.
    pub generation: Option<u32>,
    /// The number of Service ports without local endpoints, for internal and external traffic.
    pub no_local_endpoints: [usize; 2],
}

impl ProgrammedTable {
    /// Creates an empty state.
    pub fn new(settings: NftablesSettings) -> Self {
        Self {
            ports: HashMap::new(),
            owners: AddressOwners::default(),
            counts: SharedRefCounts::new(),
            settings,
            generation: None,
            no_local_endpoints: [0; 2],
        }
    }

    /// Replaces a Service port's state; returns the old one.
    pub fn replace(&mut self, name: &ServicePortName, new: Option<ProgrammedPort>) -> Option<Box<ProgrammedPort>> {
        let lacks = |port: &ProgrammedPort| [port.lacks_internal_local(), port.lacks_external_local()];
        if let Some(new) = &new {
            self.no_local_endpoints.iter_mut().zip(lacks(new)).for_each(|(count, lacks)| *count += usize::from(lacks));
        }
        let old = match new {
            Some(new) => self.ports.insert(name.clone(), Box::new(new)),
            None => self.ports.remove(name),
        };
        if let Some(old) = &old {
            self.no_local_endpoints.iter_mut().zip(lacks(old)).for_each(|(count, lacks)| *count -= usize::from(lacks));
        }
        old
    }
}
