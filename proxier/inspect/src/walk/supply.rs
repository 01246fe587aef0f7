//! Walks through rules that are read as packets come to them.
//!
//! In: rules, and something that reads more of them. Out: a [`Trace`] that lacks nothing. Must not know: how rules are read.

use std::collections::BTreeSet;

use netfilter::nft::ruleset;

use super::{Memory, Node, OtherFlavour, Packet, Rules, Trace};
use crate::rules::Ruleset;

/// Walks, has `supply` read what decides and was not read, and walks again, until nothing lacks.
///
/// # Errors
/// As [`Rules::trace`]; what `supply` says; if tables change while they are read.
pub fn trace_and_supply(
    (iptables, other): (&Ruleset, Option<OtherFlavour<'_>>),
    nftables: &mut ruleset::Ruleset,
    (packet, node, memory): (&Packet, &Node, &Memory),
    supply: &mut dyn FnMut(&mut ruleset::Ruleset, &ruleset::UnreadPart) -> Result<(), String>,
) -> Result<Trace, String> {
    let mut supplied: BTreeSet<ruleset::UnreadPart> = BTreeSet::new();
    loop {
        let trace = Rules { iptables, other, nftables: Some(nftables) }.trace(packet, node, memory)?;
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
