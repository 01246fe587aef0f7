//! Reads a table as [`IptablesTool::save`](crate::kernel::IptablesTool::save) returns it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::base::BUILTIN;
use super::inspected::RuleContent;
use super::listing::ChainListing;
use super::read::{NftRules, ReadRule};
use super::rule::DecodedRule;
use crate::iptables::{Chain, Table};
use crate::kernel::nftables::{self, NftError};
use crate::nft::ruleset::{self, TableId};
use crate::{SavedChain, SavedTable, nft};

/// The most chains that are read in one dump. For each 32 KiB the kernel passes over all rules before, so that its time
/// is quadratic in the number of rules.
pub(in crate::kernel) const CHAINS_AT_ONCE: usize = 2000;

/// A table, or the reason why it must be left alone.
pub(super) type Readable<T> = Result<T, Incompatible>;

/// A rule that iptables-nft does not accept in its tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Incompatible(pub String);

/// The text of a rule as it follows `-A CHAIN`.
///
/// A rule that is not understood has a text that no rule of this crate has; its target can be recognized.
pub(super) fn text(rule: &DecodedRule, out: &mut String) {
    match rule {
        DecodedRule::Known(rule) => rule.write_to(out),
        DecodedRule::Unknown(unknown) => {
            out.push_str(" -m unknown --part \"");
            out.push_str(&unknown.part.replace(['"', '\\'], "_"));
            out.push('"');
            if let Some(target) = &unknown.target {
                out.push_str(" -j ");
                out.push_str(target);
            }
        }
    }
}

/// What is collected of a table's rules.
#[derive(Default)]
struct Collected {
    chains: HashMap<Chain, SavedChain>,
    builtin: Vec<String>,
    incompatible: Option<Incompatible>,
    buffer: String,
}

impl Collected {
    /// Adds a rule of a chain, which has this content before.
    fn add_to(&mut self, content: &mut SavedChain, (table, chain): (Table, &str), read: &ReadRule) {
        if let DecodedRule::Unknown(unknown) = &read.rule
            && !unknown.is_compatible
        {
            let why = format!("chain {chain} of table {} has a rule with {}", table.name(), unknown.part);
            self.incompatible.get_or_insert(Incompatible(why));
        }
        self.buffer.clear();
        text(&read.rule, &mut self.buffer);
        if BUILTIN.contains(&chain) {
            self.builtin.push(format!("-A {chain}{}", self.buffer));
        } else {
            content.add(&self.buffer);
        }
    }

    fn add(&mut self, (table, chain): (Table, &str), read: &ReadRule) {
        let user_chain = Chain::parse(chain).filter(|_| !BUILTIN.contains(&chain));
        let mut content = user_chain.and_then(|chain| self.chains.get(&chain).copied()).unwrap_or_default();
        self.add_to(&mut content, (table, chain), read);
        self.chains.extend(user_chain.map(|chain| (chain, content)));
    }

    fn finish(self) -> Readable<SavedTable> {
        match self.incompatible {
            Some(incompatible) => Err(incompatible),
            None => Ok(SavedTable { chains: self.chains, builtin: self.builtin }),
        }
    }
}

/// Reads a table: a fingerprint of each user-defined chain, and the rules of built-in chains as text.
///
/// Chain by chain if there are many, or while other programs write all the time: each of them is whole. `generation` is
/// that of nf_tables, if known.
pub(super) fn save(
    rules: &mut NftRules,
    listing: &mut ChainListing,
    (table, generation): (Table, Option<u32>),
) -> Result<Readable<SavedTable>, NftError> {
    let listed = listing.take(rules.family(), table, generation)?;
    if listed.is_whole && listed.chains.len() <= CHAINS_AT_ONCE {
        match save_at_once(rules, table, &listed.chains) {
            Err(NftError::Interrupted) => {}
            saved => return saved,
        }
        // Chains may have come or gone.
        let listed = listing.take(rules.family(), table, None)?;
        return save_by_chain(rules, table, listed.chains);
    }
    save_by_chain(rules, table, listed.chains)
}

fn save_at_once(rules: &mut NftRules, table: Table, names: &[Chain]) -> Result<Readable<SavedTable>, NftError> {
    let add = |collected: &mut Collected, chain: &str, read| collected.add((table, chain), &read);
    let mut collected = rules.table(table.name(), add)?;
    let mut read = std::mem::take(&mut collected.chains);
    collected.chains = names.iter().map(|name| (*name, read.remove(name).unwrap_or_default())).collect();
    Ok(collected.finish())
}

fn save_by_chain(rules: &mut NftRules, table: Table, names: Vec<Chain>) -> Result<Readable<SavedTable>, NftError> {
    let mut collected = Collected { chains: HashMap::with_capacity(names.len()), ..Collected::default() };
    for chain in BUILTIN {
        for read in rules.chain(table.name(), chain)? {
            collected.add((table, chain), &read);
        }
    }
    for chain in names {
        let mut content = SavedChain::default();
        for read in rules.chain(table.name(), chain.as_str())? {
            collected.add_to(&mut content, (table, chain.as_str()), &read);
        }
        collected.chains.insert(chain, content);
    }
    Ok(collected.finish())
}

/// For each of our chains that rules of other chains refer to: the first such rule.
///
/// Reads the other chains only: a dump of all rules is quadratic in the kernel.
pub(super) fn references(
    rules: &mut NftRules,
    table: Table,
    ours: &dyn Fn(&Chain) -> bool,
) -> Result<HashMap<Chain, String>, NftError> {
    let (chains, complete) = nftables::chains(&nft::Table { family: rules.family(), name: table.name().into() })?;
    if !complete {
        return Err(NftError::Interrupted);
    }
    let mut found = HashMap::new();
    for from in chains.iter().filter(|from| !Chain::parse(from).is_some_and(|from| ours(&from))) {
        for (index, read) in rules.chain(table.name(), from)?.iter().enumerate() {
            let Some(to) = read.rule.jump().and_then(Chain::parse).filter(ours) else { continue };
            if let Entry::Vacant(first) = found.entry(to) {
                first.insert(reference(rules, table, (from, index), &read.rule)?);
            }
        }
    }
    Ok(found)
}

/// A rule as iptables-save prints it, or as nft does where this crate has no words of iptables for it.
fn reference(
    rules: &mut NftRules,
    table: Table,
    (from, index): (&str, usize),
    rule: &DecodedRule,
) -> Result<String, NftError> {
    let mut line = format!("-A {from}");
    if let DecodedRule::Unknown(_) = rule {
        let (inspected, _) = rules.inspect_chain(table.name(), from)?;
        if let Some(RuleContent::Expressions(held)) = inspected.get(index).map(|inspected| &inspected.content) {
            let id = TableId::of(rules.family(), table.name());
            return Ok(format!("{id} {from}: {} (in nft syntax)", held.text(&id, &ruleset::Table::default())));
        }
    }
    text(rule, &mut line);
    Ok(line)
}
