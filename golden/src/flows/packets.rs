//! In: a node with rules in its kernel, a flow table's question. Out: where real packets of that flow go, sampled over the
//! random choices. Must not know what the table expects, or which mode the rules are of.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use proxier::model::Protocol;
use proxier_inspect::walk::{ConnState, Origin, Outcome, Packet, Verdict};
use serde_json::Value;

use super::check::{Answer, Question};
use super::machine;
use crate::probe::{self, Entry, Node, Probe, Stage, Transport, enough};

/// Packets at once.
const ROUND: usize = 32;
/// So often a forgotten client is sent somewhere until it is sent to one endpoint of at most a few.
const TRIES: usize = 200;

/// Asks a node, with packets. A connection that was answered is one that the node is made to know.
#[derive(Debug)]
pub struct Asker<'a> {
    node: &'a Node,
    /// the commands that empty what the rules remember clients in
    memory: String,
    number: u32,
}

/// Ends, how many packets had each, and how many of them came from another address or port than their sender's.
type Found = BTreeMap<Verdict, (usize, usize)>;

impl<'a> Asker<'a> {
    /// For the rules that the node has now.
    #[must_use]
    pub fn new(node: &'a Node) -> Self {
        Self { node, memory: node.memory(), number: 0 }
    }

    /// Where the packet goes. The shares of the ends are not measured but taken to be equal.
    ///
    /// # Errors
    /// When it cannot be asked with packets, or a sender that should be remembered is not.
    pub fn answer(&mut self, question: Question<'_>) -> Result<Answer, String> {
        let Question { packet, remembers, .. } = question;
        let entry = entry(&packet.origin)?;
        if packet.state == ConnState::Related {
            return Err("errors about other packets cannot be sent".to_owned());
        }
        let found = match remembers {
            None => self.sampled(entry, packet)?,
            Some((endpoint, ago)) => {
                let timeout = self.remember(entry, packet, endpoint)?;
                if u64::from(ago) < timeout { self.ask(entry, packet, ROUND) } else { self.sampled(entry, packet)? }
            }
        };
        Ok(answer(&found))
    }

    /// Asks until one end more than was seen would have shown.
    fn sampled(&mut self, entry: Entry, packet: &Packet) -> Result<Found, String> {
        self.forget();
        let (mut found, mut samples) = (Found::new(), 0);
        while samples < enough(found.len() + 1) {
            add(&mut found, self.ask(entry, packet, ROUND));
            samples += ROUND;
        }
        // A client that is remembered chooses once: then others like it choose, or it is forgotten before each choice.
        if found.len() == 1 && self.timeout()?.is_some() {
            let clients = machine::alike(packet.source.ip());
            samples = 0;
            while samples < enough(found.len() + 1) {
                self.forget();
                add(&mut found, self.ask_as(entry, packet, &clients));
                samples += clients.len();
            }
        }
        Ok(found)
    }

    /// Makes the rules remember that the packet's sender was sent to the endpoint; for how many seconds they do.
    fn remember(&mut self, entry: Entry, packet: &Packet, endpoint: SocketAddr) -> Result<u64, String> {
        for _ in 0..TRIES {
            self.forget();
            if self.ask(entry, packet, 1).contains_key(&Verdict::Delivered(endpoint)) {
                let timeout = self.timeout()?;
                return timeout.ok_or_else(|| format!("nothing remembers that this sender was sent to {endpoint}"));
            }
        }
        Err(format!("this sender is not sent to {endpoint}"))
    }

    fn ask(&mut self, entry: Entry, packet: &Packet, times: usize) -> Found {
        self.ask_as(entry, packet, &vec![packet.source.ip(); times])
    }

