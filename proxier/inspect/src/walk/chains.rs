//! The walk through the chains of one hook.
//!
//! In: a table, the hook's chain and a packet on its way. Out: the packet after every possible walk through the chain,
//! each with the decision met. Must not know: which hooks a packet passes.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use netfilter::IpFamily;
use netfilter::ipset::SetQuery;
use netfilter::ipvs::{Forward, ServerKey};
use netfilter::nft::ruleset::{self, TableId, UnreadPart};
use netfilter::nft::{Bytes, Name};

use super::doubts::{Doubted, Forks};
use super::matching::{self, Holds, Matched, Touched};
use super::path::MOST;
use super::tables::{self, Spot};
use super::translation;
use super::{Assumption, Doubt, Memory, Node, Packet, Step};
use crate::rules::{Chain, CopyMark, Policy, Rule, SetMark, Table, Target};

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
    /// Lists that rules changed on the way, those of whole senders with `true`.
    pub(super) touched: BTreeMap<(String, bool), Touched>,
    /// Sets that rules changed on the way.
    pub(super) changed_sets: BTreeSet<String>,
    /// What sets were asked without an answer.
    pub(super) queries: BTreeSet<SetQuery>,
    /// Why the mark is not known, where it is not.
    pub(super) mark_unknown: Option<String>,
    /// The field of IPv4 and the traffic class of IPv6.
    pub(super) type_of_service: u8,
    /// Whether a rule changed TTL or hop limit.
    pub(super) hops_changed: bool,
    pub(super) steps: Vec<Step>,
    pub(super) doubts: Vec<Doubted>,
    pub(super) assumed: Vec<Assumption>,
    /// The forks where it went on as if a rule matched that cannot be decided: see [`Forks`].
    pub(super) supposed: Vec<u32>,
    /// The built-in chain of iptables whose policy dropped it.
    pub(super) policy: Option<String>,
}

impl Traveller {
    /// Notes a doubt; returned is the packet that goes on as if the rule matched, unless there are too many.
    pub(super) fn fork(&mut self, doubt: Doubt, forks: &Forks) -> Option<Self> {
        let fork = forks.next();
        let mut other = fork.map(|_| self.clone());
        if let (Some(fork), Some(other)) = (fork, &mut other) {
            other.supposed.push(fork);
        }
        self.doubts.push(Doubted { fork, doubt });
        other
    }

    /// Notes a doubt that is not followed.
    pub(super) fn doubt(&mut self, doubt: Doubt) {
        self.doubts.push(Doubted { fork: None, doubt });
    }

    /// Whether it is in the same state, however it came to it and however likely.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        let state = |t: &Self| (t.mark, t.connection_mark, t.translated, t.masqueraded, t.untracked, t.settled);
        self.packet == other.packet
            && state(self) == state(other)
            && self.mark_unknown == other.mark_unknown
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
    /// Whether packets have met connection tracking.
    pub(super) tracked: bool,
    pub(super) node: &'a Node,
    pub(super) memory: &'a Memory,
    pub(super) budget: &'a Budget,
    pub(super) forks: &'a Forks,
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
    /// What of nf_tables was not read and decides.
    pub(super) lacks: Vec<UnreadPart>,
}

