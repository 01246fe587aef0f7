//! Plans chains, rules and set definitions: everything but elements of fixed sets.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use netfilter::kernel::nftables::{ReadRule, ReadSet, ReadTable};
use netfilter::nft::{Chain, Name, Operation, Rule, Set};

use super::names::{self, PacketOrigin, SharedChain, TABLE_COMMENT};
use super::plan::{Plan, SetDefinitions};
use super::rules::{self, ChainWithRules};
use super::settings::NftablesSettings;

/// The separator in names of upstream's Service port chains; no other chain has it.
const UPSTREAM_SEPARATOR: char = '/';

/// All desired chains, ordered so that none jumps to a later one.
pub fn chains(settings: &NftablesSettings, shared: &BTreeSet<SharedChain>) -> Vec<ChainWithRules> {
    let of = |chain: &SharedChain| (chain.to_chain(), rules::shared(*chain, settings));
    shared.iter().map(of).chain(rules::fixed(settings)).collect()
}

/// Why the table must be replaced as a whole; `None` if the difference can be written.
///
/// The kernel cannot change such an object in place, or the table is foreign and may have any content.
#[must_use]
pub fn conflict(read: &ReadTable, sets: &SetDefinitions, settings: &NftablesSettings) -> Option<String> {
    if read.comment.as_deref() != Some(TABLE_COMMENT) {
        return Some("the table has another comment".to_owned());
    }
    if read.dormant {
        return Some("the table is dormant".to_owned());
    }
    if read.others > 0 {
        return Some(format!("the table has {} named objects or flow tables", read.others));
    }
    let is_other = |set: &Set| read.sets.get(&set.name).is_some_and(|held| *held != ReadSet::of(set));
    if let Some((_, set)) = sets.iter().find(|(_, set)| is_other(set)) {
        return Some(format!("{} is not the expected {}", set.name, set.keyword()));
    }
    let source_ranges = PacketOrigin::ALL.map(|origin| SharedChain::SourceRanges(origin).to_chain());
    let known: Vec<Chain> = rules::fixed(settings).into_iter().map(|(chain, _)| chain).chain(source_ranges).collect();
    let ours = |name: &Name| known.iter().find(|chain| chain.name == *name);
    let of_upstream = |name: &Name| name.contains(UPSTREAM_SEPARATOR);
    let is_other = |(name, (held, _)): &(&Name, &(Chain, Vec<ReadRule>))| match ours(name) {
        Some(chain) => held.base != chain.base || held.comment != chain.comment,
        None => held.base.is_some() || of_upstream(name),
    };
    let (name, (held, _)) = read.chains.iter().find(is_other)?;
    Some(match held.base {
        _ if of_upstream(name) => format!("chain {name} belongs to another kube-proxy"),
        Some(_) if ours(name).is_none() => format!("base chain {name} is unknown"),
        _ => format!("chain {name} has another type, hook, priority, policy or comment"),
    })
}

/// Whether a client set has another definition.
fn is_other(read: &ReadTable, set: &Set) -> bool {
    read.sets.get(&set.name).is_some_and(|held| *held != ReadSet::of(set))
}

/// Creates the table and all objects that elements refer to: everything but the base chains.
pub fn build(
    plan: &mut Plan<'_>,
    settings: &NftablesSettings,
    sets: &SetDefinitions,
    shared: &BTreeSet<SharedChain>,
    affinity_sets: u32,
) {
    plan.first.push(Operation::AddTable { comment: Some(TABLE_COMMENT.into()) }, None);
    let chains: Vec<ChainWithRules> =
        chains(settings, shared).into_iter().filter(|(chain, _)| chain.base.is_none()).collect();
    for (chain, _) in &chains {
        plan.first.push(Operation::AddChain(chain.clone()), None);
    }
    let affinity = (0..affinity_sets).map(|number| names::affinity_set(settings.family, number));
    for set in sets.iter().map(|(_, set)| set.clone()).chain(affinity) {
        plan.first.push(Operation::AddSet(set), None);
    }
    for (chain, rules) in &chains {
        add_rules(plan, &chain.name, rules);
    }
}

/// Creates the base chains: from then on, packets traverse the table.
pub fn attach(plan: &mut Plan<'_>, settings: &NftablesSettings, shared: &BTreeSet<SharedChain>) {
    for (chain, rules) in chains(settings, shared).into_iter().filter(|(chain, _)| chain.base.is_some()) {
        plan.first.push(Operation::AddChain(chain.clone()), None);
        add_rules(plan, &chain.name, &rules);
    }
}

