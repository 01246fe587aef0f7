//! Changes shared chains rule by rule, so that a new or deleted Service costs what its own rules cost.

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
        for name in merged(self.input.snapshot.ports.keys(), changed) {
            let old = state.ports.get(name).map_or_else(SavedChain::default, |port| port.shared[index]);
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

/// The names of both, in order, each once.
fn merged<'a>(
    names: impl Iterator<Item = &'a ServicePortName>,
    others: &'a BTreeSet<ServicePortName>,
) -> impl Iterator<Item = &'a ServicePortName> {
    let (mut names, mut others) = (names.peekable(), others.iter().peekable());
    std::iter::from_fn(move || match (names.peek(), others.peek()) {
        (Some(name), Some(other)) => {
            let order = name.cmp(other);
            let name = if order.is_le() { names.next() } else { None };
            let other = if order.is_ge() { others.next() } else { None };
            name.or(other)
        }
        _ => names.next().or_else(|| others.next()),
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
        let others: BTreeSet<_> = ["b", "c", "e", "f"].map(name).into();
        let all: Vec<String> = merged(names.iter(), &others).map(|name| name.service.name.to_string()).collect();
        assert_eq!(all, ["a", "b", "c", "d", "e", "f"]);
        assert_eq!(merged(names.iter(), &BTreeSet::new()).count(), 3);
    }
}
