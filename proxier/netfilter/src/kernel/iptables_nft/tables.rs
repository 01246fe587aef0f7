//! Reads a table as [`IptablesTool::save`](crate::kernel::IptablesTool::save) returns it.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::base::BUILTIN;
use super::inspected::RuleContent;
use super::read::{NFNL_SUBSYS_NFTABLES, NftRules, ReadRule};
use super::rule::DecodedRule;
use crate::iptables::{Chain, Table};
use crate::kernel::netlink::{Dump, NFGENMSG_LENGTH, Netlink, Request, nfgenmsg, nfnetlink};
use crate::kernel::nftables::{self, NftError};
use crate::nft::ruleset::{self, TableId};
use crate::{SavedChain, SavedTable, nft};

const NFT_MSG_GETCHAIN: u8 = 4;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;

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

/// The user-defined chains of a table. A table that does not exist has none.
///
/// Chains that come or go while the kernel lists them may be missing, unless `is_whole`.
fn user_chains(rules: &NftRules, table: Table, is_whole: bool) -> Result<Vec<Chain>, NftError> {
    let kind = nfnetlink(NFNL_SUBSYS_NFTABLES, NFT_MSG_GETCHAIN);
    let request = Request::new(kind, 0, &nfgenmsg(rules.family().nfproto()));
    let mut chains = Vec::new();
    let end = Netlink::open(NETLINK_NETFILTER)?.dump(&request, &mut |received| {
        let attributes = received.attributes(NFGENMSG_LENGTH);
        if attributes.text(NFTA_CHAIN_TABLE) == Some(table.name()) && attributes.find(NFTA_CHAIN_HOOK).is_none() {
            chains.extend(attributes.text(NFTA_CHAIN_NAME).and_then(Chain::parse));
        }
        Ok(())
    });
    match end {
        Ok(Dump::Complete) => Ok(chains),
        Ok(Dump::Interrupted) if is_whole => Err(NftError::Interrupted),
        Ok(Dump::Interrupted) => Ok(chains),
        Err(error) if matches!(error.errno(), Some(libc::ENOENT | libc::EINVAL | libc::EOPNOTSUPP)) => Ok(Vec::new()),
        Err(error) => Err(error.into()),
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
    fn add(&mut self, table: Table, chain: &str, read: &ReadRule) {
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
        } else if let Some(chain) = Chain::parse(chain) {
            self.chains.entry(chain).or_default().add(&self.buffer);
        }
    }

    fn finish(mut self, names: Vec<Chain>) -> Readable<SavedTable> {
        if let Some(incompatible) = self.incompatible {
            return Err(incompatible);
        }
        let chains = names.into_iter().map(|name| (name, self.chains.remove(&name).unwrap_or_default())).collect();
        Ok(SavedTable { chains, builtin: self.builtin })
    }
}

/// Reads a table: a fingerprint of each user-defined chain, and the rules of built-in chains as text.
///
/// Chain by chain if there are many, or while other programs write all the time: each of them is whole.
pub(super) fn save(rules: &mut NftRules, table: Table) -> Result<Readable<SavedTable>, NftError> {
    match user_chains(rules, table, true) {
        Ok(names) if names.len() > CHAINS_AT_ONCE => return save_by_chain(rules, table),
        Ok(names) => match save_at_once(rules, table, names) {
            Err(NftError::Interrupted) => {}
            saved => return saved,
        },
        Err(NftError::Interrupted) => {}
        Err(error) => return Err(error),
    }
    save_by_chain(rules, table)
}

fn save_at_once(rules: &mut NftRules, table: Table, names: Vec<Chain>) -> Result<Readable<SavedTable>, NftError> {
    let add = |collected: &mut Collected, chain: &str, read| collected.add(table, chain, &read);
    Ok(rules.table(table.name(), add)?.finish(names))
}

fn save_by_chain(rules: &mut NftRules, table: Table) -> Result<Readable<SavedTable>, NftError> {
    let names = user_chains(rules, table, false)?;
    let mut collected = Collected::default();
    let known: HashSet<&str> = BUILTIN.into_iter().chain(names.iter().map(Chain::as_str)).collect();
    for chain in known {
        for read in rules.chain(table.name(), chain)? {
            collected.add(table, chain, &read);
        }
    }
    Ok(collected.finish(names))
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
