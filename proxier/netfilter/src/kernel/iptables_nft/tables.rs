//! Reads a table as [`IptablesTool::save`](crate::kernel::IptablesTool::save) returns it.

use std::collections::HashMap;

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::base::BUILTIN;
use super::read::{NFNL_SUBSYS_NFTABLES, NftRules};
use super::rule::DecodedRule;
use crate::iptables::{Chain, Table};
use crate::kernel::netlink::{Dump, NFGENMSG_LENGTH, Netlink, Request, nfgenmsg, nfnetlink};
use crate::kernel::nftables::NftError;
use crate::{SavedChain, SavedTable};

const NFT_MSG_GETCHAIN: u8 = 4;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;

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
fn user_chains(rules: &NftRules, table: Table) -> Result<Vec<Chain>, NftError> {
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
        Ok(Dump::Interrupted) => Err(NftError::Interrupted),
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
}

/// Reads a table: a fingerprint of each user-defined chain, and the rules of built-in chains as text.
pub(super) fn save(rules: &mut NftRules, table: Table) -> Result<Readable<SavedTable>, NftError> {
    let names = user_chains(rules, table)?;
    let mut buffer = String::with_capacity(256);
    let collected = rules.table(table.name(), |collected: &mut Collected, chain, read| {
        if let DecodedRule::Unknown(unknown) = &read.rule
            && !unknown.is_compatible
        {
            let why = format!("chain {chain} of table {} has a rule with {}", table.name(), unknown.part);
            collected.incompatible.get_or_insert(Incompatible(why));
        }
        buffer.clear();
        text(&read.rule, &mut buffer);
        if BUILTIN.contains(&chain) {
            collected.builtin.push(format!("-A {chain}{buffer}"));
        } else if let Some(chain) = Chain::parse(chain) {
            collected.chains.entry(chain).or_default().add(&buffer);
        }
    })?;
    if let Some(incompatible) = collected.incompatible {
        return Ok(Err(incompatible));
    }
    let Collected { mut chains, builtin, .. } = collected;
    let chains = names.into_iter().map(|name| (name, chains.remove(&name).unwrap_or_default())).collect();
    Ok(Ok(SavedTable { chains, builtin }))
}

/// For each of our chains that rules of other chains refer to: the first such rule.
pub(super) fn references(
    rules: &mut NftRules,
    table: Table,
    ours: &dyn Fn(&Chain) -> bool,
) -> Result<HashMap<Chain, String>, NftError> {
    rules.table(table.name(), |found: &mut HashMap<Chain, String>, from, read| {
        let Some(to) = read.rule.jump().and_then(Chain::parse).filter(ours) else { return };
        if !Chain::parse(from).is_some_and(|from| ours(&from)) {
            found.entry(to).or_insert_with(|| {
                let mut line = format!("-A {from}");
                text(&read.rule, &mut line);
                line
            });
        }
    })
}
