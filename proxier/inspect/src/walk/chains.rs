//! The walk through the chains of one hook.
//!
//! In: a table, the hook's chain and a packet on its way. Out: the packet after every possible walk through the chain,
//! each with the decision met. Must not know: which hooks a packet passes.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use netfilter::IpFamily;
use netfilter::ipvs::{Forward, ServerKey};
use netfilter::nft::ruleset::TableId;
use netfilter::nft::{Bytes, Name};

use super::matching::{self, Holds};
use super::path::MOST;
use super::{Doubt, Memory, Node, Packet, Step};
use crate::rules::{Chain, Policy, Rule, Table, Target};

/// A packet on its way, with what was done to it so far.
#[derive(Clone, Debug)]
pub(super) struct Traveller {
    pub(super) packet: Packet,
    pub(super) mark: u32,
    pub(super) translated: bool,
    pub(super) masqueraded: bool,
    pub(super) untracked: bool,
    /// Whether the translation of this hook is decided: later chains are not asked.
    pub(super) settled: bool,
    /// `None`: not known.
    pub(super) connection_mark: Option<u32>,
    /// Where it came from and was sent to before any translation.
    pub(super) sent: (SocketAddr, SocketAddr),
    /// What rules put into sets of nftables (`true`) or took out of them.
    pub(super) changed: BTreeMap<(TableId, Name, Bytes), bool>,
    /// The virtual server that gave it its destination.
    pub(super) server: Option<ServerKey>,
    /// The real server that gets it as it is, and how.
    pub(super) forwarded: Option<(SocketAddr, Forward)>,
    pub(super) probability: f64,
    pub(super) remembered: BTreeSet<String>,
    /// Lists that rules asked for the sender.
    pub(super) asked: BTreeSet<String>,
    pub(super) steps: Vec<Step>,
    pub(super) doubts: Vec<Doubt>,
    /// The built-in chain of iptables whose policy dropped it.
    pub(super) policy: Option<String>,
}

impl Traveller {
    /// Whether it is in the same state, however it came to it and however likely.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        let state = |t: &Self| (t.mark, t.connection_mark, t.translated, t.masqueraded, t.untracked, t.settled);
        self.packet == other.packet
            && state(self) == state(other)
            && self.changed == other.changed
            && self.remembered == other.remembered
            && self.asked == other.asked
    }
}

/// Where it is and what is known there.
pub(super) struct Place<'a> {
    pub(super) family: IpFamily,
    pub(super) table: &'a str,
    pub(super) hook: &'a str,
    pub(super) in_interface: &'a str,
    pub(super) node: &'a Node,
    pub(super) memory: &'a Memory,
    pub(super) budget: &'a Budget,
}

/// How much a trace may cost: chains that jump to the same chain twice, and so on, have the kernel look at more rules than a
/// walk can, and each way remembers the rules that it matched.
pub(super) struct Budget(Cell<usize>);

impl Budget {
    /// What a matched rule costs that a way remembers; one that is looked at costs 1.
    const STEP: usize = 400;

    pub(super) fn new(most: usize) -> Self {
        Self(Cell::new(most))
    }

    /// Pays for rules that are looked at, and for matched ones that are remembered or copied.
    ///
    /// # Errors
    /// If nothing is left.
    pub(super) fn pay(&self, looked_at: usize, steps: usize) -> Result<(), String> {
        let left = self.0.get().checked_sub(looked_at.saturating_add(steps.saturating_mul(Self::STEP)));
        self.0.set(left.ok_or("the packet meets more rules than can be followed")?);
        Ok(())
    }
}

impl Place<'_> {
    /// Where a packet to `to` leaves: nowhere yet in the hooks that come before the routing. `None`: not known.
    pub(super) fn out_interface(&self, to: IpAddr) -> Option<&str> {
        if matches!(self.hook, "PREROUTING" | "INPUT") {
            return Some("");
        }
        if self.node.is_local(to) { Some("lo") } else { self.node.out_interface(to) }
    }
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
    /// Reached by `-g`: what returns from here returns from its caller too.
    goto: bool,
}

struct Walk<'a> {
    traveller: Traveller,
    stack: Vec<Frame<'a>>,
}

/// What a walk came to.
#[derive(Default)]
pub(super) struct Walked {
    pub(super) ends: Vec<(Traveller, Decision)>,
    /// Chains that rules led to and that are not there: `(table, chain)`.
    pub(super) missing: BTreeSet<(String, String)>,
}

