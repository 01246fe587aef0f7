//! Removes jumps and chains from a table of the nf_tables flavour.
//!
//! The iptables tool removes the jumps, since it knows their encoding; the chains are deleted by their names.

use std::collections::BTreeSet;

use netfilter::IpFamily;
use netfilter::Restore;
use netfilter::iptables::Chain;
use netfilter::kernel::IptablesTool;
use netfilter::kernel::WriterPriority;
use netfilter::kernel::nftables::chains as names_of;
use netfilter::nft::{Name, Table};

use super::chains;
use crate::backend::SyncError;
use crate::xtables::{StaleChains, still_referenced};

/// Maximum number of copies of a jump that are removed; kube-proxy never makes more than two.
const COPIES: usize = 16;

const UNKNOWN_RULE: &str = "not printed by iptables-save, perhaps an element of a verdict map (see nft list ruleset)";

/// Removes everything stale. Returns what could not be removed, with reasons.
pub(super) fn remove(
    family: IpFamily,
    stale: StaleChains<'_>,
    tool: &mut dyn IptablesTool,
    priority: &WriterPriority,
) -> Vec<SyncError> {
    try_remove(family, stale, tool, priority).unwrap_or_else(|error| vec![error])
}

fn try_remove(
    family: IpFamily,
    stale: StaleChains<'_>,
    tool: &mut dyn IptablesTool,
    priority: &WriterPriority,
) -> Result<Vec<SyncError>, SyncError> {
    let table = Table { family, name: stale.table.name().into() };
    let is_stale = |name: &str| Chain::parse(name).is_some_and(|chain| stale.has(&chain));
    let names = existing(&table, stale, tool)?;
    if !names.iter().any(|name| is_stale(name)) {
        return Ok(Vec::new());
    }
    let exists = |chain: &Chain| names.binary_search_by(|name| (**name).cmp(chain.as_str())).is_ok();
    remove_jumps(stale, tool, &exists)?;
    let kept = chains::delete(&table, priority, &is_stale)?;
    if kept.is_empty() { Ok(Vec::new()) } else { name_rules(stale, tool, kept) }
}

/// The sorted names of existing chains; only of those in question if their names are fixed, because a listing of many
/// chains takes the kernel quadratic time.
fn existing(table: &Table, stale: StaleChains<'_>, tool: &mut dyn IptablesTool) -> Result<Vec<Name>, SyncError> {
    let Some(named) = stale.named() else { return Ok(names_of(table)?.0) };
    let mut names = Vec::new();
    for chain in named {
        if tool.has_chain(stale.table, chain)? {
            names.push(Name::from(chain.as_str()));
        }
    }
    Ok(names)
}

/// Removes all copies of the jumps to existing chains.
fn remove_jumps(
    stale: StaleChains<'_>,
    tool: &mut dyn IptablesTool,
    exists: &dyn Fn(&Chain) -> bool,
) -> Result<(), SyncError> {
    let mut failed = false;
    for _ in 0..COPIES {
        let mut restore = Restore::default();
        for jump in stale.jumps().filter(|jump| exists(&jump.to)) {
            if tool.has_rule(jump.table, jump.from, &jump.rule)? {
                restore.remove(jump.table, jump.from, &jump.rule);
            }
        }
        if restore.is_empty() {
            break;
        }
        match tool.restore(&restore) {
            Ok(()) => failed = false,
            Err(error) if failed => return Err(SyncError(error.message)),
            // The tool may have been killed after its commit: check again what is left.
            Err(_) => failed = true,
        }
    }
    Ok(())
}

fn name_rules(
    stale: StaleChains<'_>,
    tool: &mut dyn IptablesTool,
    kept: BTreeSet<Name>,
) -> Result<Vec<SyncError>, SyncError> {
    let references = tool.references(stale.table, &|chain| stale.has(chain))?;
    let error = |chain: Chain| {
        let rule = references.get(&chain).map_or(UNKNOWN_RULE, String::as_str);
        still_referenced(stale.table, &chain, rule)
    };
    Ok(kept.iter().filter_map(|name| Chain::parse(name)).map(error).collect())
}
