//! What differs between the table that nftables mode should have and the one that is there, in our own layout.
//!
//! In: both. Out: [`Difference`]s, element by element and rule by rule. Must not know: how either was made, or how to mend
//! it. Which endpoint has which number is no difference, nor are clients that rules remember, nor chains and sets that
//! nothing leads to any more.

use std::collections::{BTreeMap, HashMap};

use super::align::{Line, aligned, best_pairs};
use super::{Difference, DifferenceKind};
use crate::family::IpFamily;
use crate::model::ServicePortName;
use crate::netfilter::nft::{Bytes, Chain, Element, Name, Set};
use crate::nftables::{Expected, ExpectedChain, ExpectedElement, ExpectedSet, Place, place_of};

/// A rule in the words of nft.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worded(pub String);

impl Line for Worded {
    fn text(&self) -> &str {
        &self.0
    }
}

/// A set as it is.
#[derive(Clone, Debug, Default)]
pub struct FoundSet {
    /// Whether it is defined as this one should be.
    pub as_defined: bool,
    /// Its elements.
    pub elements: HashMap<Bytes, Element>,
}

/// A table as it is.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Its comment.
    pub comment: Option<Name>,
    /// Its chains with their rules.
    pub chains: BTreeMap<Name, (Chain, Vec<Worded>)>,
    /// Its sets and maps.
    pub sets: BTreeMap<Name, FoundSet>,
}

/// Compares. `None`: there is no table.
#[must_use]
pub fn differences(family: IpFamily, expected: &Expected, found: Option<&Found>) -> Vec<Difference> {
    let table = format!("{} {}", family.nft(), crate::nftables::TABLE);
    let mut search = Search { family, table, owners: Owners::of(family, expected), found: Vec::new() };
    let Some(found) = found else {
        search.note(DifferenceKind::MissingTable, "", None, None, None);
        return search.found;
    };
    if found.comment.as_deref() != Some(expected.comment) {
        let comment = |text: &str| format!("comment \"{text}\"");
        let is = found.comment.as_deref().map(comment);
        search.note(DifferenceKind::AlteredTable, "", Some(comment(expected.comment)), is, None);
    }
    for (name, chain) in &expected.chains {
        search.chain(name, chain, found);
    }
    for (name, (chain, _)) in found.chains.iter().filter(|(name, _)| !expected.chains.contains_key(*name)) {
        // Others are met only by who is led there, and what leads there is a difference.
        if let Some(base) = &chain.base {
            search.note(DifferenceKind::UnexpectedChain, name, None, Some(base.to_string()), None);
        }
    }
    for (name, set) in &expected.sets {
        search.set(name, set, found.sets.get(name));
    }
    search.found.sort();
    search.found
}

/// Which Service port has which address and port.
struct Owners<'a> {
    family: IpFamily,
    by_destination: HashMap<(Place, &'a [u8]), &'a ServicePortName>,
}

impl<'a> Owners<'a> {
    fn of(family: IpFamily, expected: &'a Expected) -> Self {
        let mut by_destination = HashMap::new();
        for (name, set) in &expected.sets {
            let Some((place, length)) = place_of(family, name) else { continue };
            for (key, (_, owner)) in &set.elements {
                if let (Some(destination), Some(owner)) = (key.get(..length), owner) {
                    by_destination.insert((place, destination), owner);
                }
            }
        }
        Self { family, by_destination }
    }

    /// Whose an element is that nobody wants so.
    fn of_element(&self, set: &str, element: &Element) -> Option<String> {
        let by_key = || {
            let (place, length) = place_of(self.family, set)?;
            Some(self.by_destination.get(&(place, element.key.get(..length)?))?.to_string())
        };
        let comment = element.comment.as_deref().filter(|comment| comment.contains('/'));
        by_key().or_else(|| comment.map(str::to_owned))
    }
}

struct Search<'a> {
    family: IpFamily,
    table: String,
    owners: Owners<'a>,
    found: Vec<Difference>,
}

impl Search<'_> {
    fn note(
        &mut self,
        kind: DifferenceKind,
        chain: &str,
        expected: Option<String>,
        found: Option<String>,
        service: Option<String>,
    ) {
        let (family, table, chain) = (self.family.name(), self.table.clone(), chain.to_owned());
        self.found.push(Difference { family, kind, table, chain, expected, found, service });
    }

    fn chain(&mut self, name: &str, expected: &ExpectedChain, found: &Found) {
        let service = || expected.owner.as_ref().map(ToString::to_string);
        let Some((chain, rules)) = found.chains.get(name) else {
            self.note(DifferenceKind::MissingChain, name, None, None, service());
            return;
        };
        if *chain != expected.chain {
            let head = |chain: &Chain| {
                let comment = chain.comment.as_ref().map(|text| format!("comment \"{text}\""));
                let parts = chain.base.as_ref().map(ToString::to_string).into_iter().chain(comment);
                Some(parts.collect::<Vec<_>>().join(" "))
            };
            self.note(DifferenceKind::AlteredChain, name, head(&expected.chain), head(chain), service());
        }
        let wanted: Vec<Worded> = expected.rules.iter().map(|rule| Worded(rule.to_string())).collect();
        if wanted == *rules {
            return;
        }
        let (wanted, held): (Vec<&Worded>, Vec<&Worded>) = (wanted.iter().collect(), rules.iter().collect());
        let (mut missing, mut extra) = aligned(&wanted, &held);
        let mut moved = Vec::new();
        missing.retain(|rule| match extra.iter().position(|other| other == rule) {
            Some(at) => {
                moved.push((*rule, extra.remove(at)));
                false
            }
            None => true,
        });
        let altered = best_pairs(&mut missing, &mut extra);
        let text = |rule: &Worded| Some(rule.0.clone());
        for (kind, pairs) in [(DifferenceKind::MovedRule, moved), (DifferenceKind::AlteredRule, altered)] {
            for (a, b) in pairs {
                self.note(kind, name, text(a), text(b), service());
            }
        }
        for rule in missing {
            self.note(DifferenceKind::MissingRule, name, text(rule), None, service());
        }
        for rule in extra {
            self.note(DifferenceKind::UnexpectedRule, name, None, text(rule), service());
        }
    }

    fn set(&mut self, name: &str, expected: &ExpectedSet, found: Option<&FoundSet>) {
        let Some(found) = found else {
            self.note(DifferenceKind::MissingSet, name, None, None, None);
            return;
        };
        let set: &Set = &expected.set;
        if !found.as_defined {
            let definition = set.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
            self.note(DifferenceKind::AlteredSet, name, Some(definition), None, None);
            return;
        }
        if set.dynamic {
            return;
        }
        let text = |element: &Element| Some(element.of(set).to_string());
        for (key, (wanted, owner)) in &expected.elements {
            let service = owner.as_ref().map(ToString::to_string);
            match found.elements.get(key) {
                Some(held) if held == wanted => {}
                Some(held) => self.note(DifferenceKind::AlteredElement, name, text(wanted), text(held), service),
                None => self.note(DifferenceKind::MissingElement, name, text(wanted), None, service),
            }
        }
        let is_wanted = |key: &Bytes| -> Option<&ExpectedElement> { expected.elements.get(key) };
        for (_, held) in found.elements.iter().filter(|(key, _)| is_wanted(key).is_none()) {
            let service = self.owners.of_element(name, held);
            self.note(DifferenceKind::UnexpectedElement, name, None, text(held), service);
        }
    }
}
