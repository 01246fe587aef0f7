//! Walks a packet through all hooks of its path.
//!
//! The order of hooks and tables, and the routing between them, follow the kernel.

use std::collections::{BTreeMap, BTreeSet};

use netfilter::IpFamily;
use netfilter::ipvs::{Forward, ServerKey};
use netfilter::nft::{ChainType, Hook, ruleset};
use netfilter::route::RouteQuery;
use netfilter::xfrm::XfrmDirection;

use super::chains::{self, Budget, Decision, HookContext, TracedPacket};
use super::doubts::{ForkEnds, ForkIds};
use super::hops::{self, HopLimit};
use super::routing;
use super::stages::{self, HookStage};
use super::tables::{self, TableScope};
use super::ties::Supposition;
use super::unfollowed;
use super::{Branch, ConnState, Doubt, Node, Origin, Outcome, Packet, RecentLists, Step, Trace, Verdict};
use crate::rules::Ruleset;
use crate::services::shares;

/// All rules that packets of one family meet.
#[derive(Clone, Copy, Debug)]
pub struct NodeRules<'a> {
    /// The iptables rules of the flavour in use.
    pub iptables: &'a Ruleset,
    /// The rules of the other flavour, if it has any: packets meet both.
    pub other: Option<OtherFlavour<'a>>,
    /// All other nf_tables tables that were read.
    pub nftables: Option<&'a ruleset::Ruleset>,
}

/// Rules of the iptables flavour that is not in use.
#[derive(Clone, Copy, Debug)]
pub struct OtherFlavour<'a> {
    /// The rules.
    pub ruleset: &'a Ruleset,
    /// The flavour's name, which is the prefix of steps in these rules.
    pub flavour: &'static str,
}

impl Ruleset {
    /// Traces the packet through these rules alone: see [`NodeRules::trace`].
    ///
    /// # Errors
    /// As [`NodeRules::trace`].
    pub fn trace(&self, packet: &Packet, node: &Node, memory: &RecentLists) -> Result<Trace, String> {
        NodeRules { iptables: self, other: None, nftables: None }.trace(packet, node, memory)
    }
}

impl NodeRules<'_> {
    /// Traces the packet in a supposed order of chains, and with a limit of evaluated rules; a rule that matches costs
    /// more.
    ///
    /// # Errors
    /// As [`NodeRules::trace`].
    pub(super) fn trace_within(
        &self,
        (supposed, most_rules): (Supposition<'_>, usize),
        packet: &Packet,
        node: &Node,
        memory: &RecentLists,
    ) -> Result<Trace, String> {
        let families = [packet.source.ip(), packet.destination.ip()].map(|ip| IpFamily::of(&ip));
        if families.iter().any(|family| *family != self.iptables.family()) {
            return Err(format!("{packet}: not of the ruleset's family"));
        }
        let mut walk = PathWalk {
            rules: *self,
            supposed,
            node,
            memory,
            budget: Budget::new(most_rules),
            forks: ForkIds::default(),
            under_way: vec![start(packet)],
            ended: vec![],
            missing: BTreeSet::new(),
            lacks: BTreeSet::new(),
            routes: BTreeSet::new(),
            dormant: BTreeSet::new(),
        };
        match &packet.origin {
            Origin::Host => walk.send_from_host()?,
            Origin::Interface(name) => walk.arrive_on(name)?,
        }
        walk.ended.extend(walk.under_way.drain(..).map(|t| (t, Decision::Accept)));
        walk.follow_errors()?;
        for (traced, decision) in &mut walk.ended {
            unfollowed::note(traced, *decision, node);
            *decision = routing::sent(traced, *decision, node);
            hops::note_last(traced, *decision, node);
        }
        let asked = walk.ended.iter().flat_map(|(traced, _)| traced.asked.iter().cloned()).collect();
        let queries = walk.ended.iter().flat_map(|(traced, _)| traced.queries.iter().cloned()).collect();
        let compared = ForkEnds::of(&walk.ended);
        // Packets of forks only show whether a doubt matters.
        let real = walk.ended.into_iter().filter(|(traced, _)| traced.supposed.is_empty());
        let branches = real.map(|end| branch(end, &compared, node)).collect();
        let PathWalk { missing, lacks, routes, dormant, .. } = walk;
        Ok(Trace { asked, queries, branches, missing, lacks, routes, dormant })
    }
}

/// Limit of paths: repeated random choices multiply them.
pub(super) const MOST: usize = 50_000;

