//! The errors that tell senders of refused packets, on their way out of the node.
//!
//! An ICMP error or a TCP reset passes the hooks of the node's own packets. Conntrack takes it as related to the refused
//! packet (`nf_ct_attach`), so no NAT rule meets it. If it does not get out, the sender waits as if the packet were dropped.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use netfilter::nft::Hook;

use super::chains::{Decision, TracedPacket};
use super::path::{HookPass, PathWalk, start};
use super::{Assumption, ConnState, Doubt, Node, Origin, Packet, Step};

/// The ICMP types "destination unreachable" and "time exceeded", for IPv4 and IPv6.
const UNREACHABLE: (u8, u8) = (3, 1);
const EXCEEDED: (u8, u8) = (11, 3);

/// What is assumed of each ICMP error.
const LIMITS: &str = "the kernel's limits of ICMP errors (net.ipv4.icmp_ratelimit, icmp_msgs_per_sec) are not reached";

/// Words of rules that refuse with a TCP reset.
const RESETS: [&str; 3] = ["tcp-reset", "tcp-rst", "tcp reset"];

/// What becomes of an error.
#[derive(Clone)]
enum ErrorFate {
    Sent,
    Stopped(Step),
    Unknown(String),
}

impl PathWalk<'_> {
    /// Follows the errors of all rejected packets. Where one does not get out, the packet counts as dropped.
    ///
    /// # Errors
    /// As a walk.
    pub(super) fn follow_errors(&mut self) -> Result<(), String> {
        let mut known: BTreeMap<(SocketAddr, SocketAddr, Option<u8>), ErrorFate> = BTreeMap::new();
        let mut ended = std::mem::take(&mut self.ended);
        for (traced, decision) in &mut ended {
            let Some(error) = error_of(traced, *decision, self.node) else { continue };
            let key = (error.packet.source, error.packet.destination, error.error);
            let fate = match known.get(&key) {
                Some(fate) => fate.clone(),
                None => self.fate(error)?,
            };
            let step = traced.steps.last().cloned();
            let (hook, rule) = step.map_or_else(Default::default, |step| (step.hook, step.rule));
            match &fate {
                ErrorFate::Sent if key.2.is_some() && !self.node.is_local(key.1.ip()) => {
                    let otherwise = Vec::new();
                    traced.assumed.push(Assumption { hook, rule, what: LIMITS.to_owned(), otherwise });
                }
                ErrorFate::Sent => {}
                ErrorFate::Stopped(step) => {
                    traced.silenced = Some(step.clone());
                    *decision = Decision::Drop;
                }
                ErrorFate::Unknown(rule) => {
                    let why = "whether the error gets out that tells the sender is not known";
                    traced.doubt(Doubt::new(hook, rule, why));
                }
            }
            known.insert(key, fate);
        }
        self.ended = ended;
        Ok(())
    }

    /// Walks an error through the hooks of the node's own packets.
    fn fate(&mut self, error: TracedPacket) -> Result<ErrorFate, String> {
        let stays = error.out.as_deref() == Some("lo");
        self.under_way = vec![error];
        self.pass(HookPass::again(Hook::Output, ""))?;
        self.pass(HookPass::again(Hook::Postrouting, ""))?;
        if stays {
            self.pass(HookPass::again(Hook::Prerouting, "lo"))?;
            self.pass(HookPass::again(Hook::Input, "lo"))?;
        }
        let sent = std::mem::take(&mut self.under_way);
        let stopped = std::mem::take(&mut self.ended);
        let doubted = sent.iter().chain(stopped.iter().map(|(traced, _)| traced)).flat_map(|traced| &traced.doubts);
        let doubted = doubted.map(|forked| forked.doubt.rule.clone()).next();
        let real = |traced: &TracedPacket| traced.supposed.is_empty();
        let is_sent = sent.iter().any(real);
        let by = stopped.iter().find(|(traced, _)| real(traced)).map(|(traced, _)| stopper(traced));
        Ok(match (by, doubted) {
            // Undecidable rules matter only where any of the ways ends.
            (Some(step), None) if !is_sent => ErrorFate::Stopped(step),
            (Some(step), _) => ErrorFate::Unknown(step.rule),
            (None, Some(rule)) if !stopped.is_empty() => ErrorFate::Unknown(rule),
            (None, _) => ErrorFate::Sent,
        })
    }
}

/// The rule that dropped an error, or the policy that did.
fn stopper(traced: &TracedPacket) -> Step {
    let last = traced.steps.last().cloned();
    match &traced.policy {
        Some(policy) => Step::of(policy.clone(), "policy DROP", 1.0),
        None => last.unwrap_or_else(|| Step::of("OUTPUT".to_owned(), "policy drop", 1.0)),
    }
}

/// The error about a packet, as it enters the hook OUTPUT; `None`: the sender gets none, or gets it without a packet.
fn error_of(traced: &TracedPacket, decision: Decision, node: &Node) -> Option<TracedPacket> {
    let Packet { source, destination, protocol, .. } = traced.packet;
    // A process of this node gets an error from its system call where there is no route.
    if decision != Decision::Reject || (traced.unrouted.is_some() && traced.packet.origin == Origin::Host) {
        return None;
    }
    let is_reset = traced.steps.last().is_some_and(|step| RESETS.iter().any(|word| step.rule.contains(word)));
    let of_family = |(v4, v6): (u8, u8)| if source.is_ipv4() { v4 } else { v6 };
    let kind = if traced.hops.is_used_up() { EXCEEDED } else { UNREACHABLE };
    let out = match node.is_local(source.ip()) {
        true => Some("lo".to_owned()),
        false => node.out_interface(source.ip()).map(str::to_owned),
    };
    let own = |ip: IpAddr| {
        let on = out.as_deref().and_then(|name| node.address_on(name, ip));
        on.or_else(|| node.masquerade_address(ip)).unwrap_or(ip)
    };
    // An error comes from the address that the packet was sent to, if that is this node's.
    let from = if is_reset || node.is_local(destination.ip()) { destination.ip() } else { own(source.ip()) };
    let state = if traced.untracked { ConnState::Invalid } else { ConnState::Related };
    let from = SocketAddr::new(from, destination.port());
    let packet = Packet { source: from, destination: source, protocol, origin: Origin::Host, state };
    let error = (!is_reset).then(|| of_family(kind));
    Some(TracedPacket { out, error, connection_mark: traced.connection_mark, ..start(&packet) })
}
