//! The way through all hooks.
//!
//! In: a ruleset, a packet, the node and its memory of the sender. Out: the [`Trace`] over all hooks the packet passes.
//! Must not know: matches and targets. The order of hooks and tables and the routing between them is the kernel's.

use std::collections::{BTreeMap, BTreeSet};

use netfilter::IpFamily;
use netfilter::ipvs::{Forward, ServerKey};
use netfilter::nft::{ChainType, Hook, ruleset};

use super::chains::{self, Budget, Decision, Place, Traveller};
use super::doubts::{Compared, Forks};
use super::stations::{self, Station};
use super::tables::{self, Spot};
use super::{Branch, ConnState, Doubt, Memory, Node, Origin, Outcome, Packet, Step, Trace, Verdict};
use crate::rules::Ruleset;
use crate::services::shares;

/// All rules that packets of one family meet.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// Those of iptables, of either flavour.
    pub iptables: &'a Ruleset,
    /// Those of the flavour that is not in use, if it has any: packets meet both.
    pub other: Option<OtherFlavour<'a>>,
    /// All other tables of nftables, as far as they were read.
    pub nftables: Option<&'a ruleset::Ruleset>,
}

/// Rules of the flavour of iptables that is not in use.
#[derive(Clone, Copy, Debug)]
pub struct OtherFlavour<'a> {
    /// The rules.
    pub ruleset: &'a Ruleset,
    /// The flavour's name, which steps through these rules begin with.
    pub flavour: &'static str,
}

impl Ruleset {
    /// Every way the packet can go where there are no other rules: see [`Rules::trace`].
    ///
    /// # Errors
    /// As there.
    pub fn trace(&self, packet: &Packet, node: &Node, memory: &Memory) -> Result<Trace, String> {
        Rules { iptables: self, other: None, nftables: None }.trace(packet, node, memory)
    }
}

impl Rules<'_> {
    /// Every way the packet can go. The node's memory holds the `recent` lists the sender is on.
    ///
    /// # Errors
    /// When the rules are such as the kernel would not take, or the packet is of the other family.
    pub fn trace(&self, packet: &Packet, node: &Node, memory: &Memory) -> Result<Trace, String> {
        self.trace_within(MOST_RULES, packet, node, memory)
    }

    /// The same with another limit to the rules that may be looked at; one that matches costs more.
    pub(crate) fn trace_within(
        &self,
        most_rules: usize,
        packet: &Packet,
        node: &Node,
        memory: &Memory,
    ) -> Result<Trace, String> {
        let families = [packet.source.ip(), packet.destination.ip()].map(|ip| IpFamily::of(&ip));
        if families.iter().any(|family| *family != self.iptables.family()) {
            return Err(format!("{packet}: not of the ruleset's family"));
        }
        let mut journey = Journey {
            rules: *self,
            node,
            memory,
            budget: Budget::new(most_rules),
            forks: Forks::default(),
            under_way: vec![start(packet)],
            ended: vec![],
            missing: BTreeSet::new(),
            lacks: BTreeSet::new(),
        };
        journey.note_unwalked();
        match &packet.origin {
            Origin::Host => journey.unshare_process()?,
            Origin::Interface(name) => journey.arrive_on(name)?,
        }
        journey.ended.extend(journey.under_way.drain(..).map(|t| (t, Decision::Accept)));
        let asked = journey.ended.iter().flat_map(|(traveller, _)| traveller.asked.iter().cloned()).collect();
        let queries = journey.ended.iter().flat_map(|(traveller, _)| traveller.queries.iter().cloned()).collect();
        let compared = Compared::of(&journey.ended);
        // Those that go on as if a rule matched only tell whether it matters.
        let real = journey.ended.into_iter().filter(|(traveller, _)| traveller.supposed.is_empty());
        let branches = real.map(|end| branch(end, &compared)).collect();
        Ok(Trace { asked, queries, branches, missing: journey.missing, lacks: journey.lacks })
    }
}