pub(super) struct PathWalk<'a> {
    rules: NodeRules<'a>,
    supposed: Supposition<'a>,
    pub(super) node: &'a Node,
    memory: &'a RecentLists,
    budget: Budget,
    forks: ForkIds,
    pub(super) under_way: Vec<TracedPacket>,
    pub(super) ended: Vec<(TracedPacket, Decision)>,
    missing: BTreeSet<(String, String)>,
    lacks: BTreeSet<ruleset::UnreadPart>,
    pub(super) routes: BTreeSet<RouteQuery>,
    dormant: BTreeSet<ruleset::TableId>,
}

/// One passage through a hook.
#[derive(Clone, Copy)]
pub(super) struct HookPass<'a> {
    hook: Hook,
    in_interface: &'a str,
    /// Whether NAT is still undecided: it is decided once per connection and direction.
    nat: bool,
    /// Whether virtual servers receive packets here.
    serve: bool,
    /// Whether packets have met connection tracking before.
    tracked: bool,
}

impl<'a> HookPass<'a> {
    fn first(hook: Hook, in_interface: &'a str) -> Self {
        Self { hook, in_interface, nat: true, serve: true, tracked: false }
    }

    /// A passage of packets whose NAT was decided before.
    pub(super) fn again(hook: Hook, in_interface: &'a str) -> Self {
        Self { hook, in_interface, nat: false, serve: false, tracked: true }
    }
}