    fn ask_as(&mut self, entry: Entry, packet: &Packet, clients: &[IpAddr]) -> Found {
        let probes: Vec<(Entry, Probe)> = clients.iter().map(|client| (entry, self.probe(packet, *client))).collect();
        for (_, probe) in probes.iter().filter(|(_, probe)| probe.stage == Stage::Later) {
            self.node.know(probe.from, probe.to);
        }
        let mut found = Found::new();
        for (outcome, replaced) in self.node.send_and_compare(&probes) {
            let verdict = match outcome {
                probe::Outcome::Arrived { at, .. } if at == packet.destination => Verdict::Untouched,
                probe::Outcome::Arrived { at, .. } => Verdict::Delivered(at),
                probe::Outcome::Refused(_) => Verdict::Rejected,
                probe::Outcome::Dropped => Verdict::Dropped,
            };
            let (all, other) = found.entry(verdict).or_default();
            (*all, *other) = (*all + 1, *other + usize::from(replaced));
        }
        found
    }

    fn probe(&mut self, packet: &Packet, client: IpAddr) -> Probe {
        self.number += 1;
        // Ports come round after 60,000 probes: then no connection of before may be left.
        if self.number.is_multiple_of(60_000) {
            self.node.forget();
        }
        let port = u16::try_from(1024 + self.number % 60_000).unwrap_or_default();
        let transport = match packet.protocol {
            Protocol::Tcp => Transport::Tcp,
            Protocol::Udp => Transport::Udp,
            Protocol::Sctp => Transport::Sctp,
        };
        Probe {
            from: SocketAddr::new(client, port),
            to: packet.destination,
            transport,
            tag: self.number,
            stage: match packet.state {
                ConnState::Invalid => Stage::Nowhere,
                ConnState::Established => Stage::Later,
                _ => Stage::First,
            },
        }
    }

    fn forget(&self) {
        self.node.forget_clients(&self.memory);
    }

    /// For how many seconds the rules remember whom they remember now; `None` if that is nobody.
    fn timeout(&self) -> Result<Option<u64>, String> {
        if self.memory.is_empty() {
            return Ok(None);
        }
        let listed: Value = serde_json::from_str(&self.node.netns().run("nft -j list ruleset"))
            .map_err(|error| format!("nft -j list ruleset: {error}"))?;
        let objects = listed["nftables"].as_array().into_iter().flatten();
        let sets = objects.filter_map(|object| object.get("set"));
        let timeouts = sets.flat_map(|set| {
            let elements = set["elem"].as_array().into_iter().flatten();
            elements.filter_map(|element| element["elem"]["timeout"].as_u64().or_else(|| set["timeout"].as_u64()))
        });
        Ok(timeouts.max())
    }
}

/// Where a packet of a flow table enters the node.
///
/// # Errors
/// If the node has no such interface.
pub fn entry(origin: &Origin) -> Result<Entry, String> {
    match origin {
        Origin::Host => Ok(Entry::Host),
        Origin::Interface(name) => match &**name {
            "eth0" => Ok(Entry::Network),
            "cbr0" => Ok(Entry::Pods),
            "cbr01" => Ok(Entry::Beside),
            // Whatever comes in there was sent by the node.
            "lo" => Ok(Entry::Host),
            other => Err(format!("the node has no interface {other}")),
        },
    }
}

fn add(found: &mut Found, more: Found) {
    for (verdict, (all, other)) in more {
        let sum = found.entry(verdict).or_default();
        *sum = (sum.0 + all, sum.1 + other);
    }
}

/// A random source port may be the sender's own by chance: most packets tell.
fn answer(found: &Found) -> Answer {
    let probability = 1.0 / f64::from(u32::try_from(found.len()).unwrap_or(u32::MAX));
    let outcomes = found.iter().map(|(verdict, (all, other))| Outcome {
        verdict: *verdict,
        masqueraded: other * 2 > *all,
        probability,
    });
    let counts = found.iter().map(|(verdict, (all, other))| format!("{all} packets: {verdict} ({other} masqueraded)"));
    Answer { outcomes: outcomes.collect(), explanation: counts.collect::<Vec<_>>().join("\n") }
}