/// Rules that choose by chance again and again have more ways than can be told.
pub(super) const MOST: usize = 50_000;
/// With 10,000 Services without endpoints, a packet for one with 1,000 endpoints has 10 million rules looked at.
const MOST_RULES: usize = 50_000_000;

struct Journey<'a> {
    rules: Rules<'a>,
    node: &'a Node,
    memory: &'a Memory,
    budget: Budget,
    forks: Forks,
    under_way: Vec<Traveller>,
    ended: Vec<(Traveller, Decision)>,
    missing: BTreeSet<(String, String)>,
    lacks: BTreeSet<ruleset::UnreadPart>,
}

/// One passage through a hook.
#[derive(Clone, Copy)]
struct Pass<'a> {
    hook: Hook,
    in_interface: &'a str,
    /// Whether translations are still to be decided: for each connection that happens once on its way.
    nat: bool,
    /// Whether virtual servers take what is sent to them.
    serve: bool,
    /// Whether packets have met connection tracking before.
    tracked: bool,
}

impl<'a> Pass<'a> {
    fn first(hook: Hook, in_interface: &'a str) -> Self {
        Self { hook, in_interface, nat: true, serve: true, tracked: false }
    }

    /// Of what was decided before.
    fn again(hook: Hook, in_interface: &'a str) -> Self {
        Self { hook, in_interface, nat: false, serve: false, tracked: true }
    }
}

