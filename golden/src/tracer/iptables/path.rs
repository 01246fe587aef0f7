//! In: a ruleset, a packet, the node and its memory of the sender. Out: the `Trace` over all hooks the packet passes.
//! Must not know matches and targets. The order of hooks and the routing between them is the kernel's.

use super::rules::{Family, Ruleset, Table};
use super::walk::{self, Decision, Place, Traveller};
use crate::tracer::{Branch, ConnState, Memory, Node, Origin, Outcome, Packet, Trace, Verdict};

impl Ruleset {
    /// Every way the packet can go. The node's memory holds the `recent` lists the sender is on.
    ///
    /// # Errors
    /// When the rules are such as the kernel would not take, or the packet is of the other family.
    pub fn trace(&self, packet: &Packet, node: &Node, memory: &Memory) -> Result<Trace, String> {
        let v4 = packet.source.is_ipv4();
        if v4 != packet.destination.is_ipv4() || v4 != (self.family == Family::V4) {
            return Err(format!("{packet}: not of the ruleset's family"));
        }
        let mut journey = Journey { ruleset: self, node, memory, under_way: vec![start(packet)], ended: vec![] };
        match &packet.origin {
            Origin::Host => journey.leave_host()?,
            Origin::Interface(name) => journey.arrive_on(name)?,
        }
        journey.ended.extend(journey.under_way.drain(..).map(|t| (t, Decision::Accept)));
        Ok(Trace { branches: journey.ended.into_iter().map(branch).collect() })
    }
}

struct Journey<'a> {
    ruleset: &'a Ruleset,
    node: &'a Node,
    memory: &'a Memory,
    under_way: Vec<Traveller>,
    ended: Vec<(Traveller, Decision)>,
}

impl Journey<'_> {
    fn arrive_on(&mut self, name: &str) -> Result<(), String> {
        self.pass("nat", "PREROUTING", name)?;
        let (local, forwarded) = self.split_local();
        self.under_way = forwarded;
        self.pass("filter", "FORWARD", name)?;
        self.pass("nat", "POSTROUTING", "")?;
        let sent = std::mem::replace(&mut self.under_way, local);
        self.pass("filter", "INPUT", name)?;
        self.under_way.extend(sent);
        Ok(())
    }

    /// A host's packet to one of its own addresses comes back in through lo. The nat decision was made on the way out
    /// and is not made again, so only the filter table sees the second half.
    fn leave_host(&mut self) -> Result<(), String> {
        self.pass("nat", "OUTPUT", "")?;
        self.pass("filter", "OUTPUT", "")?;
        self.pass("nat", "POSTROUTING", "")?;
        let (local, sent) = self.split_local();
        self.under_way = local;
        self.pass("filter", "INPUT", "lo")?;
        self.under_way.extend(sent);
        Ok(())
    }

    fn split_local(&mut self) -> (Vec<Traveller>, Vec<Traveller>) {
        let node = self.node;
        self.under_way.drain(..).partition(|t| node.is_local(t.packet.destination.ip()))
    }

    /// Takes everything under way through one hook; what is not accepted ends there.
    fn pass(&mut self, table: &str, hook: &str, in_interface: &str) -> Result<(), String> {
        let Some(chains) = self.ruleset.tables.get(table) else { return Ok(()) };
        for traveller in std::mem::take(&mut self.under_way) {
            // Only a connection's first packet meets the nat table; the later ones follow what was decided for it.
            if table == "nat" && traveller.packet.state != ConnState::New {
                self.under_way.push(traveller);
                continue;
            }
            let place = Place { table, hook, in_interface, node: self.node, memory: self.memory };
            self.walk(chains, &place, traveller)?;
        }
        Ok(())
    }

    fn walk(&mut self, chains: &Table, place: &Place<'_>, traveller: Traveller) -> Result<(), String> {
        for (traveller, decision) in walk::walk(chains, place, traveller)? {
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
        probability: 1.0,
        remembered: Default::default(),
        steps: vec![],
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
    Branch { outcome, remembered: traveller.remembered, steps: traveller.steps }
}
