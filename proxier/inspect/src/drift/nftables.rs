//! Compares the expected table of nftables mode with the one found, in our own layout.
//!
//! The result is [`Difference`]s, element by element and rule by rule. The numbering of endpoints, the clients that session
//! affinity remembers, and chains and sets without references are ignored.

use std::borrow::Cow;
use std::collections::HashMap;

use netfilter::IpFamily;
use netfilter::nft::ruleset::{self, Table, TableId};
use netfilter::nft::{BaseChain, Element, Expression, Field, Name, Rule, Set};

use super::{Difference, DifferenceKind};
use crate::similarity::{RuleText, aligned, best_pairs};
use proxier::model::ServicePortName;
use proxier::nftables::{
    Expected, ExpectedChain, ExpectedSet, TABLE, VipOrNodePort, checks_source_ranges, is_own_set, place_of,
};

/// A rule, and how nft prints it.
#[derive(Clone, Debug)]
struct PrintedRule<'a> {
    text: String,
    expressions: Cow<'a, [Expression]>,
    comment: Option<&'a str>,
}

impl RuleText for PrintedRule<'_> {
    fn text(&self) -> &str {
        &self.text
    }

    fn same(&self, other: &Self) -> bool {
        // nft encodes some statements with other expressions than we do.
        self.text == other.text || (self.expressions == other.expressions && self.comment == other.comment)
    }
}

impl<'a> PrintedRule<'a> {
    /// Prints the rule in the same form as the rules found.
    fn expected(id: &TableId, table: &Table, rule: &'a Rule) -> Self {
        let (expressions, comment) = (rule.expressions(), rule.comment.clone());
        let held = ruleset::Rule { handle: 0, expressions, comment, counters: None };
        let text = held.text(id, table);
        Self { text, expressions: Cow::Owned(held.expressions), comment: rule.comment.as_deref() }
    }

    fn found(id: &TableId, table: &Table, rule: &'a ruleset::Rule) -> Self {
        let expressions = Cow::Borrowed(rule.expressions.as_slice());
        Self { text: rule.text(id, table), expressions, comment: rule.comment.as_deref() }
    }
}

/// Whether a set has the expected definition.
fn is_defined_as(found: &ruleset::Set, expected: &Set) -> bool {
    let kinds = |fields: &[Field]| fields.iter().map(|field| field.type_number()).collect::<Vec<_>>();
    let held = |parts: &[ruleset::KeyField]| parts.iter().map(|part| part.kind).collect::<Vec<_>>();
    (found.is_interval(), found.is_map(), found.is_dynamic())
        == (expected.interval, expected.value.is_some(), expected.dynamic)
        && held(&found.key) == kinds(&expected.key)
        && found.value.as_deref().map(held) == expected.value.as_deref().map(kinds)
        && found.key_length() == Set::length(&expected.key)
        && (found.size, found.comment.as_deref()) == (expected.size, expected.comment.as_deref())
}

/// Whether an element has the expected value.
fn is_as(found: &ruleset::Element, expected: &Element) -> bool {
    (&found.key, &found.end, &found.value, &found.comment)
        == (&expected.key, &expected.end, &expected.value, &expected.comment)
        && found.timeout == u64::from(expected.timeout.unwrap_or(0)) * 1000
}

/// Whether a table has our layout.
///
/// After a move back to upstream's proxy, sets of ours are left, which no packet meets, beside its chain for each Service port
/// (`service-HASH-NAMESPACE/NAME/PROTOCOL/PORT`). Over those, ours makes the table anew.
#[must_use]
pub fn is_ours(table: &Table) -> bool {
    table.sets.keys().any(|name| is_own_set(name)) && !table.chains.keys().any(|name| name.contains('/'))
}

/// Compares the tables. `None`: the table does not exist. Of elements, only those of selected Service ports are compared, or
/// all without a selection.
#[must_use]
pub fn differences(
    family: IpFamily,
    expected: &Expected,
    found: Option<&Table>,
    selected: Option<&dyn Fn(&str) -> bool>,
) -> Vec<Difference> {
    let id = TableId::of(family, TABLE);
    let mut search = Search { family, id, owners: AddressOwners::of(family, expected), selected, found: Vec::new() };
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
    for (name, chain) in found.chains.iter().filter(|(name, _)| !expected.chains.contains_key(*name)) {
        // Other chains need a jump, and that jump is already a difference. Some may be of Service ports that are not selected.
        let may_be_of_others = selected.is_some() && checks_source_ranges(name);
        if let Some(base) = chain.base.as_ref().filter(|_| !may_be_of_others) {
            search.note(DifferenceKind::UnexpectedChain, name, None, Some(base.to_string()), None);
        }
    }
    for (name, set) in &expected.sets {
        search.set(name, set, found.sets.get(name));
    }
    search.found.sort();
    search.found
}

