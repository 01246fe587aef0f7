//! Traces through rules that are read only when a packet meets them.

use std::collections::BTreeSet;

use netfilter::nft::ruleset;

use super::{Node, NodeRules, OtherFlavour, Packet, RecentLists, Trace};
use crate::rules::Ruleset;

/// Traces a packet, reads the missing parts that decide with `supply`, and repeats until none is missing.
///
/// # Errors
/// As [`NodeRules::trace`]; an error of `supply`; if tables change while they are read.
pub fn trace_and_supply(
    (iptables, other): (&Ruleset, Option<OtherFlavour<'_>>),
    nftables: &mut ruleset::Ruleset,
    (packet, node, memory): (&Packet, &Node, &RecentLists),
    supply: &mut dyn FnMut(&mut ruleset::Ruleset, &ruleset::UnreadPart) -> Result<(), String>,
) -> Result<Trace, String> {
    let mut supplied: BTreeSet<ruleset::UnreadPart> = BTreeSet::new();
    loop {
        let trace = NodeRules { iptables, other, nftables: Some(nftables) }.trace(packet, node, memory)?;
        if trace.lacks.is_empty() {
            return Ok(trace);
        }
        if trace.lacks.is_subset(&supplied) {
            return Err("the tables of nftables changed while they were read: try again".to_owned());
        }
        trace.lacks.iter().try_for_each(|lack| supply(nftables, lack))?;
        supplied.extend(trace.lacks);
    }
}
