//! In: a table, the hook's chain and a packet on its way. Out: the packet after every possible walk through the chain,
//! each with the decision met. Must not know which hooks a packet passes.

use std::collections::BTreeSet;

use super::matching;
use super::rules::{Chain, Policy, Rule, Table, Target};
use crate::tracer::{Memory, Node, Packet, Step};

/// A packet on its way, with what was done to it so far.
#[derive(Clone, Debug)]
pub(super) struct Traveller {
    pub(super) packet: Packet,
    pub(super) mark: u32,
    pub(super) translated: bool,
    pub(super) masqueraded: bool,
    pub(super) probability: f64,
    pub(super) remembered: BTreeSet<String>,
    pub(super) steps: Vec<Step>,
}

/// Where it is and what is known there.
pub(super) struct Place<'a> {
    pub(super) table: &'a str,
    pub(super) hook: &'a str,
    pub(super) in_interface: &'a str,
    pub(super) node: &'a Node,
    pub(super) memory: &'a Memory,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    Accept,
    Drop,
    Reject,
}

/// A chain being walked and the rule that comes next in it.
#[derive(Clone, Copy)]
struct Frame<'a> {
    chain: &'a Chain,
    next: usize,
}

struct Walk<'a> {
    traveller: Traveller,
    stack: Vec<Frame<'a>>,
}

/// Walks the hook's chain, one walk for each way the dice can fall.
pub(super) fn walk(
    chains: &Table,
    place: &Place<'_>,
    traveller: Traveller,
) -> Result<Vec<(Traveller, Decision)>, String> {
    let base = chains.get(place.hook).ok_or_else(|| format!("table {} has no {}", place.table, place.hook))?;
    let mut open = vec![Walk { traveller, stack: vec![Frame { chain: base, next: 0 }] }];
    let mut done = Vec::new();
    while let Some(mut walk) = open.pop() {
        let decision = loop {
            let Some(frame) = walk.stack.last_mut() else { break policy(base) };
            let Some(rule) = frame.chain.rules.get(frame.next) else {
                walk.stack.pop();
                continue;
            };
            frame.next += 1;
            let before = matching::rolls_dice(rule).then(|| walk.traveller.clone());
            let chance = matching::probability(rule, &mut walk.traveller, place);
            if let Some(before) = before
                && chance > 0.0
                && chance < 1.0
            {
                let mut other = Walk { traveller: before, stack: walk.stack.clone() };
                other.traveller.probability *= 1.0 - chance;
                open.push(other);
                walk.traveller.probability *= chance;
            }
            if chance > 0.0
                && let Some(decision) = obey(rule, chains, place, &mut walk)?
            {
                break decision;
            }
        };
        done.push((walk.traveller, decision));
    }
    Ok(done)
}

fn policy(base: &Chain) -> Decision {
    match base.policy {
        Some(Policy::Drop) => Decision::Drop,
        _ => Decision::Accept,
    }
}

/// Does what a matching rule says; None means the walk goes on.
fn obey<'a>(
    rule: &Rule,
    chains: &'a Table,
    place: &Place<'_>,
    walk: &mut Walk<'a>,
) -> Result<Option<Decision>, String> {
    let traveller = &mut walk.traveller;
    traveller.steps.push(Step { hook: format!("{} {}", place.table, place.hook), rule: rule.text.clone() });
    let misplaced = || Err(format!("the kernel takes no such rule in {} {}: {}", place.table, place.hook, rule.text));
    match &rule.target {
        None => Ok(None),
        Some(Target::Accept) => Ok(Some(Decision::Accept)),
        Some(Target::Drop) => Ok(Some(Decision::Drop)),
        Some(Target::Reject) if place.table == "filter" => Ok(Some(Decision::Reject)),
        Some(Target::Return) => {
            walk.stack.pop();
            Ok(None)
        }
        Some(Target::Mark { value, mask }) => {
            traveller.mark = traveller.mark & !mask ^ value;
            Ok(None)
        }
        Some(Target::Masquerade) if (place.table, place.hook) == ("nat", "POSTROUTING") => {
            traveller.masqueraded = true;
            if let Some(address) = place.node.masquerade_address(traveller.packet.source.ip()) {
                traveller.packet.source.set_ip(address);
            }
            Ok(Some(Decision::Accept))
        }
        Some(Target::Dnat(to)) if place.table == "nat" && matches!(place.hook, "PREROUTING" | "OUTPUT") => {
            traveller.packet.destination = *to;
            traveller.translated = true;
            Ok(Some(Decision::Accept))
        }
        Some(Target::Jump(to)) => {
            let chain = chains.get(to).ok_or_else(|| format!("no chain {to}"))?;
            // Each chain can be open once at a time, or the kernel would refuse the loop.
            if walk.stack.len() > chains.len() {
                return Err(format!("chains jump in a circle: {}", rule.text));
            }
            walk.stack.push(Frame { chain, next: 0 });
            Ok(None)
        }
        Some(Target::Reject | Target::Masquerade | Target::Dnat(_)) => misplaced(),
    }
}
