//! What to write so that the kernel holds what it should.
//!
//! In: elements that are there, elements that are wanted. Out: transactions, in an order in which no new connection
//! finds half of anything. Must not know: how elements came about.

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use netfilter::IpFamily;
use netfilter::nft::{Element, Operation, Set, Table, Transaction};

use super::names::SetId;
use crate::model::ServicePortName;

/// The definitions of the fixed sets.
#[derive(Debug)]
pub struct SetDefinitions(BTreeMap<SetId, Arc<Set>>);

impl SetDefinitions {
    /// Those of a family.
    #[must_use]
    pub fn of(family: IpFamily) -> Self {
        Self(SetId::ALL.into_iter().map(|id| (id, Arc::new(id.definition(family)))).collect())
    }

    /// All, in the order of their names' meaning.
    pub fn iter(&self) -> impl Iterator<Item = (SetId, &Arc<Set>)> {
        SetId::ALL.into_iter().map(|id| (id, &self.0[&id]))
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, id: SetId) -> Arc<Set> {
        self.0[&id].clone()
    }
}

/// An element that is found by its key.
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
    /// Adds one.
    pub fn insert(&mut self, set: SetId, element: Element) {
        self.0.entry(set).or_default().replace(Keyed(element));
    }

    /// Looks one up.
    #[must_use]
    pub fn get(&self, set: SetId, key: &[u8]) -> Option<&Element> {
        self.0.get(&set)?.get(key).map(|Keyed(element)| element)
    }

    /// All of a set.
    pub fn of(&self, set: SetId) -> impl Iterator<Item = &Element> {
        self.0.get(&set).into_iter().flatten().map(|Keyed(element)| element)
    }

    /// How many there are of a set.
    #[must_use]
    pub fn count(&self, set: SetId) -> usize {
        self.0.get(&set).map_or(0, HashSet::len)
    }

    fn remove(&mut self, set: SetId, key: &[u8]) -> Option<Element> {
        self.0.get_mut(&set)?.take(key).map(|Keyed(element)| element)
    }

    /// By set, in order of keys.
    fn into_sorted(self) -> impl Iterator<Item = (SetId, Vec<Element>)> {
        self.0.into_iter().filter(|(_, elements)| !elements.is_empty()).map(|(set, elements)| {
            let mut elements: Vec<Element> = elements.into_iter().map(|Keyed(element)| element).collect();
            elements.sort_unstable_by(|a, b| a.key.cmp(&b.key));
            (set, elements)
        })
    }
}

/// An element that is wanted, and by whom.
#[derive(Debug)]
pub struct DesiredElement<'a> {
    /// The Service port; `None` if it is not one's alone.
    pub owner: Option<&'a ServicePortName>,
    /// The set.
    pub set: SetId,
    /// The element.
    pub element: Element,
}

/// A transaction and the Service ports whose operations are in it.
#[derive(Debug)]
pub struct OwnedTransaction<'a> {
    /// The operations.
    pub transaction: Transaction,
    /// By operation, in order.
    owners: Vec<(usize, &'a ServicePortName)>,
}

impl<'a> OwnedTransaction<'a> {
    /// Nothing to do.
    #[must_use]
    pub fn on(table: Table) -> Self {
        Self { transaction: Transaction::on(table), owners: Vec::new() }
    }

    /// Appends an operation.
    pub fn push(&mut self, operation: Operation, owner: Option<&'a ServicePortName>) {
        self.owners.extend(owner.map(|owner| (self.transaction.operations().len(), owner)));
        self.transaction.push(operation);
    }

    /// Whose operation it is.
    #[must_use]
    pub fn owner(&self, operation: usize) -> Option<&'a ServicePortName> {
        let at = self.owners.binary_search_by_key(&operation, |(of, _)| *of).ok()?;
        Some(self.owners[at].1)
    }
}

/// What to write, one after the other.
#[derive(Debug)]
pub struct Plan<'a> {
    /// What is new, and what leads elsewhere from now on.
    pub first: OwnedTransaction<'a>,
    /// Removal of what nothing leads to any more. Not in the same batch: a packet may be on its way there.
    pub later: Transaction,
    /// Removal of chains and sets that nothing uses any more. Kernels before 6.2 notice that only after a while.
    pub last: Transaction,
}