/// Walks the hook's chain, one walk for each way the dice can fall.
pub(super) fn walk(chains: &Table, place: &Place<'_>, traveller: Traveller) -> Result<Walked, String> {
    let base = chains.get(place.hook).ok_or_else(|| format!("table {} has no {}", place.table, place.hook))?;
    let mut open = vec![Walk { traveller, stack: vec![Frame { chain: base, next: 0, goto: false }] }];
    let mut walked = Walked::default();
    while let Some(mut walk) = open.pop() {
        let decision = loop {
            let Some(frame) = walk.stack.last_mut() else { break policy(base) };
            let Some(rule) = frame.chain.rules.get(frame.next) else {
                leave(&mut walk.stack);
                continue;
            };
            frame.next += 1;
            place.budget.pay(1, 0)?;
            let chance = match matching::matches(rule.meaning(place.family), &mut walk.traveller, place) {
                Holds::No => continue,
                Holds::Yes(chance) => chance,
                Holds::Unknown(why) => {
                    doubt(rule, why, place, &mut walk.traveller);
                    continue;
                }
            };
            if chance < 1.0 {
                place.budget.pay(0, walk.traveller.steps.len())?;
                if open.len() + walked.ends.len() > MOST {
                    return Err(format!("more than {MOST} ways lead through table {}", place.table));
                }
                let mut other = Walk { traveller: walk.traveller.clone(), stack: walk.stack.clone() };
                other.traveller.probability *= 1.0 - chance;
                open.push(other);
                walk.traveller.probability *= chance;
            }
            if let Some(decision) = obey(rule, chance, chains, place, &mut walk, &mut walked.missing)? {
                break decision;
            }
        };
        walked.ends.push((walk.traveller, decision));
    }
    Ok(walked)
}

/// A rule that may match or not is taken for one that does not, and that is said.
fn doubt(rule: &Rule, why: String, place: &Place<'_>, traveller: &mut Traveller) {
    if !matches!(rule.meaning(place.family).target, None | Some(Target::Passive(_))) || why.contains("target") {
        let hook = format!("{} {}", place.table, place.hook);
        traveller.doubts.push(Doubt { hook, rule: rule.text.to_string(), why });
    }
}

fn leave(stack: &mut Vec<Frame<'_>>) {
    while stack.pop().is_some_and(|frame| frame.goto) {}
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
    chance: f64,
    chains: &'a Table,
    place: &Place<'_>,
    walk: &mut Walk<'a>,
    missing: &mut BTreeSet<(String, String)>,
) -> Result<Option<Decision>, String> {
    let traveller = &mut walk.traveller;
    let hook = format!("{} {}", place.table, place.hook);
    place.budget.pay(0, 1)?;
    traveller.steps.push(Step::of(hook, &rule.text, chance));
    let misplaced = || Err(format!("the kernel takes no such rule in {} {}: {}", place.table, place.hook, rule.text));
    match &rule.meaning(place.family).target {
        None | Some(Target::Passive(_)) => Ok(None),
        Some(Target::Accept) => Ok(Some(Decision::Accept)),
        Some(Target::Drop) => Ok(Some(Decision::Drop)),
        Some(Target::Reject) if place.table == "filter" => Ok(Some(Decision::Reject)),
        Some(Target::Return) => {
            leave(&mut walk.stack);
            Ok(None)
        }
        Some(Target::Mark { value, mask }) => {
            traveller.mark = traveller.mark & !mask ^ value;
            Ok(None)
        }
        Some(Target::NoTrack) => {
            traveller.untracked = true;
            Ok(None)
        }
        Some(Target::Masquerade) if (place.table, place.hook) == ("nat", "POSTROUTING") => {
            (traveller.masqueraded, traveller.settled) = (true, true);
            if let Some(address) = place.node.masquerade_address(traveller.packet.source.ip()) {
                traveller.packet.source.set_ip(address);
            }
            Ok(Some(Decision::Accept))
        }
        Some(Target::Dnat(to)) if place.table == "nat" && matches!(place.hook, "PREROUTING" | "OUTPUT") => {
            traveller.packet.destination = *to;
            (traveller.translated, traveller.settled) = (true, true);
            Ok(Some(Decision::Accept))
        }
        Some(Target::Jump(to) | Target::Goto(to)) => {
            let Some(chain) = chains.get(&**to) else {
                missing.insert((place.table.to_owned(), to.clone()));
                return Ok(None);
            };
            // Each chain can be open once at a time, or the kernel would refuse the loop.
            if walk.stack.len() > chains.len() {
                return Err(format!("chains jump in a circle: {}", rule.text));
            }
            let goto = matches!(rule.meaning(place.family).target, Some(Target::Goto(_)));
            walk.stack.push(Frame { chain, next: 0, goto });
            Ok(None)
        }
        Some(Target::Reject | Target::Masquerade | Target::Dnat(_)) => misplaced(),
    }
}
