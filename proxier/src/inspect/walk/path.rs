//! The way through all hooks.
//!
//! In: a ruleset, a packet, the node and its memory of the sender. Out: the [`Trace`] over all hooks the packet passes.
//! Must not know: matches and targets. The order of hooks and tables and the routing between them is the kernel's.

use std::collections::BTreeSet;

use super::chains::{self, Decision, Place, Traveller};
use super::{Branch, ConnState, Memory, Node, Origin, Outcome, Packet, Step, Trace, Verdict};
use crate::family::IpFamily;
use crate::inspect::rules::{Ruleset, Table};
use crate::inspect::services::shares;
use crate::netfilter::ipvs::ServerKey;
use crate::netfilter::nft::held;

/// All rules that packets of one family meet.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// Those of iptables, of either flavour.
    pub iptables: &'a Ruleset,
    /// All other tables of nftables, as far as they were read.
    pub nftables: Option<&'a held::Ruleset>,
}

impl Ruleset {
    /// Every way the packet can go where there are no other rules: see [`Rules::trace`].
    ///
    /// # Errors
    /// As there.
    pub fn trace(&self, packet: &Packet, node: &Node, memory: &Memory) -> Result<Trace, String> {
        Rules { iptables: self, nftables: None }.trace(packet, node, memory)
    }
}

impl Rules<'_> {
    /// Every way the packet can go. The node's memory holds the `recent` lists the sender is on.
    ///
    /// # Errors
    /// When the rules are such as the kernel would not take, or the packet is of the other family.
    pub fn trace(&self, packet: &Packet, node: &Node, memory: &Memory) -> Result<Trace, String> {
        let families = [packet.source.ip(), packet.destination.ip()].map(|ip| IpFamily::of(&ip));
        if families.iter().any(|family| *family != self.iptables.family()) {
            return Err(format!("{packet}: not of the ruleset's family"));
        }
        let mut journey = Journey {
            ruleset: self.iptables,
            node,
            memory,
            under_way: vec![start(packet)],
            ended: vec![],
            missing: BTreeSet::new(),
        };
        match &packet.origin {
            Origin::Host => journey.leave_host()?,
            Origin::Interface(name) => journey.arrive_on(name)?,
        }
        journey.ended.extend(journey.under_way.drain(..).map(|t| (t, Decision::Accept)));
        let asked = journey.ended.iter().flat_map(|(traveller, _)| traveller.asked.iter().cloned()).collect();
        let branches = journey.ended.into_iter().map(branch).collect();
        Ok(Trace { asked, branches, missing: journey.missing, lacks: BTreeSet::new() })
    }
}

struct Journey<'a> {
    ruleset: &'a Ruleset,
    node: &'a Node,
    memory: &'a Memory,
    under_way: Vec<Traveller>,
    ended: Vec<(Traveller, Decision)>,
    missing: BTreeSet<(String, String)>,
}

