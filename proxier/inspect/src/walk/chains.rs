//! Walks a packet through the iptables chains of one hook.
//!
//! The result has one packet for each possible walk through the hook's chain, with the decision that ended it.

mod open;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use netfilter::IpFamily;
use netfilter::ipset::SetQuery;
use netfilter::ipvs::{Forward, ServerKey};
use netfilter::nft::ruleset::{self, TableId, UnreadPart};
use netfilter::nft::{Bytes, Name};

use self::open::{OpenWalks, WalkEnd};
use super::doubts::{ForkIds, ForkedDoubt};
use super::hops::HopLimit;
use super::matching::{ListChange, RuleMatch};
use super::translation;
use super::{Assumption, ConnState, Doubt, Node, Packet, RecentLists, Step, Unrouted};
use crate::rules::{Chain, CopyMark, Policy, Rule, SetMark, Table, Target};

/// The target that gives packets to a socket of the node.
const TPROXY: &str = "TPROXY";

/// A packet during the walk, with its state so far.
#[derive(Clone, Debug)]
pub(super) struct TracedPacket {
    pub(super) packet: Packet,
    pub(super) mark: u32,
    pub(super) translated: bool,
    pub(super) masqueraded: bool,
    pub(super) untracked: bool,
    /// Whether NAT was decided at this hook, so that later NAT chains are skipped.
    pub(super) settled: bool,
    /// `None`: not known.
    pub(super) connection_mark: Option<u32>,
    /// Source and destination before any translation.
    pub(super) sent: (SocketAddr, SocketAddr),
    /// Elements that rules added to nf_tables sets (`true`) or deleted from them.
    pub(super) changed: BTreeMap<(TableId, Name, Bytes), bool>,
    /// The virtual server that changed its destination.
    pub(super) server: Option<ServerKey>,
    /// The real server that gets it untranslated, and the forwarding method.
    pub(super) forwarded: Option<(SocketAddr, Forward)>,
    pub(super) probability: f64,
    pub(super) remembered: BTreeSet<String>,
    /// Lists that rules looked up for the sender.
    pub(super) asked: BTreeSet<String>,
    /// Lists that rules changed during the walk; `true`: lists of whole sender addresses.
    pub(super) touched: BTreeMap<(String, bool), ListChange>,
    /// Sets that rules changed during the walk.
    pub(super) changed_sets: BTreeSet<String>,
    /// Set lookups without an answer.
    pub(super) queries: BTreeSet<SetQuery>,
    /// Why the mark is not known, where it is not.
    pub(super) mark_unknown: Option<String>,
    /// The type of service of IPv4 or the traffic class of IPv6.
    pub(super) type_of_service: u8,
    /// Its TTL or hop limit.
    pub(super) hops: HopLimit,
    /// Of an ICMP error that REJECT sent: its type.
    pub(super) error: Option<u8>,
    /// The rule that stops the error which tells the sender of a refusal.
    pub(super) silenced: Option<Step>,
    pub(super) steps: Vec<Step>,
    pub(super) doubts: Vec<ForkedDoubt>,
    pub(super) assumed: Vec<Assumption>,
    /// The forks at which it took an undecidable rule as matching: see [`ForkIds`].
    pub(super) supposed: Vec<u32>,
    /// The built-in chain of iptables whose policy dropped it.
    pub(super) policy: Option<String>,
    /// The outgoing interface; `lo`: the packet is for this node; `None`: unknown.
    pub(super) out: Option<String>,
    /// Whether rules changed it in a way that has it routed again.
    pub(super) reroute: bool,
    pub(super) unrouted: Option<Unrouted>,
}

impl TracedPacket {
    /// Takes the packet from conntrack. Once it is tracked, that has no effect.
    pub(super) fn untrack(&mut self, is_tracked: bool, hook: String, rule: &str) {
        if is_tracked {
            return;
        }
        self.untracked = true;
        if self.packet.state == ConnState::EstablishedDnat {
            let why = "conntrack does not see this reply, so nothing translates it back";
            self.doubt(Doubt::new(hook, rule, why));
        }
    }

