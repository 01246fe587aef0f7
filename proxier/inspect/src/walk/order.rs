//! The order of chains at one hook where the kernel does not tell it.
//!
//! Of chains with equal priority the kernel runs the one that was registered last first. Neither legacy iptables nor tables
//! of nf_tables carry the time of their registration, so the packet is walked with each of them first; where the outcomes
//! differ, the kernel's own list of the hook decides, and without one that is a doubt.

use std::collections::{BTreeMap, BTreeSet};

use netfilter::nft::Hook;
use netfilter::nft::ruleset::UnreadPart;

use super::stages;
use super::ties::{Registrant, Supposition};
use super::{Doubt, DoubtKind, Node, NodeRules, Outcome, Packet, RecentLists, Trace};

/// The most rules that a trace evaluates: with 10,000 Services without endpoints, a packet to a Service with 1,000 endpoints
/// evaluates 10 million.
const MOST_RULES: usize = 50_000_000;

impl<'a> NodeRules<'a> {
    /// Traces the packet. `memory`: the `recent` lists that hold the sender.
    ///
    /// # Errors
    /// If the kernel would refuse the rules, or the packet is of the other family.
    pub fn trace(&self, packet: &Packet, node: &Node, memory: &RecentLists) -> Result<Trace, String> {
        let with = |supposed| self.trace_within((supposed, MOST_RULES), packet, node, memory);
        let mut trace = with(Supposition::default())?;
        let outcomes = trace.outcomes();
        for (registrant, hooks) in self.tied() {
            // At all hooks, and at each alone: what differs at two may cancel out.
            let each = hooks.iter().map(|hook| Some(*hook)).filter(|_| hooks.len() > 1);
            for only_at in [None].into_iter().chain(each) {
                let other = with(Supposition { first: Some(registrant), only_at })?;
                let differs = !is_same(&outcomes, &other.outcomes());
                let ends = note_reads(&mut trace, other);
                if differs {
                    let unread = hooks.iter().filter(|hook| only_at.is_none_or(|only| only == **hook));
                    trace.lacks.extend(unread.filter(|hook| self.is_unread(**hook)).copied().map(UnreadPart::Hooks));
                    note_order(&mut trace, registrant, &ends);
                }
            }
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
        self.trace_within((Supposition::default(), most_rules), packet, node, memory)
    }

    /// Who may come first at which hooks, beside those who do without a supposition.
    fn tied(&self) -> BTreeMap<Registrant<'a>, BTreeSet<Hook>> {
        let mut tied: BTreeMap<Registrant<'a>, BTreeSet<Hook>> = BTreeMap::new();
        for hook in Hook::ALL {
            for registrant in stages::ties(hook, *self) {
                tied.entry(registrant).or_default().insert(hook);
            }
        }
        tied
    }

    /// Whether the kernel may yet list what runs at a hook.
    fn is_unread(&self, hook: Hook) -> bool {
        self.nftables.is_some_and(|ruleset| !ruleset.hooks.contains_key(&hook))
    }
}

/// Adds what the other order takes that was not read. Returns the other outcomes.
fn note_reads(trace: &mut Trace, other: Trace) -> Vec<Outcome> {
    let ends = other.outcomes();
    trace.asked.extend(other.asked);
    trace.queries.extend(other.queries);
    trace.routes.extend(other.routes);
    trace.missing.extend(other.missing);
    trace.lacks.extend(other.lacks);
    ends
}

/// Adds a doubt about what comes first, with the outcomes if it does.
fn note_order(trace: &mut Trace, first: Registrant<'_>, ends: &[Outcome]) {
    let why = "of chains with equal priority the kernel runs the newest first, and does not tell which that is";
    let (kind, place, rule) = match first {
        Registrant::Legacy => {
            (DoubtKind::Order, PLACE, "legacy iptables runs before nf_tables at equal priority".to_owned())
        }
        other => (DoubtKind::TableOrder, "nf_tables", format!("{} runs before others at equal priority", name(other))),
    };
    for branch in &mut trace.branches {
        if let Some(known) = branch.doubts.iter_mut().find(|doubt| doubt.kind == kind && doubt.rule == rule) {
            for end in ends.iter().filter(|end| !known.otherwise.contains(end)).cloned().collect::<Vec<_>>() {
                known.otherwise.push(end);
            }
            continue;
        }
        let doubt = Doubt::new(place.to_owned(), rule.clone(), why);
        branch.doubts.push(Doubt { kind, otherwise: ends.to_vec(), ..doubt });
    }
}

/// The place of a doubt about the flavours' order.
const PLACE: &str = "legacy iptables and nf_tables";

fn name(registrant: Registrant<'_>) -> String {
    match registrant {
        Registrant::Table(id) => format!("table {id}"),
        Registrant::Iptables(name) => format!("table {name} of iptables"),
        Registrant::Legacy => "legacy iptables".to_owned(),
        Registrant::Translation => "NAT".to_owned(),
        Registrant::Servers => "IPVS".to_owned(),
    }
}

fn is_same(here: &[Outcome], there: &[Outcome]) -> bool {
    let is_like = |(a, b): (&Outcome, &Outcome)| {
        (a.verdict, a.masqueraded) == (b.verdict, b.masqueraded) && (a.probability - b.probability).abs() < 1e-9
    };
    here.len() == there.len() && here.iter().zip(there).all(is_like)
}