impl Journey<'_> {
    fn arrive_on(&mut self, name: &str) -> Result<(), String> {
        self.pass(&["raw", "mangle", "nat"], "PREROUTING", name)?;
        let (local, forwarded) = self.split_local();
        self.under_way = forwarded;
        self.pass(&["mangle", "filter"], "FORWARD", name)?;
        self.pass(&["mangle", "nat"], "POSTROUTING", "")?;
        let forwarded = std::mem::replace(&mut self.under_way, local);
        self.pass(&["mangle", "filter"], "INPUT", name)?;
        let served = self.serve("INPUT");
        self.pass(&["nat"], "INPUT", name)?;
        let arrived = std::mem::replace(&mut self.under_way, served);
        self.leave_server()?;
        self.pass(&["mangle", "nat"], "POSTROUTING", "")?;
        self.under_way.extend(forwarded);
        self.under_way.extend(arrived);
        Ok(())
    }

    /// What IPVS sends on passes the hook of what the host itself sends, where its destination was decided already.
    fn leave_server(&mut self) -> Result<(), String> {
        self.pass(&["raw", "mangle", "filter"], "OUTPUT", "")
    }

    /// Has virtual servers take what is sent to them: returned is what leaves for other hosts. What they give to the node
    /// itself stays under way, as does what is sent to none of them.
    fn serve(&mut self, hook: &str) -> Vec<Traveller> {
        let (mut served, held) = (Vec::new(), &self.node.held);
        for traveller in std::mem::take(&mut self.under_way) {
            let Packet { destination, protocol, state, .. } = traveller.packet;
            let key = ServerKey { address: destination, protocol: protocol.number() };
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
                let real = server.reals.get(&address).map(|(real, _)| real.to_string()).unwrap_or_default();
                sent.steps.push(step(&format!("-a {key} {real}"), share));
                (sent.packet.destination, sent.translated) = (address, true);
                sent.probability *= share;
                let here = self.node.is_local(address.ip());
                if here { &mut self.under_way } else { &mut served }.push(sent);
            }
        }
        served
    }

    /// A host's packet to one of its own addresses comes back in through lo. The nat decision was made on the way out
    /// and is not made again.
    fn leave_host(&mut self) -> Result<(), String> {
        self.pass(&["raw", "mangle", "nat"], "OUTPUT", "")?;
        let served = self.serve("OUTPUT");
        self.pass(&["filter"], "OUTPUT", "")?;
        let rest = std::mem::replace(&mut self.under_way, served);
        self.leave_server()?;
        self.under_way.extend(rest);
        self.pass(&["mangle", "nat"], "POSTROUTING", "")?;
        let (local, sent) = self.split_local();
        self.under_way = local;
        self.pass(&["raw", "mangle"], "PREROUTING", "lo")?;
        self.pass(&["mangle", "filter"], "INPUT", "lo")?;
        self.under_way.extend(sent);
        Ok(())
    }

    fn split_local(&mut self) -> (Vec<Traveller>, Vec<Traveller>) {
        let node = self.node;
        self.under_way.drain(..).partition(|t| node.is_local(t.packet.destination.ip()))
    }

    /// Takes everything under way through one hook, table by table; what is not accepted ends there.
    fn pass(&mut self, tables: &[&str], hook: &str, in_interface: &str) -> Result<(), String> {
        for table in tables {
            let Some(chains) = self.ruleset.table(table) else { continue };
            for traveller in std::mem::take(&mut self.under_way) {
                // Only a connection's first packet meets the nat table; the later ones follow what was decided for it.
                if *table == "nat" && (traveller.packet.state != ConnState::New || traveller.untracked) {
                    self.under_way.push(traveller);
                    continue;
                }
                let family = self.ruleset.family();
                let place = Place { family, table, hook, in_interface, node: self.node, memory: self.memory };
                self.walk(chains, &place, traveller)?;
            }
        }
        Ok(())
    }

    fn walk(&mut self, chains: &Table, place: &Place<'_>, traveller: Traveller) -> Result<(), String> {
        let walked = chains::walk(chains, place, traveller)?;
        self.missing.extend(walked.missing);
        for (traveller, decision) in walked.ends {
            match decision {
                Decision::Accept => self.under_way.push(traveller),
                Decision::Drop | Decision::Reject => self.ended.push((traveller, decision)),
            }
        }
        Ok(())
    }
}

fn start(packet: &Packet) -> Traveller {
    Traveller {
        packet: packet.clone(),
        mark: 0,
        translated: false,
        masqueraded: false,
        untracked: false,
        server: None,
        probability: 1.0,
        remembered: BTreeSet::new(),
        asked: BTreeSet::new(),
        steps: vec![],
        doubts: vec![],
    }
}

fn branch((traveller, decision): (Traveller, Decision)) -> Branch {
    let verdict = match decision {
        Decision::Drop => Verdict::Dropped,
        Decision::Reject => Verdict::Rejected,
        Decision::Accept if traveller.translated => Verdict::Delivered(traveller.packet.destination),
        Decision::Accept => Verdict::Untouched,
    };
    let masqueraded = traveller.masqueraded && decision == Decision::Accept;
    let outcome = Outcome { verdict, masqueraded, probability: traveller.probability };
    let Traveller { remembered, steps, doubts, .. } = traveller;
    Branch { outcome, remembered, steps, doubts }
}
