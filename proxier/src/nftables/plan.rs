//! Plans the transactions that change the elements of sets.
//!
//! The order ensures that no new connection meets a partial state.

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use netfilter::IpFamily;
use netfilter::nft::{Element, Operation, Set, Table, Transaction};

use super::names::SetId;
use crate::model::ServicePortName;
use crate::model::config::ServiceMetrics;

/// The definitions of the fixed sets.
#[derive(Debug)]
pub struct SetDefinitions(BTreeMap<SetId, Arc<Set>>);

impl SetDefinitions {
    /// The definitions of a family, with those sets that these metrics need.
    #[must_use]
    pub fn of(family: IpFamily, metrics: ServiceMetrics) -> Self {
        let existing = SetId::ALL.into_iter().filter(|id| id.exists(metrics));
        Self(existing.map(|id| (id, Arc::new(id.definition(family, metrics)))).collect())
    }

    /// All sets, in the order of creation.
    pub fn iter(&self) -> impl Iterator<Item = (SetId, &Arc<Set>)> {
        SetId::ALL.into_iter().filter_map(|id| Some((id, self.0.get(&id)?)))
    }

    /// The definition of one set.
    #[must_use]
    pub fn get(&self, id: SetId) -> Arc<Set> {
        self.0[&id].clone()
    }
}

/// An element that is hashed by its key.
#[derive(Debug)]
struct Keyed(Element);

impl Borrow<[u8]> for Keyed {
    fn borrow(&self) -> &[u8] {
        &self.0.key
    }
}

impl Hash for Keyed {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (*self.0.key).hash(state);
    }
}

impl PartialEq for Keyed {
    fn eq(&self, other: &Self) -> bool {
        self.0.key == other.0.key
    }
}

impl Eq for Keyed {}

/// Elements by set and key.
#[derive(Debug, Default)]
pub struct ElementIndex(BTreeMap<SetId, HashSet<Keyed>>);

impl ElementIndex {
    /// Adds an element.
    pub fn insert(&mut self, set: SetId, element: Element) {
        self.0.entry(set).or_default().replace(Keyed(element));
    }

    /// Looks up an element.
    #[must_use]
    pub fn get(&self, set: SetId, key: &[u8]) -> Option<&Element> {
        self.0.get(&set)?.get(key).map(|Keyed(element)| element)
    }

    /// All elements of a set.
    pub fn of(&self, set: SetId) -> impl Iterator<Item = &Element> {
        self.0.get(&set).into_iter().flatten().map(|Keyed(element)| element)
    }

    /// The number of elements of a set.
    #[must_use]
    pub fn count(&self, set: SetId) -> usize {
        self.0.get(&set).map_or(0, HashSet::len)
    }

    fn remove(&mut self, set: SetId, key: &[u8]) -> Option<Element> {
        self.0.get_mut(&set)?.take(key).map(|Keyed(element)| element)
    }

    /// The elements by set, sorted by key.
    fn into_sorted(self) -> impl Iterator<Item = (SetId, Vec<Element>)> {
        self.0.into_iter().filter(|(_, elements)| !elements.is_empty()).map(|(set, elements)| {
            let mut elements: Vec<Element> = elements.into_iter().map(|Keyed(element)| element).collect();
            elements.sort_unstable_by(|a, b| a.key.cmp(&b.key));
            (set, elements)
        })
    }
}

/// A desired element and its owner.
#[derive(Debug)]
pub struct DesiredElement<'a> {
    /// The Service port; `None` if the element is shared.
    pub owner: Option<&'a ServicePortName>,
    /// The set.
    pub set: SetId,
    /// The element.
    pub element: Element,
}

/// A transaction with the Service port that owns each operation.
#[derive(Debug)]
pub struct OwnedTransaction<'a> {
    /// The operations.
    pub transaction: Transaction,
    /// Owners by operation index, sorted.
    owners: Vec<(usize, &'a ServicePortName)>,
}

impl<'a> OwnedTransaction<'a> {
    /// Creates an empty transaction.
    #[must_use]
    pub fn on(table: Table) -> Self {
        Self { transaction: Transaction::on(table), owners: Vec::new() }
    }

    /// Appends an operation.
    pub fn push(&mut self, operation: Operation, owner: Option<&'a ServicePortName>) {
        self.owners.extend(owner.map(|owner| (self.transaction.operations().len(), owner)));
        self.transaction.push(operation);
    }

    /// The owner of an operation.
    #[must_use]
    pub fn owner(&self, operation: usize) -> Option<&'a ServicePortName> {
        let at = self.owners.binary_search_by_key(&operation, |(of, _)| *of).ok()?;
        Some(self.owners[at].1)
    }
}