/// Walks the hook's chain, one walk for each way the dice can fall.
pub(super) fn walk(
    chains: &Table,
    place: &Place<'_>,
    kernel: Option<(&TableId, &ruleset::Table)>,
    traveller: Traveller,
) -> Result<Walked, String> {
    let base = chains.get(place.hook).ok_or_else(|| format!("table {} has no {}", place.table, place.hook))?;
    let mut open = vec![Walk { traveller, stack: vec![Frame { chain: base, next: 0, goto: false }] }];
    let mut walked = Walked::default();
    'walks: while let Some(mut walk) = open.pop() {
        let decision = loop {
            let Some(frame) = walk.stack.last_mut() else { break policy(base) };
            let Some(rule) = frame.chain.rules.get(frame.next) else {
                leave(&mut walk.stack);
                continue;
            };
            frame.next += 1;
            place.budget.pay(1, 0)?;
            if let Some((held, (id, table))) = rule.kernel.as_ref().zip(kernel) {
                let spot = Spot { place, id, table, tracked: place.tracked, nat: place.table == "nat" };
                let text = held.text(id, table);
                for (traveller, odds, target) in
                    tables::one(&spot, &hook(place), held, walk.traveller, &mut walked.lacks)
                {
                    let mut after = Walk { traveller, stack: walk.stack.clone() };
                    let Some(target) = target else {
                        open.push(after);
                        continue;
                    };
                    after.traveller.steps.push(Step::of(hook(place), &text, odds));
                    match carry_out(&target, rule, chains, place, &mut after, &mut walked.missing)? {
                        Next::Ends(ends) => walked.ends.extend(ends),
                        Next::Rule => open.push(after),
                    }
                }
                continue 'walks;
            }
            if rule.kernel.is_some() {
                let why = "nft put it there, and its text does not tell all";
                walk.traveller.doubt(Doubt::new(hook(place), &*rule.text, why));
                continue;
            }
            let meaning = rule.meaning(place.family);
            let Matched { holds, assumed } = matching::matches(meaning, &mut walk.traveller, place);
            let passive = matches!(meaning.target, None | Some(Target::Passive(_)));
            let assumed = if passive { Vec::new() } else { assumed };
            walk.traveller.assumed.extend(assumed.into_iter().map(|what| assumption(rule, what, place)));
            let chance = match holds {
                Holds::Yes(chance) => chance,
                Holds::Unknown(why) if !passive => {
                    if let Some(mut other) = doubt(rule, why, place, &mut walk) {
                        place.budget.pay(0, other.traveller.steps.len())?;
                        match obey(rule, 1.0, chains, place, &mut other, &mut walked.missing)? {
                            Next::Ends(ends) => walked.ends.extend(ends),
                            Next::Rule => open.push(other),
                        }
                    }
                    continue;
                }
                _ => continue,
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
            if let Next::Ends(ends) = obey(rule, chance, chains, place, &mut walk, &mut walked.missing)? {
                walked.ends.extend(ends);
                break None;
            }
        };
        walked.ends.extend(decision.map(|decision| (walk.traveller, decision)));
    }
    Ok(walked)
}

fn hook(place: &Place<'_>) -> String {
    format!("{} {}", place.table, place.hook)
}

fn assumption(rule: &Rule, what: String, place: &Place<'_>) -> Assumption {
    Assumption { hook: hook(place), rule: rule.text.to_string(), what }
}

/// A rule that may match or not is taken for one that does not, and that is said; returned is the walk that goes on as
/// if it did.
fn doubt<'a>(rule: &Rule, why: String, place: &Place<'_>, walk: &mut Walk<'a>) -> Option<Walk<'a>> {
    let doubt = Doubt::new(hook(place), &*rule.text, why);
    if matches!(rule.meaning(place.family).target, Some(Target::Unfollowed(_))) {
        walk.traveller.doubt(doubt);
        return None;
    }
    let traveller = walk.traveller.fork(doubt, place.forks)?;
    Some(Walk { traveller, stack: walk.stack.clone() })
}

fn leave(stack: &mut Vec<Frame<'_>>) {
    while stack.pop().is_some_and(|frame| frame.goto) {}
}

fn policy(base: &Chain) -> Option<Decision> {
    match base.policy {
        Some(Policy::Drop) => Some(Decision::Drop),
        _ => Some(Decision::Accept),
    }
}

/// What comes after a rule that matches.
enum Next {
    /// The next rule.
    Rule,
    /// The walk through the hook's chain ends, in one way or in several.
    Ends(Vec<(Traveller, Decision)>),
}

/// Does what a matching rule says.
fn obey<'a>(
    rule: &Rule,
    chance: f64,
    chains: &'a Table,
    place: &Place<'_>,
    walk: &mut Walk<'a>,
    missing: &mut BTreeSet<(String, String)>,
) -> Result<Next, String> {
    place.budget.pay(0, 1)?;
    walk.traveller.steps.push(Step::of(hook(place), &rule.text, chance));
    match &rule.meaning(place.family).target {
        Some(target) => carry_out(target, rule, chains, place, walk, missing),
        None => Ok(Next::Rule),
    }
}