    /// Records an assumption. Returns the packet that continues as if it were wrong, unless there are too many forks.
    pub(super) fn assume(&mut self, assumption: Assumption, forks: &ForkIds) -> Option<Self> {
        let Assumption { hook, rule, what, .. } = assumption;
        let other = self.fork(Doubt::new(hook, rule, what), forks);
        self.doubts.last_mut().into_iter().for_each(|forked| forked.is_assumption = true);
        other
    }

    /// Records a doubt. Returns the packet that continues as if the rule matched, unless there are too many forks.
    pub(super) fn fork(&mut self, doubt: Doubt, forks: &ForkIds) -> Option<Self> {
        let fork = forks.next();
        let mut other = fork.map(|_| self.clone());
        if let (Some(fork), Some(other)) = (fork, &mut other) {
            other.supposed.push(fork);
        }
        self.doubts.push(ForkedDoubt { fork, doubt, is_assumption: false });
        other
    }

    /// Records a doubt without a fork.
    pub(super) fn doubt(&mut self, doubt: Doubt) {
        self.doubts.push(ForkedDoubt { fork: None, doubt, is_assumption: false });
    }

    /// Whether both packets are in the same state, whatever their paths and probabilities.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        let state = |t: &Self| (t.mark, t.connection_mark, t.translated, t.masqueraded, t.untracked, t.settled);
        self.packet == other.packet
            && (&self.out, self.reroute) == (&other.out, other.reroute)
            && state(self) == state(other)
            && self.mark_unknown == other.mark_unknown
            && self.changed == other.changed
            && self.remembered == other.remembered
            && self.asked == other.asked
    }
}

/// The chain's table and hook, and the node's state there.
pub(super) struct HookContext<'a> {
    pub(super) family: IpFamily,
    pub(super) table: &'a str,
    pub(super) hook: &'a str,
    pub(super) in_interface: &'a str,
    /// Whether packets have met connection tracking.
    pub(super) tracked: bool,
    pub(super) node: &'a Node,
    pub(super) memory: &'a RecentLists,
    pub(super) budget: &'a Budget,
    pub(super) forks: &'a ForkIds,
}

/// Limits the cost of a trace. Repeated jumps multiply the rules to evaluate, and each path records its matches.
pub(super) struct Budget(Cell<usize>);

impl Budget {
    /// The cost of recording a matched rule; evaluating a rule costs 1.
    const STEP: usize = 400;

    pub(super) fn new(most: usize) -> Self {
        Self(Cell::new(most))
    }

    /// Charges for evaluated rules, and for matched rules that are recorded or copied.
    ///
    /// # Errors
    /// If the budget is used up.
    pub(super) fn pay(&self, looked_at: usize, steps: usize) -> Result<(), String> {
        let left = self.0.get().checked_sub(looked_at.saturating_add(steps.saturating_mul(Self::STEP)));
        self.0.set(left.ok_or("the packet meets more rules than can be followed")?);
        Ok(())
    }
}

impl HookContext<'_> {
    /// The outgoing interface: empty in hooks before routing; `None`: unknown.
    pub(super) fn out_interface<'t>(&self, traced: &'t TracedPacket) -> Option<&'t str> {
        if matches!(self.hook, "PREROUTING" | "INPUT") { Some("") } else { traced.out.as_deref() }
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
    /// Reached by `-g`: a return from here returns from its caller too.
    goto: bool,
}

struct Walk<'a> {
    traced: TracedPacket,
    stack: Vec<Frame<'a>>,
}

/// The result of a walk.
#[derive(Default)]
pub(super) struct IptablesWalk {
    pub(super) ends: Vec<(TracedPacket, Decision)>,
    /// Missing chains that rules jump to: `(table, chain)`.
    pub(super) missing: BTreeSet<(String, String)>,
    /// Parts of nf_tables that decide but were not read.
    pub(super) lacks: Vec<UnreadPart>,
}

/// The kernel's table of the chains, by which rules that nft put there are decided.
type KernelTable<'a> = Option<(&'a TableId, &'a ruleset::Table)>;

