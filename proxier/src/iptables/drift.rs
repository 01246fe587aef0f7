//! Whether the kernel still holds what the last sync left.
//!
//! In: the state after the last sync, the tables as read back. Out: what a person should know of the difference.
//! Must not know: how to mend it.

use std::collections::HashMap;

use tracing::warn;

use super::named;
use super::names;
use super::state::{Observed, State};
use crate::netfilter::SavedChain;
use crate::netfilter::iptables::{Chain, Table};

type Place = (Table, Chain);

/// Chains whose text this host's iptables prints in other words than ours, with the fingerprint of its words.
#[derive(Debug, Default)]
pub(super) struct Accepted {
    accepted: HashMap<Place, u64>,
    suspects: Vec<Place>,
}

impl Accepted {
    /// The first difference and how many more there are; `None` if there is none.
    pub fn drift(&mut self, state: &State, observed: &Observed) -> Option<String> {
        self.suspects.clear();
        let mut first = None;
        let mut count = 0_usize;
        let mut note = |text: String| {
            count += 1;
            first.get_or_insert(text);
        };
        for jump in &observed.missing_jumps {
            note(format!("the jump from {} to {} in table {} is gone", jump.from, jump.to, jump.table.name()));
        }
        for (place, expected) in expectations(state) {
            let found = observed.chain(place.0, &place.1);
            match found {
                _ if self.matches(place, expected, found) => {}
                None => note(format!("{} is gone", named(place.0, place.1))),
                Some(found) if found.rules == expected.rules => {
                    self.suspects.push(place);
                    note(format!("a rule of {} was altered", named(place.0, place.1)));
                }
                Some(found) => {
                    let (has, had) = (found.rules, expected.rules);
                    note(format!("{} has {has} rules, it had {had}", named(place.0, place.1)));
                }
            }
        }
        let first = first?;
        Some(if count > 1 { format!("{first}, and {} more differences", count - 1) } else { first })
    }

    fn matches(&self, place: Place, expected: SavedChain, found: Option<SavedChain>) -> bool {
        let Some(found) = found else { return false };
        // The kubelet may keep rules of its own in this one.
        let shared_with_kubelet = place.1 == names::KUBELET_FIREWALL && found.rules >= expected.rules;
        let accepted = found.rules == expected.rules && self.accepted.get(&place) == Some(&found.fingerprint);
        found == expected || accepted || shared_with_kubelet
    }

    pub fn has_suspects(&self) -> bool {
        !self.suspects.is_empty()
    }

    /// After suspects were written anew: takes those that read the same as before for a matter of wording.
    pub fn settle(&mut self, state: &State, observed: &Observed) {
        let expected: HashMap<Place, SavedChain> = expectations(state).collect();
        for place in std::mem::take(&mut self.suspects) {
            let (Some(expected), Some(found)) = (expected.get(&place), observed.chain(place.0, &place.1)) else {
                continue;
            };
            if found.rules == expected.rules && found != *expected {
                warn!(
                    "iptables-save words {} otherwise than expected; only its length is checked",
                    named(place.0, place.1)
                );
                self.accepted.insert(place, found.fingerprint);
            }
        }
    }
}

fn expectations(state: &State) -> impl Iterator<Item = (Place, SavedChain)> {
    let canary = |table| ((table, names::CANARY), SavedChain::default());
    let fixed = state.fixed.iter().map(|(place, chain)| (*place, *chain));
    let own =
        state.ports.values().flat_map(|port| port.own.iter()).map(|(chain, print)| ((Table::Nat, *chain), *print));
    Table::ALL.into_iter().map(canary).chain(fixed).chain(own)
}
