//! Changes shared chains rule by rule, so that a new or deleted Service costs what its own rules cost.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use netfilter::{EditedChain, RuleEdit, SavedChain};

use super::base;
use super::plan::{NAT_SERVICES, Planner, RenderedPorts};
use super::render::SHARED;
use crate::model::ServicePortName;

/// The most places at which a shared chain is edited instead of rewritten.
const EDITS_MAX: usize = 200;

impl<F> Planner<'_, F> {
    /// Replaces the rules of changed Service ports in a shared chain, in the order of their names.
    ///
    /// Returns whether that was possible: the tool can do it, the rules are few, and the chain is the one that the last
    /// sync wrote.
    pub(super) fn edit_shared(
        &mut self,
        index: usize,
        changed: &BTreeSet<ServicePortName>,
        rendered: &RenderedPorts<'_>,
    ) -> bool {
        let (table, chain) = SHARED[index];
        let state = self.input.state;
        let Some(written) = state.fixed.get(&(table, chain)).filter(|_| self.input.edits_rules) else { return false };
        let (mut before, mut after) = (SavedChain::default(), SavedChain::default());
        let mut edits = Vec::new();
        let programmed = state.ports.iter().map(|(name, port)| (name, port.shared[index]));
        for (name, old) in merged(programmed, changed) {
            let mut new = old;
            if changed.contains(name) {
                let (owner, rules) =
                    rendered.get(name).map_or((None, &[][..]), |(owner, rules)| (Some(*owner), &rules[index]));
                new = SavedChain::of(rules);
                if new != old {
                    edits.push((RuleEdit { after: after.rules, deleted: old.rules, inserted: rules }, owner));
                }
            }
            (before, after) = (before.then(old), after.then(new));
        }
        let tail = if index == NAT_SERVICES { base::node_port_dispatch(self.input.settings) } else { Vec::new() };
        let tail = SavedChain::of(&tail);
        (before, after) = (before.then(tail), after.then(tail));
        let count: u32 = edits.iter().map(|(edit, _)| edit.deleted).sum();
        if before != *written || edits.len() > EDITS_MAX || count as usize > EDITS_MAX {
            return false;
        }
        self.restore.begin_edits(table, EditedChain { chain, before, after });
        for (edit, owner) in &edits {
            self.restore.edit(table, chain, edit, *owner);
        }
        self.outcome.fixed.push(((table, chain), after));
        true
    }
}

/// The programmed Service ports and the changed ones, in order, each once; those that are not programmed have no rules.
fn merged<'a>(
    programmed: impl Iterator<Item = (&'a ServicePortName, SavedChain)>,
    changed: &'a BTreeSet<ServicePortName>,
) -> impl Iterator<Item = (&'a ServicePortName, SavedChain)> {
    let (mut programmed, mut changed, mut next_changed) = (programmed.peekable(), changed.iter(), None);
    std::iter::from_fn(move || {
        next_changed = next_changed.take().or_else(|| changed.next());
        let order = match (programmed.peek(), next_changed) {
            (Some((name, _)), Some(other)) => (*name).cmp(other),
            (Some(_), None) => Ordering::Less,
            (None, _) => Ordering::Greater,
        };
        match order {
            Ordering::Less => programmed.next(),
            Ordering::Equal => {
                next_changed = None;
                programmed.next()
            }
            Ordering::Greater => Some((next_changed.take()?, SavedChain::default())),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{NamespacedName, Protocol};

    fn name(text: &str) -> ServicePortName {
        let service = NamespacedName { namespace: "ns".into(), name: text.into() };
        ServicePortName { service, port: "".into(), protocol: Protocol::Tcp }
    }

    #[test]
    fn names_of_both_come_in_order_and_once() {
        let names = ["a", "c", "d"].map(name);
        let programmed = || names.iter().map(|name| (name, SavedChain { rules: 1, fingerprint: 7 }));
        let changed: BTreeSet<_> = ["b", "c", "e", "f"].map(name).into();
        let all = merged(programmed(), &changed).map(|(name, old)| format!("{}{}", name.service.name, old.rules));
        assert_eq!(all.collect::<Vec<_>>(), ["a1", "b0", "c1", "d1", "e0", "f0"]);
        assert_eq!(merged(programmed(), &BTreeSet::new()).count(), 3);
    }
}
