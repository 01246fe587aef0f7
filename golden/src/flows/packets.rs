//! Samples the outcomes of a flow with real packets on a node.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use proxier::model::Protocol;
use proxier_inspect::walk::{ConnState, Origin, Outcome, Packet, Verdict};
use serde_json::Value;

use super::check::{Answer, Question};
use super::machine;
use crate::probe::{self, Entry, Node, Probe, Stage, Transport, enough};

/// The number of packets sent at once.
const ROUND: usize = 32;
/// The attempts to get a given endpoint for a client without affinity.
const TRIES: usize = 200;

/// Sends the packets of questions to a node. Established connections are added to its conntrack table first.
#[derive(Debug)]
pub struct PacketSampler<'a> {
    node: &'a Node,
    /// The commands that clear session affinity.
    memory: String,
    number: u32,
}

/// Outcomes with the number of packets, and of those whose source address or port was translated.
type OutcomeCounts = BTreeMap<Verdict, (usize, usize)>;

impl<'a> PacketSampler<'a> {
    /// A sampler for the node's current rules.
    #[must_use]
    pub fn new(node: &'a Node) -> Self {
        Self { node, memory: node.memory(), number: 0 }
    }

    /// The outcome of a packet, with equal shares assumed.
    ///
    /// # Errors
    /// If packets cannot test it, or the affinity cannot be set up.
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
                if u64::from(ago) < timeout { self.send(entry, packet, ROUND) } else { self.sampled(entry, packet)? }
            }
        };
        Ok(answer(&found))
    }

    /// Samples until one more outcome would have been observed.
    fn sampled(&mut self, entry: Entry, packet: &Packet) -> Result<OutcomeCounts, String> {
        self.forget();
        let (mut found, mut samples) = (OutcomeCounts::new(), 0);
        while samples < enough(found.len() + 1) {
            add(&mut found, self.send(entry, packet, ROUND));
            samples += ROUND;
        }
        // A client with affinity has one outcome: other clients are used, or the affinity is cleared each time.
        if found.len() == 1 && self.timeout()?.is_some() {
            let clients = machine::alike(packet.source.ip());
            samples = 0;
            while samples < enough(found.len() + 1) {
                self.forget();
                add(&mut found, self.send_as(entry, packet, &clients));
                samples += clients.len();
            }
        }
        Ok(found)
    }

    /// Sets up affinity of the sender to an endpoint; returns its timeout in seconds.
    fn remember(&mut self, entry: Entry, packet: &Packet, endpoint: SocketAddr) -> Result<u64, String> {
        for _ in 0..TRIES {
            self.forget();
            if self.send(entry, packet, 1).contains_key(&Verdict::Delivered(endpoint)) {
                let timeout = self.timeout()?;
                return timeout.ok_or_else(|| format!("nothing remembers that this sender was sent to {endpoint}"));
            }
        }
        Err(format!("this sender is not sent to {endpoint}"))
    }

    fn send(&mut self, entry: Entry, packet: &Packet, times: usize) -> OutcomeCounts {
        self.send_as(entry, packet, &vec![packet.source.ip(); times])
    }

    fn send_as(&mut self, entry: Entry, packet: &Packet, clients: &[IpAddr]) -> OutcomeCounts {
        let probes: Vec<(Entry, Probe)> = clients.iter().map(|client| (entry, self.probe(packet, *client))).collect();
        for (_, probe) in probes.iter().filter(|(_, probe)| probe.stage == Stage::Later) {
            self.node.know(probe.from, probe.to);
        }
        let mut found = OutcomeCounts::new();
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
        // Ports wrap around after 60,000 probes, when no earlier connection may be left.
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
                ConnState::Established | ConnState::EstablishedDnat => Stage::Later,
                _ => Stage::First,
            },
        }
    }

    fn forget(&self) {
        self.node.forget_clients(&self.memory);
    }

    /// The timeout of the current affinity in seconds; `None` without affinity.
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

/// The entry of a flow table's packet to the node.
///
/// # Errors
/// If the node does not have the interface.
pub fn entry(origin: &Origin) -> Result<Entry, String> {
    match origin {
        Origin::Host => Ok(Entry::Host),
        Origin::Interface(name) => match &**name {
            "eth0" => Ok(Entry::Network),
            "cbr0" => Ok(Entry::Pods),
            "cbr01" => Ok(Entry::Beside),
            // Packets on loopback are sent by the node.
            "lo" => Ok(Entry::Host),
            other => Err(format!("the node has no interface {other}")),
        },
    }
}

fn add(found: &mut OutcomeCounts, more: OutcomeCounts) {
    for (verdict, (all, other)) in more {
        let sum = found.entry(verdict).or_default();
        *sum = (sum.0 + all, sum.1 + other);
    }
}

/// A random source port may equal the sender's by chance, so the majority decides.
fn answer(found: &OutcomeCounts) -> Answer {
    let probability = 1.0 / f64::from(u32::try_from(found.len()).unwrap_or(u32::MAX));
    let outcomes = found.iter().map(|(verdict, (all, other))| Outcome {
        verdict: *verdict,
        masqueraded: other * 2 > *all,
        probability,
    });
    let counts = found.iter().map(|(verdict, (all, other))| format!("{all} packets: {verdict} ({other} masqueraded)"));
    Answer { outcomes: outcomes.collect(), explanation: counts.collect::<Vec<_>>().join("\n") }
}