impl PathWalk<'_> {
    fn arrive_on(&mut self, name: &str) -> Result<(), String> {
        self.take_in(name);
        self.pass(HookPass::first(Hook::Prerouting, name))?;
        let (local, forwarded) = self.route(Some(name));
        self.under_way = forwarded;
        self.apply_policies(XfrmDirection::Forward);
        self.count_hop();
        self.apply_policies(XfrmDirection::Out);
        self.pass(HookPass::first(Hook::Forward, name))?;
        self.pass(HookPass::first(Hook::Postrouting, name))?;
        self.apply_policies(XfrmDirection::Out);
        let forwarded = std::mem::replace(&mut self.under_way, local);
        let served = self.pass(HookPass::first(Hook::Input, name))?;
        self.apply_policies(XfrmDirection::In);
        let arrived = std::mem::replace(&mut self.under_way, served);
        // Packets that IPVS forwards pass OUTPUT; NAT of their destination is already decided.
        self.reroute();
        self.count_hop();
        self.pass(HookPass::again(Hook::Output, ""))?;
        self.pass(HookPass::first(Hook::Postrouting, name))?;
        self.under_way.extend(forwarded);
        self.under_way.extend(arrived);
        Ok(())
    }

    /// Walks packets from the node itself: OUTPUT, POSTROUTING and, if the destination is local, INPUT by way of `lo`. NAT is
    /// decided in OUTPUT and not again.
    fn send_from_host(&mut self) -> Result<(), String> {
        self.route_own();
        self.apply_policies(XfrmDirection::Out);
        let served = self.pass(HookPass::first(Hook::Output, ""))?;
        let rest = std::mem::replace(&mut self.under_way, served);
        self.reroute();
        self.pass(HookPass::again(Hook::Output, ""))?;
        self.under_way.extend(rest);
        self.reroute();
        self.apply_policies(XfrmDirection::Out);
        self.pass(HookPass::first(Hook::Postrouting, ""))?;
        self.apply_policies(XfrmDirection::Out);
        let stays = |traced: &TracedPacket| traced.out.as_deref() == Some("lo");
        let (local, sent) = self.under_way.drain(..).partition(stays);
        self.under_way = local;
        self.pass(HookPass::again(Hook::Prerouting, "lo"))?;
        self.pass(HookPass::again(Hook::Input, "lo"))?;
        self.under_way.extend(sent);
        Ok(())
    }

    /// Applies virtual servers. Returns packets to other hosts; packets for this node, or without a virtual server,
    /// continue.
    fn serve(&mut self, hook: &str) -> Vec<TracedPacket> {
        let (mut served, held) = (Vec::new(), &self.node.held);
        for traced in std::mem::take(&mut self.under_way) {
            let Packet { destination, protocol, state, .. } = traced.packet;
            let key = ServerKey { address: destination, protocol: protocol.number() };
            let mut traced = traced;
            if let Some(scheduler) = held.marks.get(&traced.mark).filter(|_| traced.server.is_none()) {
                let rule = format!("-A -f {} -s {scheduler}", traced.mark);
                let why = "a virtual server of packets with this mark".to_owned();
                traced.doubt(Doubt::new(format!("ipvs {hook}"), rule, why));
            }
            let server = held.servers.get(&key).filter(|_| traced.server.is_none() && state == ConnState::New);
            let Some(server) = server else {
                self.under_way.push(traced);
                continue;
            };
            let mut met = traced;
            let step = |rule: &str, chance: f64| Step::of(format!("ipvs {hook}"), rule, chance);
            met.steps.push(step(&server.server.to_string(), 1.0));
            met.server = Some(key);
            let shares = shares(server);
            if shares.is_empty() {
                // The kernel sends an ICMP error: port unreachable.
                self.ended.push((met, Decision::Reject));
                continue;
            }
            for (address, share) in shares {
                let mut sent = TracedPacket { reroute: true, ..met.clone() };
                let real = server.reals.get(&address).map(|real| real.server);
                let text = real.map(|real| real.to_string()).unwrap_or_default();
                sent.steps.push(step(&format!("-a {key} {text}"), share));
                sent.probability *= share;
                let here = self.node.is_local(address.ip());
                match real.map_or(Forward::Masquerade, |real| real.forward) {
                    Forward::Masquerade => (sent.packet.destination, sent.translated) = (address, true),
                    // A packet for this node stays unchanged.
                    _ if here => {}
                    how => {
                        sent.forwarded = Some((address, how));
                        self.ended.push((sent, Decision::Accept));
                        continue;
                    }
                }
                if here { &mut self.under_way } else { &mut served }.push(sent);
            }
        }
        served
    }

    /// Walks all current packets through one hook; packets that are not accepted end there. Returns packets that virtual
    /// servers forward.
    pub(super) fn pass(&mut self, pass: HookPass<'_>) -> Result<Vec<TracedPacket>, String> {
        let mut served = Vec::new();
        if !self.under_way.is_empty() {
            self.dormant.extend(stages::dormant(pass.hook, self.rules));
        }
        for station in stages::at(pass.hook, self.rules, self.supposed) {
            match station {
                HookStage::Rules(rules, tracked) => {
                    let again = pass.hook == Hook::Output && routing::reroutes(rules);
                    for traced in std::mem::take(&mut self.under_way) {
                        let before = (traced.mark, traced.packet.clone());
                        let mut accepted = self.walk(rules, pass, tracked || pass.tracked, traced)?;
                        let changed = |t: &TracedPacket| (t.mark, &t.packet) != (before.0, &before.1);
                        accepted.iter_mut().for_each(|t| t.reroute |= again && changed(t));
                        self.under_way.extend(accepted);
                    }
                }
                HookStage::Nat(chains) if pass.nat => {
                    for traced in std::mem::take(&mut self.under_way) {
                        let to = traced.packet.destination;
                        let mut translated = self.translate(&chains, pass, traced)?;
                        let own = pass.hook == Hook::Output;
                        translated.iter_mut().for_each(|t| t.reroute |= own && t.packet.destination != to);
                        self.under_way.extend(translated);
                    }
                }
                HookStage::Serve if pass.serve => served.extend(self.serve(&pass.hook.name().to_uppercase())),
                HookStage::Nat(_) | HookStage::Serve => {}
            }
        }
        Ok(served)
    }

    /// Walks NAT chains until one decides. Only a connection's first packet meets them; later packets follow its
    /// conntrack entry.
    fn translate(
        &mut self,
        chains: &[stages::HookChain<'_>],
        pass: HookPass<'_>,
        traced: TracedPacket,
    ) -> Result<Vec<TracedPacket>, String> {
        if traced.packet.state != ConnState::New || traced.untracked {
            return Ok(vec![traced]);
        }
        let mut packets = vec![TracedPacket { settled: false, ..traced }];
        for rules in chains {
            for traced in std::mem::take(&mut packets) {
                match traced.settled {
                    true => packets.push(traced),
                    false => packets.extend(self.walk(*rules, pass, true, traced)?),
                }
            }
        }
        Ok(packets)
    }

    /// Walks a chain. Returns the accepted packets.
    fn walk(
        &mut self,
        rules: stages::HookChain<'_>,
        pass: HookPass<'_>,
        tracked: bool,
        traced: TracedPacket,
    ) -> Result<Vec<TracedPacket>, String> {
        let hook = pass.hook.name().to_uppercase();
        let table = match rules {
            stages::HookChain::Iptables(table, ..) => table,
            stages::HookChain::Nftables(id, ..) => &id.name,
        };
        let HookPass { in_interface, .. } = pass;
        let family = self.rules.iptables.family();
        let Self { node, memory, ref budget, ref forks, .. } = *self;
        let context = HookContext { family, table, hook: &hook, in_interface, tracked, node, memory, budget, forks };
        let ends = match rules {
            stages::HookChain::Iptables(_, chains, flavour) => {
                let met = traced.steps.len();
                let id = ruleset::TableId::of(family, table);
                let held = self.rules.nftables.and_then(|ruleset| ruleset.tables.get(&id));
                let mut walked = chains::walk(chains, &context, held.map(|held| (&id, held)), traced)?;
                self.missing.extend(walked.missing);
                self.lacks.extend(walked.lacks);
                walked.ends.iter_mut().for_each(|end| note_place(end, met, &format!("{table} {hook}"), flavour));
                walked.ends
            }
            stages::HookChain::Nftables(id, table, name, chain) => {
                let nat = chain.base.as_ref().is_some_and(|base| base.kind == ChainType::Nat);
                let scope = TableScope { context: &context, id, table, tracked, nat };
                let walked = tables::walk(&scope, (name, chain), traced)?;
                self.lacks.extend(walked.lacks);
                walked.ends
            }
        };
        let (accepted, refused): (Vec<_>, Vec<_>) =
            ends.into_iter().partition(|(_, decision)| *decision == Decision::Accept);
        self.ended.extend(refused);
        if self.ended.len() + self.under_way.len() > MOST {
            return Err(format!("more than {MOST} ways lead through these rules"));
        }
        Ok(accepted.into_iter().map(|(traced, _)| traced).collect())
    }
}