/// Walks the hook's chain, with one walk for each outcome of random choices.
pub(super) fn walk(
    chains: &Table,
    context: &HookContext<'_>,
    kernel: KernelTable<'_>,
    traced: TracedPacket,
) -> Result<IptablesWalk, String> {
    let base = chains.get(context.hook).ok_or_else(|| format!("table {} has no {}", context.table, context.hook))?;
    let open = vec![Walk { traced, stack: vec![Frame { chain: base, next: 0, goto: false }] }];
    let mut walks = OpenWalks { chains, context, kernel, open, walked: IptablesWalk::default() };
    while let Some(mut walk) = walks.open.pop() {
        match walks.follow(&mut walk)? {
            WalkEnd::Chain => {
                let decision = policy(base).map(|decision| (walk.traced, decision));
                walks.walked.ends.extend(decision);
            }
            WalkEnd::Rule => {}
            WalkEnd::Kernel(rule) => walks.execute(rule, walk)?,
        }
    }
    Ok(walks.walked)
}

fn hook(context: &HookContext<'_>) -> String {
    format!("{} {}", context.table, context.hook)
}

/// Records the assumptions about a rule. Returns the walk that continues as if a limit were used up, or not.
fn assume<'a>(rule: &Rule, found: &RuleMatch, context: &HookContext<'_>, walk: &mut Walk<'a>) -> Option<Walk<'a>> {
    let assumption = |what: &String| Assumption {
        hook: hook(context),
        rule: rule.text.to_string(),
        what: what.clone(),
        otherwise: Vec::new(),
    };
    if found.is_limited {
        let traced = walk.traced.assume(assumption(&found.assumed.join(", ")), context.forks)?;
        return Some(Walk { traced, stack: walk.stack.clone() });
    }
    walk.traced.assumed.extend(found.assumed.iter().map(assumption));
    None
}

/// Records a doubt and treats the rule as not matching. Returns the walk that continues as if it matched.
fn doubt<'a>(rule: &Rule, why: String, context: &HookContext<'_>, walk: &mut Walk<'a>) -> Option<Walk<'a>> {
    let doubt = Doubt::new(hook(context), &*rule.text, why);
    // Without a socket that takes it, TPROXY drops the packet.
    let unfollowed = |target: &Target| matches!(target, Target::Unfollowed(name) if name != TPROXY);
    if rule.meaning(context.family).target.as_ref().is_some_and(unfollowed) {
        walk.traced.doubt(doubt);
        return None;
    }
    let traced = walk.traced.fork(doubt, context.forks)?;
    Some(Walk { traced, stack: walk.stack.clone() })
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

/// How the walk continues after a matching rule.
enum Next {
    /// The next rule.
    Rule,
    /// The walk through the hook's chain ends, in one way or in several.
    Ends(Vec<(TracedPacket, Decision)>),
}

/// Executes the target of a matching rule.
fn obey<'a>(
    rule: &Rule,
    chance: f64,
    chains: &'a Table,
    context: &HookContext<'_>,
    walk: &mut Walk<'a>,
    missing: &mut BTreeSet<(String, String)>,
) -> Result<Next, String> {
    context.budget.pay(0, 1)?;
    walk.traced.steps.push(Step::of(hook(context), &rule.text, chance));
    match &rule.meaning(context.family).target {
        Some(target) => carry_out(target, rule, chains, context, walk, missing),
        None => Ok(Next::Rule),
    }
}

