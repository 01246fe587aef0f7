//! The order of chains at one hook where the kernel does not tell it.
//!
//! Of chains with equal priority the kernel runs the one that was registered last first (`nf_hook_entries_grow`, which the
//! lookups of NAT use too). Tables of legacy iptables carry no time of their registration, so the packet is walked with
//! them as the oldest and as the newest chains; where the outcomes differ, that is a doubt.

use netfilter::nft::ruleset::Table;

use super::stages::LegacyAge;
use super::{Doubt, DoubtKind, Node, NodeRules, Outcome, Packet, RecentLists, Trace};
use crate::rules::Ruleset;

/// The most rules that a trace evaluates: with 10,000 Services without endpoints, a packet to a Service with 1,000 endpoints
/// evaluates 10 million.
const MOST_RULES: usize = 50_000_000;

impl NodeRules<'_> {
    /// Traces the packet. `memory`: the `recent` lists that hold the sender.
    ///
    /// # Errors
    /// If the kernel would refuse the rules, or the packet is of the other family.
    pub fn trace(&self, packet: &Packet, node: &Node, memory: &RecentLists) -> Result<Trace, String> {
        let with = |legacy| self.trace_within((legacy, MOST_RULES), packet, node, memory);
        let mut trace = with(LegacyAge::Oldest)?;
        if self.has_legacy_beside() {
            note_order(&mut trace, with(LegacyAge::Newest)?);
        }
        Ok(trace)
    }

    /// Traces the packet in one order, with another limit of evaluated rules.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn trace_limited(
        &self,
        most_rules: usize,
        packet: &Packet,
        node: &Node,
        memory: &RecentLists,
    ) -> Result<Trace, String> {
        self.trace_within((LegacyAge::Oldest, most_rules), packet, node, memory)
    }

    /// Whether packets meet rules of legacy iptables beside chains of nf_tables.
    fn has_legacy_beside(&self) -> bool {
        let has_rules = |ruleset: &Ruleset| {
            ruleset.tables().any(|table| ruleset.chains(table).any(|(_, chain)| !chain.rules.is_empty()))
        };
        let both = [Some(self.iptables), self.other.map(|other| other.ruleset)];
        let of_flavour = |is_legacy| both.iter().flatten().any(|one| one.is_legacy() == is_legacy && has_rules(one));
        let has_base = |table: &Table| table.chains.values().any(|chain| chain.base.is_some());
        of_flavour(true) && (of_flavour(false) || self.nftables.is_some_and(|all| all.tables.values().any(has_base)))
    }
}

/// Adds what the other order decides otherwise to a trace as a doubt, with what was not read for it.
fn note_order(trace: &mut Trace, other: Trace) {
    let (here, there) = (trace.outcomes(), other.outcomes());
    trace.asked.extend(other.asked);
    trace.queries.extend(other.queries);
    trace.routes.extend(other.routes);
    trace.missing.extend(other.missing);
    trace.lacks.extend(other.lacks);
    if is_same(&here, &there) {
        return;
    }
    let why = "of chains with equal priority the kernel runs the newest first, and does not tell which that is";
    for branch in &mut trace.branches {
        let doubt = Doubt::new(PLACE.to_owned(), "legacy iptables runs before nf_tables at equal priority", why);
        branch.doubts.push(Doubt { kind: DoubtKind::Order, otherwise: there.clone(), ..doubt });
    }
}

/// The place of a doubt about the order.
const PLACE: &str = "legacy iptables and nf_tables";

fn is_same(here: &[Outcome], there: &[Outcome]) -> bool {
    let is_like = |(a, b): (&Outcome, &Outcome)| {
        (a.verdict, a.masqueraded) == (b.verdict, b.masqueraded) && (a.probability - b.probability).abs() < 1e-9
    };
    here.len() == there.len() && here.iter().zip(there).all(is_like)
}
