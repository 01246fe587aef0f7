//! Finds the flavour of iptables whose rules packets meet.

use std::collections::BTreeMap;

use netfilter::IpFamily;
use netfilter::kernel::{Flavour, FlavourChoice, NftReader, detect_flavour, has_chain, has_legacy_tables};
use netfilter::nft::ruleset::{Ruleset, TableId};
use proxier::xtables::FLAVOUR_HINTS;

use super::rule_source::RuleSource;
use crate::rules;

/// The chain of a kube-proxy in iptables mode that leads to all Services.
pub(super) const LANDMARK: &str = "KUBE-SERVICES";

/// Which flavour packets meet.
pub(super) struct Flavours {
    pub choice: FlavourChoice,
    pub flavour: Flavour,
    /// Families that have kube-proxy's rules in the other flavour.
    pub in_other: Vec<IpFamily>,
    /// What had to be read to find out, of that flavour.
    pub sources: BTreeMap<IpFamily, Result<RuleSource, String>>,
}

impl Flavours {
    /// Finds it.
    pub fn find() -> Self {
        let choice = detect_flavour(&FLAVOUR_HINTS);
        let chosen = choice.flavour.unwrap_or(Flavour::Nft);
        let (here, sources) = present(chosen);
        let (in_other, other_sources) = present(other(chosen));
        // Packets meet the rules of the other flavour if only that one has some.
        let is_other = here.is_empty() && !in_other.is_empty();
        let (flavour, sources) = if is_other { (other(chosen), other_sources) } else { (chosen, sources) };
        Self { choice, flavour, in_other, sources }
    }

    /// The rules of a family in that flavour, by an outline of its tables. `is_complete`: the outline has all chains.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn source(&mut self, family: IpFamily, outline: &Ruleset, is_complete: bool) -> Result<RuleSource, String> {
        match self.flavour {
            Flavour::Nft => Ok(RuleSource::native(outline, is_complete)),
            Flavour::Legacy => self.sources.remove(&family).unwrap_or_else(|| RuleSource::legacy(family)),
        }
    }
}

/// The families that have kube-proxy's rules in a flavour, and what was read for that. A chain without rules is none.
fn present(flavour: Flavour) -> (Vec<IpFamily>, BTreeMap<IpFamily, Result<RuleSource, String>>) {
    let (mut families, mut sources) = (Vec::new(), BTreeMap::new());
    for family in IpFamily::ALL {
        let there = match flavour {
            Flavour::Nft => {
                let (mut tables, id) = (NftReader::new(family), TableId::of(family, "nat"));
                has_chain(family, "nat", LANDMARK).unwrap_or(false) && tables.has_rules(&id, LANDMARK).unwrap_or(true)
            }
            Flavour::Legacy if !has_legacy_tables(family).unwrap_or(true) => false,
            Flavour::Legacy => {
                let source = sources.entry(family).or_insert_with(|| RuleSource::legacy(family));
                source.as_ref().is_ok_and(|source| source.has_rules("nat", LANDMARK))
            }
        };
        families.extend(there.then_some(family));
    }
    (families, sources)
}

/// The flavour that is not this one.
pub(super) fn other(flavour: Flavour) -> Flavour {
    if flavour == Flavour::Nft { Flavour::Legacy } else { Flavour::Nft }
}

/// A ruleset of a flavour without tables.
pub(super) fn of_flavour(family: IpFamily, flavour: Flavour) -> rules::Ruleset {
    match flavour {
        Flavour::Nft => rules::Ruleset::new(family),
        Flavour::Legacy => rules::Ruleset::new_legacy(family),
    }
}