fn carry_out<'a>(
    target: &Target,
    rule: &Rule,
    chains: &'a Table,
    context: &HookContext<'_>,
    walk: &mut Walk<'a>,
    missing: &mut BTreeSet<(String, String)>,
) -> Result<Next, String> {
    let traced = &mut walk.traced;
    let end = |walk: &Walk<'_>, decision| Ok(Next::Ends(vec![(walk.traced.clone(), decision)]));
    match target {
        Target::Accept => return end(walk, Decision::Accept),
        Target::Unfollowed(name) if name == TPROXY => return end(walk, Decision::Drop),
        Target::Drop => return end(walk, Decision::Drop),
        Target::Reject if context.table == "filter" => return end(walk, Decision::Reject),
        Target::Return => leave(&mut walk.stack),
        Target::Queue { number, bypass } => return Ok(queue(rule, (*number, *bypass), context, traced)),
        Target::Jump(to) | Target::Goto(to) => {
            let Some(chain) = chains.get(&**to) else {
                missing.insert((context.table.to_owned(), to.clone()));
                return Ok(Next::Rule);
            };
            // A chain can be open only once at a time: the kernel refuses loops.
            if walk.stack.len() > chains.len() {
                return Err(format!("chains jump in a circle: {}", rule.text));
            }
            walk.stack.push(Frame { chain, next: 0, goto: matches!(target, Target::Goto(_)) });
        }
        Target::Zone => {
            let why = "answers are looked up in another zone of connections, which is not followed";
            traced.doubt(Doubt::new(hook(context), &*rule.text, why));
        }
        _ if translation::is_one(target) => {
            let ends = translation::translate(target, traced, context);
            let ends = ends.ok_or_else(|| misplaced(rule, context))?;
            return Ok(Next::Ends(ends.into_iter().map(|traced| (traced, Decision::Accept)).collect()));
        }
        Target::Reject => return Err(misplaced(rule, context)),
        other => change(other, traced, context),
    }
    Ok(Next::Rule)
}

fn misplaced(rule: &Rule, context: &HookContext<'_>) -> String {
    format!("the kernel takes no such rule in {} {}: {}", context.table, context.hook, rule.text)
}

/// Packets to a queue without a listener are dropped, or accepted with `--queue-bypass`.
fn queue(
    rule: &Rule,
    (number, bypass): (Option<u16>, bool),
    context: &HookContext<'_>,
    traced: &mut TracedPacket,
) -> Next {
    let listens = number.zip(context.node.queues.as_ref()).map(|(number, queues)| queues.contains(&number));
    if listens == Some(false) {
        let decision = if bypass { Decision::Accept } else { Decision::Drop };
        return Next::Ends(vec![(traced.clone(), decision)]);
    }
    let why = "NFQUEUE: a program in user space decides; it is taken for one that accepts";
    let dropped = traced.fork(Doubt::new(hook(context), &*rule.text, why), context.forks);
    let dropped = dropped.map(|traced| (traced, Decision::Drop));
    Next::Ends([(traced.clone(), Decision::Accept)].into_iter().chain(dropped).collect())
}

/// Applies a target that changes a packet.
fn change(target: &Target, traced: &mut TracedPacket, context: &HookContext<'_>) {
    let changed = |old: u32, SetMark { value, mask }: SetMark| old & !mask ^ value;
    let shifted = |mark: u32, copy: CopyMark| {
        let left = mark.checked_shl(copy.left).unwrap_or(0);
        left.checked_shr(copy.right).unwrap_or(0)
    };
    match *target {
        Target::Mark { value, mask } => {
            if mask == u32::MAX {
                traced.mark_unknown = None;
            }
            traced.mark = changed(traced.mark, SetMark { value, mask });
        }
        Target::HashMark => traced.mark_unknown = Some("HMARK gives it any mark".to_owned()),
        // An untracked packet has no connection mark.
        Target::ConnectionMark(_) | Target::SaveMark(_) | Target::RestoreMark(_)
            if !context.tracked || traced.untracked => {}
        Target::ConnectionMark(set) => {
            traced.connection_mark = traced.connection_mark.map(|mark| changed(mark, set));
        }
        Target::SaveMark(copy) => match &traced.mark_unknown {
            Some(_) => traced.connection_mark = None,
            None => {
                let new = shifted(traced.mark & copy.nfmask, copy);
                traced.connection_mark = traced.connection_mark.map(|mark| mark & !copy.ctmask ^ new);
            }
        },
        Target::RestoreMark(copy) => match traced.connection_mark {
            Some(mark) => traced.mark = traced.mark & !copy.nfmask ^ shifted(mark & copy.ctmask, copy),
            None => traced.mark_unknown = Some("the mark of a known connection is not read".to_owned()),
        },
        Target::NoTrack => traced.untrack(context.tracked, hook(context), "-j NOTRACK"),
        Target::TypeOfService { value, mask } => {
            traced.type_of_service = traced.type_of_service & !mask ^ value;
        }
        Target::HopLimit(change) => traced.hops.apply(change),
        Target::ChangeSets(ref sets) => traced.changed_sets.extend(sets.iter().cloned()),
        _ => {}
    }
}