fn carry_out<'a>(
    target: &Target,
    rule: &Rule,
    chains: &'a Table,
    place: &Place<'_>,
    walk: &mut Walk<'a>,
    missing: &mut BTreeSet<(String, String)>,
) -> Result<Next, String> {
    let traveller = &mut walk.traveller;
    let end = |walk: &Walk<'_>, decision| Ok(Next::Ends(vec![(walk.traveller.clone(), decision)]));
    match target {
        Target::Accept => return end(walk, Decision::Accept),
        Target::Drop => return end(walk, Decision::Drop),
        Target::Reject if place.table == "filter" => return end(walk, Decision::Reject),
        Target::Return => leave(&mut walk.stack),
        Target::Queue { number, bypass } => return Ok(queue(rule, (*number, *bypass), place, traveller)),
        Target::Jump(to) | Target::Goto(to) => {
            let Some(chain) = chains.get(&**to) else {
                missing.insert((place.table.to_owned(), to.clone()));
                return Ok(Next::Rule);
            };
            // Each chain can be open once at a time, or the kernel would refuse the loop.
            if walk.stack.len() > chains.len() {
                return Err(format!("chains jump in a circle: {}", rule.text));
            }
            walk.stack.push(Frame { chain, next: 0, goto: matches!(target, Target::Goto(_)) });
        }
        Target::Zone => {
            let why = "answers are looked up in another zone of connections, which is not followed";
            traveller.doubt(Doubt::new(hook(place), &*rule.text, why));
        }
        _ if translation::is_one(target) => {
            let ends = translation::translate(target, traveller, place);
            let ends = ends.ok_or_else(|| misplaced(rule, place))?;
            return Ok(Next::Ends(ends.into_iter().map(|traveller| (traveller, Decision::Accept)).collect()));
        }
        Target::Reject => return Err(misplaced(rule, place)),
        other => change(other, traveller, place),
    }
    Ok(Next::Rule)
}

fn misplaced(rule: &Rule, place: &Place<'_>) -> String {
    format!("the kernel takes no such rule in {} {}: {}", place.table, place.hook, rule.text)
}

/// Where no program listens, packets are dropped, or go on behind the chain if the rule says so.
fn queue(rule: &Rule, (number, bypass): (Option<u16>, bool), place: &Place<'_>, traveller: &mut Traveller) -> Next {
    let listens = number.zip(place.node.queues.as_ref()).map(|(number, queues)| queues.contains(&number));
    if listens == Some(false) {
        let decision = if bypass { Decision::Accept } else { Decision::Drop };
        return Next::Ends(vec![(traveller.clone(), decision)]);
    }
    let why = "NFQUEUE: a program in user space decides; it is taken for one that accepts";
    let dropped = traveller.fork(Doubt::new(hook(place), &*rule.text, why), place.forks);
    let dropped = dropped.map(|traveller| (traveller, Decision::Drop));
    Next::Ends([(traveller.clone(), Decision::Accept)].into_iter().chain(dropped).collect())
}

/// What a target changes of a packet.
fn change(target: &Target, traveller: &mut Traveller, place: &Place<'_>) {
    let changed = |old: u32, SetMark { value, mask }: SetMark| old & !mask ^ value;
    let shifted = |mark: u32, copy: CopyMark| {
        let left = mark.checked_shl(copy.left).unwrap_or(0);
        left.checked_shr(copy.right).unwrap_or(0)
    };
    match *target {
        Target::Mark { value, mask } => {
            if mask == u32::MAX {
                traveller.mark_unknown = None;
            }
            traveller.mark = changed(traveller.mark, SetMark { value, mask });
        }
        Target::HashMark => traveller.mark_unknown = Some("HMARK gives it any mark".to_owned()),
        // Without a connection there is nothing to be changed.
        Target::ConnectionMark(_) | Target::SaveMark(_) | Target::RestoreMark(_)
            if !place.tracked || traveller.untracked => {}
        Target::ConnectionMark(set) => {
            traveller.connection_mark = traveller.connection_mark.map(|mark| changed(mark, set));
        }
        Target::SaveMark(copy) => match &traveller.mark_unknown {
            Some(_) => traveller.connection_mark = None,
            None => {
                let new = shifted(traveller.mark & copy.nfmask, copy);
                traveller.connection_mark = traveller.connection_mark.map(|mark| mark & !copy.ctmask ^ new);
            }
        },
        Target::RestoreMark(copy) => match traveller.connection_mark {
            Some(mark) => traveller.mark = traveller.mark & !copy.nfmask ^ shifted(mark & copy.ctmask, copy),
            None => traveller.mark_unknown = Some("the mark of a known connection is not read".to_owned()),
        },
        // Connection tracking has the packet already: it stays as it is.
        Target::NoTrack => traveller.untracked |= !place.tracked,
        Target::TypeOfService { value, mask } => {
            traveller.type_of_service = traveller.type_of_service & !mask ^ value;
        }
        Target::HopLimit => traveller.hops_changed = true,
        Target::ChangeSets(ref sets) => traveller.changed_sets.extend(sets.iter().cloned()),
        _ => {}
    }
}