impl Journey<'_> {
    /// Rules at places that are not walked are a doubt for what comes by there.
    fn note_unwalked(&mut self) {
        let Some(traveller) = self.under_way.first_mut() else { return };
        let incoming = match &traveller.packet.origin {
            Origin::Interface(name) => Some(name.clone()),
            Origin::Host => None,
        };
        let outgoing = self.node.out_interface(traveller.packet.destination.ip());
        for unwalked in &self.node.unwalked {
            let meets = |name: &str| unwalked.interfaces.is_empty() || unwalked.interfaces.contains(name);
            if incoming.as_deref().is_some_and(meets) || outgoing.is_some_and(meets) {
                let why = "a trace does not go through this chain";
                traveller.doubt(Doubt::new(unwalked.chain.clone(), "all rules of the chain", why));
            }
        }
    }

    fn arrive_on(&mut self, name: &str) -> Result<(), String> {
        self.pass(Pass::first(Hook::Prerouting, name))?;
        let (local, forwarded) = self.split_local();
        self.under_way = forwarded;
        self.pass(Pass::first(Hook::Forward, name))?;
        self.pass(Pass::first(Hook::Postrouting, name))?;
        let forwarded = std::mem::replace(&mut self.under_way, local);
        let served = self.pass(Pass::first(Hook::Input, name))?;
        let arrived = std::mem::replace(&mut self.under_way, served);
        // What IPVS sends on passes the hook of what the host itself sends; its destination was decided already.
        self.pass(Pass::again(Hook::Output, ""))?;
        self.pass(Pass::first(Hook::Postrouting, name))?;
        self.under_way.extend(forwarded);
        self.under_way.extend(arrived);
        Ok(())
    }

    /// A host's packet to one of its own addresses comes back in through lo. The nat decision was made on the way out
    /// and is not made again.
    fn unshare_process(&mut self) -> Result<(), String> {
        let served = self.pass(Pass::first(Hook::Output, ""))?;
        let rest = std::mem::replace(&mut self.under_way, served);
        self.pass(Pass::again(Hook::Output, ""))?;
        self.under_way.extend(rest);
        self.pass(Pass::first(Hook::Postrouting, ""))?;
        let (local, sent) = self.split_local();
        self.under_way = local;
        self.pass(Pass::again(Hook::Prerouting, "lo"))?;
        self.pass(Pass::again(Hook::Input, "lo"))?;
        self.under_way.extend(sent);
        Ok(())
    }

    /// Has virtual servers take what is sent to them: returned is what leaves for other hosts. What they give to the node
    /// itself stays under way, as does what is sent to none of them.
    fn serve(&mut self, hook: &str) -> Vec<Traveller> {
        let (mut served, held) = (Vec::new(), &self.node.held);
        for traveller in std::mem::take(&mut self.under_way) {
            let Packet { destination, protocol, state, .. } = traveller.packet;
            let key = ServerKey { address: destination, protocol: protocol.number() };
            let mut traveller = traveller;
            if let Some(scheduler) = held.marks.get(&traveller.mark).filter(|_| traveller.server.is_none()) {
                let rule = format!("-A -f {} -s {scheduler}", traveller.mark);
                let why = "a virtual server of packets with this mark".to_owned();
                traveller.doubt(Doubt::new(format!("ipvs {hook}"), rule, why));
            }
            let server = held.servers.get(&key).filter(|_| traveller.server.is_none() && state == ConnState::New);
            let Some(server) = server else {
                self.under_way.push(traveller);
                continue;
            };
            let mut met = traveller;
            let step = |rule: &str, chance: f64| Step::of(format!("ipvs {hook}"), rule, chance);
            met.steps.push(step(&server.server.to_string(), 1.0));
            met.server = Some(key);
            let shares = shares(server);
            if shares.is_empty() {
                // The kernel answers that the port cannot be reached.
                self.ended.push((met, Decision::Reject));
                continue;
            }
            for (address, share) in shares {
                let mut sent = met.clone();
                let real = server.reals.get(&address).map(|real| real.server);
                let text = real.map(|real| real.to_string()).unwrap_or_default();
                sent.steps.push(step(&format!("-a {key} {text}"), share));
                sent.probability *= share;
                let here = self.node.is_local(address.ip());
                match real.map_or(Forward::Masquerade, |real| real.forward) {
                    Forward::Masquerade => (sent.packet.destination, sent.translated) = (address, true),
                    // What is for this node anyway stays, as it is.
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

    fn split_local(&mut self) -> (Vec<Traveller>, Vec<Traveller>) {
        let node = self.node;
        self.under_way.drain(..).partition(|t| node.is_local(t.packet.destination.ip()))
    }

    /// Takes everything under way through one hook; what is not accepted ends there. Returned is what virtual servers send
    /// on.
    fn pass(&mut self, pass: Pass<'_>) -> Result<Vec<Traveller>, String> {
        let mut served = Vec::new();
        for station in stations::at(pass.hook, self.rules) {
            match station {
                Station::Rules(rules, tracked) => {
                    for traveller in std::mem::take(&mut self.under_way) {
                        let accepted = self.walk(rules, pass, tracked || pass.tracked, traveller)?;
                        self.under_way.extend(accepted);
                    }
                }
                Station::Nat(chains) if pass.nat => {
                    for traveller in std::mem::take(&mut self.under_way) {
                        let translated = self.translate(&chains, pass, traveller)?;
                        self.under_way.extend(translated);
                    }
                }
                Station::Serve if pass.serve => served.extend(self.serve(&pass.hook.name().to_uppercase())),
                Station::Nat(_) | Station::Serve => {}
            }
        }
        Ok(served)
    }

    /// Asks chains until one has decided the translation. Only a connection's first packet meets them; the later ones
    /// follow what was decided for it.
    fn translate(
        &mut self,
        chains: &[stations::Rules<'_>],
        pass: Pass<'_>,
        traveller: Traveller,
    ) -> Result<Vec<Traveller>, String> {
        if traveller.packet.state != ConnState::New || traveller.untracked {
            return Ok(vec![traveller]);
        }
        let mut travellers = vec![Traveller { settled: false, ..traveller }];
        for rules in chains {
            for traveller in std::mem::take(&mut travellers) {
                match traveller.settled {
                    true => travellers.push(traveller),
                    false => travellers.extend(self.walk(*rules, pass, true, traveller)?),
                }
            }
        }
        Ok(travellers)
    }

    /// Walks a chain; returned is what it accepts.
    fn walk(
        &mut self,
        rules: stations::Rules<'_>,
        pass: Pass<'_>,
        tracked: bool,
        traveller: Traveller,
    ) -> Result<Vec<Traveller>, String> {
        let hook = pass.hook.name().to_uppercase();
        let table = match rules {
            stations::Rules::Iptables(table, ..) => table,
            stations::Rules::Nftables(id, ..) => &id.name,
        };
        let Pass { in_interface, .. } = pass;
        let family = self.rules.iptables.family();
        let Self { node, memory, ref budget, ref forks, .. } = *self;
        let place = Place { family, table, hook: &hook, in_interface, tracked, node, memory, budget, forks };
        let ends = match rules {
            stations::Rules::Iptables(_, chains, flavour) => {
                let met = traveller.steps.len();
                let id = ruleset::TableId::of(family, table);
                let held = self.rules.nftables.and_then(|ruleset| ruleset.tables.get(&id));
                let mut walked = chains::walk(chains, &place, held.map(|held| (&id, held)), traveller)?;
                self.missing.extend(walked.missing);
                self.lacks.extend(walked.lacks);
                walked.ends.iter_mut().for_each(|end| note_place(end, met, &format!("{table} {hook}"), flavour));
                walked.ends
            }
            stations::Rules::Nftables(id, table, name, chain) => {
                let nat = chain.base.as_ref().is_some_and(|base| base.kind == ChainType::Nat);
                let spot = Spot { place: &place, id, table, tracked, nat };
                let walked = tables::walk(&spot, (name, chain), traveller)?;
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
        Ok(accepted.into_iter().map(|(traveller, _)| traveller).collect())
    }
}

/// Notes the policy that dropped a packet, and names the flavour in the steps from `met` on.
fn note_place((traveller, decision): &mut (Traveller, Decision), met: usize, hook: &str, flavour: Option<&str>) {
    let place = flavour.map_or_else(|| hook.to_owned(), |flavour| format!("{flavour} {hook}"));
    let by_rule = traveller.steps.get(met..).and_then(<[Step]>::last).is_some_and(|step| drops(&step.rule));
    if *decision == Decision::Drop && !by_rule {
        traveller.policy = Some(place.clone());
    }
    if flavour.is_some() {
        traveller.steps.iter_mut().skip(met).for_each(|step| step.hook.clone_from(&place));
    }
}

/// Whether a rule that a packet met last dropped it: in iptables' words, or in nft's.
fn drops(rule: &str) -> bool {
    ["-j DROP", "-j NFQUEUE"].iter().any(|target| rule.contains(target))
        || rule.ends_with("drop")
        || rule.contains(": drop")
}

fn start(packet: &Packet) -> Traveller {
    Traveller {
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
        hops_changed: false,
        steps: vec![],
        doubts: vec![],
        policy: None,
        assumed: vec![],
        supposed: vec![],
    }
}

/// How a packet ends.
pub(super) fn outcome(traveller: &Traveller, decision: Decision) -> Outcome {
    let forwarded = traveller.forwarded.map(|(to, how)| Verdict::Forwarded(to, how));
    let verdict = match decision {
        Decision::Drop => Verdict::Dropped,
        Decision::Reject => Verdict::Rejected,
        Decision::Accept if traveller.translated => Verdict::Delivered(traveller.packet.destination),
        Decision::Accept => forwarded.unwrap_or(Verdict::Untouched),
    };
    let masqueraded = traveller.masqueraded && decision == Decision::Accept;
    Outcome { verdict, masqueraded, probability: traveller.probability }
}

fn branch((traveller, decision): (Traveller, Decision), compared: &Compared) -> Branch {
    let outcome = outcome(&traveller, decision);
    let Traveller { remembered, steps, doubts, assumed, policy, .. } = traveller;
    let (doubts, harmless) = compared.sort(doubts);
    Branch { outcome, remembered, steps, doubts, harmless, assumed, policy }
}
