//! Detects drift: chains that differ from what the last sync wrote.

use std::collections::HashMap;

use netfilter::SavedChain;
use netfilter::iptables::{Chain, Table};
use tracing::warn;

use super::tables::ObservedTables;

/// The kubelet's chain, which it shares with iptables mode.
const KUBELET_FIREWALL: Chain = Chain::new("KUBE-FIREWALL");

/// A table and a chain in it.
pub type TableChain = (Table, Chain);

/// Chains that this host's iptables-save formats in another way, with the fingerprint of that text.
#[derive(Debug, Default)]
pub struct FormattingExceptions {
    accepted: HashMap<TableChain, u64>,
    suspects: Vec<TableChain>,
}

impl FormattingExceptions {
    /// Describes the first difference and counts the others; `None` without drift.
    pub fn drift(
        &mut self,
        expected_chains: impl Iterator<Item = (TableChain, SavedChain)>,
        observed: &ObservedTables,
    ) -> Option<String> {
        self.suspects.clear();
        let mut first = None;
        let mut count = 0_usize;
        let mut note = |text: String| {
            count += 1;
            first.get_or_insert(text);
        };
        for jump in &observed.missing_jumps {
            note(format!("the jump from {} to {} in table {} was deleted", jump.from, jump.to, jump.table.name()));
        }
        for (place, expected) in expected_chains {
            let found = observed.chain(place.0, &place.1);
            match found {
                _ if self.matches(place, expected, found) => {}
                None => note(format!("{} was deleted", describe(place))),
                Some(found) if found.rules == expected.rules => {
                    self.suspects.push(place);
                    note(format!("a rule of {} was altered", describe(place)));
                }
                Some(found) => {
                    let (has, had) = (found.rules, expected.rules);
                    note(format!("{} has {has} rules, expected {had}", describe(place)));
                }
            }
        }
        let first = first?;
        Some(if count > 1 { format!("{first}, and {} more differences", count - 1) } else { first })
    }

    fn matches(&self, place: TableChain, expected: SavedChain, found: Option<SavedChain>) -> bool {
        let Some(found) = found else { return false };
        // The kubelet may add rules of its own to this chain.
        let shared_with_kubelet = place.1 == KUBELET_FIREWALL && found.rules >= expected.rules;
        let accepted = found.rules == expected.rules && self.accepted.get(&place) == Some(&found.fingerprint);
        found == expected || accepted || shared_with_kubelet
    }

    /// Whether [`FormattingExceptions::drift`] found chains that may only be formatted differently.
    #[must_use]
    pub fn has_suspects(&self) -> bool {
        !self.suspects.is_empty()
    }

    /// Records suspects that read back the same after a rewrite as formatting exceptions.
    pub fn learn(
        &mut self,
        expected_chains: impl Iterator<Item = (TableChain, SavedChain)>,
        observed: &ObservedTables,
    ) {
        let expected: HashMap<TableChain, SavedChain> = expected_chains.collect();
        for place in std::mem::take(&mut self.suspects) {
            let (Some(expected), Some(found)) = (expected.get(&place), observed.chain(place.0, &place.1)) else {
                continue;
            };
            if found.rules == expected.rules && found != *expected {
                warn!(
                    "iptables-save formats {} in another way than expected; checking only its number of rules",
                    describe(place)
                );
                self.accepted.insert(place, found.fingerprint);
            }
        }
    }
}

/// Names a chain and its table in messages.
#[must_use]
pub fn describe((table, chain): TableChain) -> String {
    format!("chain {chain} of table {}", table.name())
}