/// Plans the structure. `read` is `None` without a table, or if it is to be replaced.
pub fn plan(
    plan: &mut Plan<'_>,
    read: Option<&ReadTable>,
    settings: &NftablesSettings,
    sets: &SetDefinitions,
    shared: &BTreeSet<SharedChain>,
    affinity_sets: u32,
) {
    let nothing = ReadTable::default();
    if read.is_none() {
        plan.first.push(Operation::AddTable { comment: Some(TABLE_COMMENT.into()) }, None);
    }
    let read = read.unwrap_or(&nothing);
    let affinity = (0..affinity_sets).map(|number| names::affinity_set(settings.family, number));
    let affinity: Vec<Arc<Set>> = affinity.collect();
    let mut foreign_rules: BTreeMap<&Name, &Vec<ReadRule>> =
        read.chains.iter().map(|(name, (_, rules))| (name, rules)).collect();
    let wanted = chains(settings, shared);
    let kept = |name: &Name| sets.iter().map(|(_, set)| set).chain(&affinity).any(|set| set.name == *name);
    for (chain, _) in &wanted {
        if !read.chains.contains_key(&chain.name) {
            plan.first.push(Operation::AddChain(chain.clone()), None);
        }
    }
    // Rules that refer to a replaced set must be flushed first.
    let others: Vec<&Set> = affinity.iter().map(AsRef::as_ref).filter(|set| is_other(read, set)).collect();
    let mut flushed: BTreeSet<&Name> = BTreeSet::new();
    for (chain, rules) in &wanted {
        let Some(held) = foreign_rules.remove(&chain.name) else { continue };
        let equal = held.len() == rules.len() && held.iter().zip(rules).all(|(held, rule)| held.is(rule));
        if !equal || !others.is_empty() {
            if !held.is_empty() {
                plan.first.push(Operation::FlushChain(chain.name.clone()), None);
            }
            flushed.insert(&chain.name);
        }
    }
    // Packets reach these chains until the verdicts are gone; references to replaced sets must go now.
    let flush = |name: &&Name| Operation::FlushChain((*name).clone());
    for name in foreign_rules.iter().filter(|(_, rules)| !rules.is_empty()).map(|(name, _)| name) {
        if others.is_empty() { plan.later.push(flush(name)) } else { plan.first.push(flush(name), None) }
    }
    for set in &others {
        plan.first.push(Operation::DeleteSet(Arc::new((*set).clone())), None);
    }
    for set in sets.iter().map(|(_, set)| set).chain(&affinity) {
        if !read.sets.contains_key(&set.name) || others.iter().any(|other| other.name == set.name) {
            plan.first.push(Operation::AddSet(set.clone()), None);
        }
    }
    for (chain, rules) in &wanted {
        if !read.chains.contains_key(&chain.name) || flushed.contains(&chain.name) {
            add_rules(plan, &chain.name, rules);
        }
    }
    // Anonymous sets are deleted with their rules.
    for (name, set) in read.sets.iter().filter(|(name, set)| !kept(name) && !set.is_anonymous()) {
        let set = if set.is_map() { Set::verdicts(name.clone(), []) } else { Set::of(name.clone(), []) };
        plan.last.push(Operation::DeleteSet(Arc::new(set)));
    }
    for name in foreign_rules.keys() {
        plan.last.push(Operation::DeleteChain((*name).clone()));
    }
}

fn add_rules(plan: &mut Plan<'_>, chain: &Name, rules: &[Rule]) {
    for rule in rules {
        plan.first.push(Operation::AddRule { chain: chain.clone(), rule: rule.clone() }, None);
    }
}

/// Creates new chains and client sets.
pub fn grow(
    plan: &mut Plan<'_>,
    settings: &NftablesSettings,
    new: impl Iterator<Item = SharedChain>,
    affinity_sets: std::ops::Range<u32>,
) {
    for number in affinity_sets {
        plan.first.push(Operation::AddSet(names::affinity_set(settings.family, number)), None);
    }
    for chain in new {
        let name = chain.to_name();
        plan.first.push(Operation::AddChain(chain.to_chain()), None);
        add_rules(plan, &name, &rules::shared(chain, settings));
    }
}

/// Deletes unused chains and client sets, ordered so that no chain jumps to a deleted one.
pub fn shrink(
    plan: &mut Plan<'_>,
    settings: &NftablesSettings,
    gone: impl DoubleEndedIterator<Item = SharedChain>,
    affinity_sets: std::ops::Range<u32>,
) {
    for chain in gone.rev() {
        plan.last.push(Operation::DeleteChain(chain.to_name()));
    }
    for number in affinity_sets {
        plan.last.push(Operation::DeleteSet(names::affinity_set(settings.family, number)));
    }
}