/// The transactions of a sync, in order.
#[derive(Debug)]
pub struct Plan<'a> {
    /// New objects and changed verdicts.
    pub first: OwnedTransaction<'a>,
    /// Deletions of unreferenced elements, in a later batch: packets may be on their way there.
    pub later: Transaction,
    /// Deletions of unused chains and sets. Kernels before 6.2 release references only after a delay.
    pub last: Transaction,
}

impl<'a> Plan<'a> {
    /// Creates an empty plan.
    #[must_use]
    pub fn on(table: Table) -> Self {
        Self {
            first: OwnedTransaction::on(table.clone()),
            later: Transaction::on(table.clone()),
            last: Transaction::on(table),
        }
    }

    /// Plans the change of the sets from `current` to `desired`.
    pub fn elements(&mut self, sets: &SetDefinitions, mut current: ElementIndex, desired: Vec<DesiredElement<'a>>) {
        let (mut new, mut changed, mut firewall) = (desired, Vec::new(), Vec::new());
        let mut replaced = ElementIndex::default();
        // New elements stay in place: at startup nearly all are new.
        let is_firewall = |set| matches!(set, SetId::FirewallAllowed | SetId::FirewallIps);
        let other = |desired: &mut DesiredElement<'_>| {
            is_firewall(desired.set) || current.get(desired.set, &desired.element.key).is_some()
        };
        for desired in new.extract_if(.., other).collect::<Vec<_>>() {
            match current.remove(desired.set, &desired.element.key) {
                Some(known) if known == desired.element => {}
                Some(known) => {
                    replaced.insert(desired.set, known);
                    changed.push(desired);
                }
                None if is_firewall(desired.set) => firewall.push(desired),
                None => new.push(desired),
            }
        }
        self.firewall(sets, &mut current, &mut replaced, firewall, &mut changed);
        self.add(sets, new);
        self.first.transaction.cut();
        for (set, elements) in replaced.into_sorted() {
            self.first.push(Operation::DeleteElements(sets.get(set), elements), None);
        }
        for (set, elements) in current.into_sorted() {
            let operation = Operation::DeleteElements(sets.get(set), elements);
            if set.is_support() { self.later.push(operation) } else { self.first.push(operation, None) }
        }
        self.add_uncut(sets, changed);
        self.first.transaction.cut();
    }

    /// Plans the source ranges: they may not overlap, so deletions come first, and verdicts after ranges.
    fn firewall(
        &mut self,
        sets: &SetDefinitions,
        current: &mut ElementIndex,
        replaced: &mut ElementIndex,
        new: Vec<DesiredElement<'a>>,
        changed: &mut Vec<DesiredElement<'a>>,
    ) {
        let allowed = SetId::FirewallAllowed;
        let (ranges, rest): (Vec<_>, Vec<_>) = std::mem::take(changed).into_iter().partition(|w| w.set == allowed);
        *changed = rest;
        let going = [current, replaced].into_iter().filter_map(|current| current.0.remove(&allowed));
        let mut going: Vec<Element> = going.flatten().map(|Keyed(element)| element).collect();
        going.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        if !going.is_empty() {
            self.first.push(Operation::DeleteElements(sets.get(allowed), going), None);
        }
        let mut new: Vec<DesiredElement<'_>> = ranges.into_iter().chain(new).collect();
        new.sort_by_key(|desired| desired.set != allowed);
        self.add_uncut(sets, new);
        self.first.transaction.cut();
    }

    fn add(&mut self, sets: &SetDefinitions, desired: Vec<DesiredElement<'a>>) {
        self.write(sets, desired, true);
    }

    fn add_uncut(&mut self, sets: &SetDefinitions, desired: Vec<DesiredElement<'a>>) {
        self.write(sets, desired, false);
    }

    /// Merges adjacent elements of one owner and set into an operation.
    ///
    /// With `cut`, a batch may end between owners.
    fn write(&mut self, sets: &SetDefinitions, desired: Vec<DesiredElement<'a>>, cut: bool) {
        let lengths: Vec<usize> =
            desired.chunk_by(|a, b| a.owner == b.owner && a.set == b.set).map(<[_]>::len).collect();
        let mut rest = desired.into_iter().peekable();
        for length in lengths {
            let Some(DesiredElement { owner, set, .. }) = rest.peek() else { break };
            let (owner, set) = (*owner, *set);
            let elements = rest.by_ref().take(length).map(|desired| desired.element).collect();
            self.first.push(Operation::AddElements(sets.get(set), elements), owner);
            if cut && rest.peek().is_some_and(|next| next.owner != owner) {
                self.first.transaction.cut();
            }
        }
    }
}