/// Records the policy that dropped a packet, and names the flavour in the steps from `met` on.
fn note_place((traced, decision): &mut (TracedPacket, Decision), met: usize, hook: &str, flavour: Option<&str>) {
    let context = flavour.map_or_else(|| hook.to_owned(), |flavour| format!("{flavour} {hook}"));
    let by_rule = traced.steps.get(met..).and_then(<[Step]>::last).is_some_and(|step| drops(&step.rule));
    if *decision == Decision::Drop && !by_rule {
        traced.policy = Some(context.clone());
    }
    if flavour.is_some() {
        traced.steps.iter_mut().skip(met).for_each(|step| step.hook.clone_from(&context));
    }
}

/// Whether the text of a rule has a drop verdict, in iptables or nft syntax.
fn drops(rule: &str) -> bool {
    ["-j DROP", "-j NFQUEUE"].iter().any(|target| rule.contains(target))
        || rule.ends_with("drop")
        || rule.contains(": drop")
}

pub(super) fn start(packet: &Packet) -> TracedPacket {
    TracedPacket {
        packet: packet.clone(),
        mark: 0,
        translated: false,
        masqueraded: false,
        untracked: false,
        settled: false,
        connection_mark: (packet.state == ConnState::New).then_some(0),
        sent: (packet.source, packet.destination),
        changed: BTreeMap::new(),
        server: None,
        forwarded: None,
        probability: 1.0,
        remembered: BTreeSet::new(),
        asked: BTreeSet::new(),
        touched: BTreeMap::new(),
        changed_sets: BTreeSet::new(),
        queries: BTreeSet::new(),
        mark_unknown: None,
        type_of_service: 0,
        hops: HopLimit::of(&packet.origin),
        error: None,
        silenced: None,
        steps: vec![],
        doubts: vec![],
        policy: None,
        out: None,
        reroute: false,
        unrouted: None,
        assumed: vec![],
        supposed: vec![],
    }
}

/// The outcome of a packet.
pub(super) fn outcome(traced: &TracedPacket, decision: Decision) -> Outcome {
    let forwarded = traced.forwarded.map(|(to, how)| Verdict::Forwarded(to, how));
    let verdict = match decision {
        Decision::Drop => Verdict::Dropped,
        Decision::Reject => Verdict::Rejected,
        Decision::Accept if traced.translated => Verdict::Delivered(traced.packet.destination),
        Decision::Accept => forwarded.unwrap_or(Verdict::Untouched),
    };
    let masqueraded = traced.masqueraded && decision == Decision::Accept;
    Outcome { verdict, masqueraded, probability: traced.probability }
}

fn branch((traced, decision): (TracedPacket, Decision), compared: &ForkEnds, node: &Node) -> Branch {
    let outcome = outcome(&traced, decision);
    let source = traced.packet.source.ip();
    let foreign_source =
        (outcome.masqueraded && source != traced.sent.0.ip() && !node.is_local(source)).then_some(source);
    let TracedPacket { remembered, steps, doubts, mut assumed, policy, silenced, unrouted, .. } = traced;
    let (doubts, harmless, limits) = compared.sort(doubts);
    assumed.extend(limits);
    Branch { outcome, remembered, steps, doubts, harmless, assumed, policy, foreign_source, silenced, unrouted }
}