/// The Service port that owns each address and port.
struct AddressOwners<'a> {
    family: IpFamily,
    by_destination: HashMap<(VipOrNodePort, &'a [u8]), &'a ServicePortName>,
}

impl<'a> AddressOwners<'a> {
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

    /// The owner of an unexpected element.
    fn of_element(&self, set: &str, element: &ruleset::Element) -> Option<String> {
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
    id: TableId,
    owners: AddressOwners<'a>,
    selected: Option<&'a dyn Fn(&str) -> bool>,
    found: Vec<Difference>,
}

impl Search<'_> {
    fn selects(&self, service: Option<&String>) -> bool {
        self.selected.is_none_or(|selects| service.is_some_and(|name| selects(name)))
    }

    fn note(
        &mut self,
        kind: DifferenceKind,
        chain: &str,
        expected: Option<String>,
        found: Option<String>,
        service: Option<String>,
    ) {
        let (family, table, chain) = (self.family.name(), self.id.to_string(), chain.to_owned());
        self.found.push(Difference { family, kind, table, chain, expected, found, service });
    }

    fn chain(&mut self, name: &str, expected: &ExpectedChain, found: &Table) {
        let service = || expected.owner.as_ref().map(ToString::to_string);
        let Some(chain) = found.chains.get(name) else {
            self.note(DifferenceKind::MissingChain, name, None, None, service());
            return;
        };
        if (&chain.base, &chain.comment) != (&expected.chain.base, &expected.chain.comment) {
            let head = |base: &Option<BaseChain>, comment: &Option<Name>| {
                let comment = comment.as_ref().map(|text| format!("comment \"{text}\""));
                let parts = base.as_ref().map(ToString::to_string).into_iter().chain(comment);
                Some(parts.collect::<Vec<_>>().join(" "))
            };
            let wanted = head(&expected.chain.base, &expected.chain.comment);
            self.note(DifferenceKind::AlteredChain, name, wanted, head(&chain.base, &chain.comment), service());
        }
        let wanted: Vec<PrintedRule<'_>> =
            expected.rules.iter().map(|rule| PrintedRule::expected(&self.id, found, rule)).collect();
        let held: Vec<PrintedRule<'_>> =
            chain.rules.iter().flatten().map(|rule| PrintedRule::found(&self.id, found, rule)).collect();
        if wanted.len() == held.len() && wanted.iter().zip(&held).all(|(a, b)| a.same(b)) {
            return;
        }
        let (wanted, held): (Vec<&PrintedRule<'_>>, Vec<&PrintedRule<'_>>) =
            (wanted.iter().collect(), held.iter().collect());
        let (mut missing, mut extra) = aligned(&wanted, &held);
        let mut moved = Vec::new();
        missing.retain(|rule| match extra.iter().position(|other| other.same(rule)) {
            Some(at) => {
                moved.push((*rule, extra.remove(at)));
                false
            }
            None => true,
        });
        let altered = best_pairs(&mut missing, &mut extra);
        let text = |rule: &PrintedRule<'_>| Some(rule.text.clone());
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

    fn set(&mut self, name: &str, expected: &ExpectedSet, found: Option<&ruleset::Set>) {
        let Some(found) = found else {
            self.note(DifferenceKind::MissingSet, name, None, None, None);
            return;
        };
        let set: &Set = &expected.set;
        if !is_defined_as(found, set) {
            let definition = set.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
            self.note(DifferenceKind::AlteredSet, name, Some(definition), None, None);
            return;
        }
        if set.dynamic {
            return;
        }
        let should_be = |element: &Element| Some(element.of(set).to_string());
        let is = |element: &ruleset::Element| Some(found.text(element).to_string());
        let held: HashMap<&[u8], &ruleset::Element> = found.elements.iter().map(|e| (&*e.key, e)).collect();
        for (key, (wanted, owner)) in &expected.elements {
            let service = owner.as_ref().map(ToString::to_string);
            match held.get(&**key) {
                Some(held) if is_as(held, wanted) => {}
                _ if !self.selects(service.as_ref()) => {}
                Some(held) => self.note(DifferenceKind::AlteredElement, name, should_be(wanted), is(held), service),
                None => self.note(DifferenceKind::MissingElement, name, should_be(wanted), None, service),
            }
        }
        for held in found.elements.iter().filter(|held| !expected.elements.contains_key(&held.key)) {
            let service = self.owners.of_element(name, held);
            if self.selects(service.as_ref()) {
                self.note(DifferenceKind::UnexpectedElement, name, None, is(held), service);
            }
        }
    }
}