impl<'a> Plan<'a> {
    /// Nothing to do.
    #[must_use]
    pub fn on(table: Table) -> Self {
        Self {
            first: OwnedTransaction::on(table.clone()),
            later: Transaction::on(table.clone()),
            last: Transaction::on(table),
        }
    }

    /// Makes the sets hold `wanted` instead of `held`.
    pub fn elements(&mut self, sets: &SetDefinitions, mut held: ElementIndex, wanted: Vec<DesiredElement<'a>>) {
        let (mut new, mut changed, mut firewall) = (wanted, Vec::new(), Vec::new());
        let mut replaced = ElementIndex::default();
        // What is new stays where it is: at a start that is nearly everything.
        let is_firewall = |set| matches!(set, SetId::FirewallAllowed | SetId::FirewallIps);
        let other = |wanted: &mut DesiredElement<'_>| {
            is_firewall(wanted.set) || held.get(wanted.set, &wanted.element.key).is_some()
        };
        for wanted in new.extract_if(.., other).collect::<Vec<_>>() {
            match held.remove(wanted.set, &wanted.element.key) {
                Some(known) if known == wanted.element => {}
                Some(known) => {
                    replaced.insert(wanted.set, known);
                    changed.push(wanted);
                }
                None if is_firewall(wanted.set) => firewall.push(wanted),
                None => new.push(wanted),
            }
        }
        self.firewall(sets, &mut held, &mut replaced, firewall, &mut changed);
        self.add(sets, new);
        self.first.transaction.cut();
        for (set, elements) in replaced.into_sorted() {
            self.first.push(Operation::DeleteElements(sets.get(set), elements), None);
        }
        for (set, elements) in held.into_sorted() {
            let operation = Operation::DeleteElements(sets.get(set), elements);
            if set.is_support() { self.later.push(operation) } else { self.first.push(operation, None) }
        }
        self.add_uncut(sets, changed);
        self.first.transaction.cut();
    }

    /// Ranges may not overlap, so those that go go first; and nobody gets in before it is known who may.
    fn firewall(
        &mut self,
        sets: &SetDefinitions,
        held: &mut ElementIndex,
        replaced: &mut ElementIndex,
        new: Vec<DesiredElement<'a>>,
        changed: &mut Vec<DesiredElement<'a>>,
    ) {
        let allowed = SetId::FirewallAllowed;
        let (ranges, rest): (Vec<_>, Vec<_>) = std::mem::take(changed).into_iter().partition(|w| w.set == allowed);
        *changed = rest;
        let going = [held, replaced].into_iter().filter_map(|held| held.0.remove(&allowed));
        let mut going: Vec<Element> = going.flatten().map(|Keyed(element)| element).collect();
        going.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        if !going.is_empty() {
            self.first.push(Operation::DeleteElements(sets.get(allowed), going), None);
        }
        let mut new: Vec<DesiredElement<'_>> = ranges.into_iter().chain(new).collect();
        new.sort_by_key(|wanted| wanted.set != allowed);
        self.add_uncut(sets, new);
        self.first.transaction.cut();
    }

    fn add(&mut self, sets: &SetDefinitions, wanted: Vec<DesiredElement<'a>>) {
        self.write(sets, wanted, true);
    }

    fn add_uncut(&mut self, sets: &SetDefinitions, wanted: Vec<DesiredElement<'a>>) {
        self.write(sets, wanted, false);
    }

    /// Neighbours of one owner and set become one operation. What has another owner makes sense alone.
    fn write(&mut self, sets: &SetDefinitions, wanted: Vec<DesiredElement<'a>>, cut: bool) {
        let lengths: Vec<usize> =
            wanted.chunk_by(|a, b| a.owner == b.owner && a.set == b.set).map(<[_]>::len).collect();
        let mut rest = wanted.into_iter().peekable();
        for length in lengths {
            let Some(DesiredElement { owner, set, .. }) = rest.peek() else { break };
            let (owner, set) = (*owner, *set);
            let elements = rest.by_ref().take(length).map(|wanted| wanted.element).collect();
            self.first.push(Operation::AddElements(sets.get(set), elements), owner);
            if cut && rest.peek().is_some_and(|next| next.owner != owner) {
                self.first.transaction.cut();
            }
        }
    }
}
