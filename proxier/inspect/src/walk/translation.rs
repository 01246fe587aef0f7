//! Applies the targets of the nat table to a packet.
//!
//! A target yields one packet for each address and port that it may choose; `nf_nat_core.c` defines that choice.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::MOST_CHOICES;
use super::chains::{HookContext, TracedPacket};
use super::{Doubt, Packet};
use crate::rules::{NatRange, Target, bits};

/// Whether a target does NAT.
pub(super) fn is_one(target: &Target) -> bool {
    matches!(
        target,
        Target::Masquerade
            | Target::Dnat(_)
            | Target::DnatRange(_)
            | Target::Snat(_)
            | Target::Redirect(_)
            | Target::Netmap(_)
    )
}

/// All packets that the target may produce; `None` if the kernel refuses the target here.
pub(super) fn translate(
    target: &Target,
    traced: &TracedPacket,
    context: &HookContext<'_>,
) -> Option<Vec<TracedPacket>> {
    let before = matches!(context.hook, "PREROUTING" | "OUTPUT");
    let packet = &traced.packet;
    if context.table != "nat" {
        return None;
    }
    let settled = || TracedPacket { settled: true, ..traced.clone() };
    let sent_to = |to: SocketAddr| {
        let packet = Packet { destination: to, ..packet.clone() };
        TracedPacket { packet, translated: true, ..settled() }
    };
    let sent_from = |from: IpAddr| {
        let source = SocketAddr::new(from, packet.source.port());
        let packet = Packet { source, ..packet.clone() };
        TracedPacket { packet, masqueraded: from != traced.sent.0.ip(), ..settled() }
    };
    Some(match target {
        Target::Dnat(to) if before => vec![sent_to(*to)],
        Target::DnatRange(range) if before => by_range(range, traced, context, &sent_to),
        Target::Redirect(range) if before => {
            let here = here(packet.destination.ip(), context);
            by_range(&NatRange { addresses: Some((here, here)), ..*range }, traced, context, &sent_to)
        }
        Target::Netmap(net) if before => {
            vec![sent_to(SocketAddr::new(mapped(packet.destination.ip(), *net), packet.destination.port()))]
        }
        Target::Masquerade if context.hook == "POSTROUTING" => {
            let to = packet.destination.ip();
            let on = context.out_interface(traced).and_then(|name| context.node.address_on(name, to));
            let address = on.or_else(|| context.node.masquerade_address(packet.source.ip()));
            vec![TracedPacket { masqueraded: true, ..sent_from(address.unwrap_or(packet.source.ip())) }]
        }
        Target::Snat(range) if !before => match range.addresses {
            // A source address within the range is kept.
            Some((from, to)) if (bits(from)..=bits(to)).contains(&bits(packet.source.ip())) => {
                vec![sent_from(packet.source.ip())]
            }
            Some((from, _)) => vec![sent_from(from)],
            None => vec![sent_from(packet.source.ip())],
        },
        Target::Netmap(net) if !before => vec![sent_from(mapped(packet.source.ip(), *net))],
        _ => return None,
    })
}

/// The node's address that REDIRECT chooses.
fn here(like: IpAddr, context: &HookContext<'_>) -> IpAddr {
    let on = || context.node.address_on(context.in_interface, like);
    match context.hook {
        "OUTPUT" => context.family.localhost(),
        _ if context.in_interface == "lo" => context.family.localhost(),
        _ => on().or_else(|| context.node.masquerade_address(like)).unwrap_or(like),
    }
}

fn mapped(address: IpAddr, net: IpNet) -> IpAddr {
    let (address, host) = (bits(address), bits(net.hostmask()));
    ip(bits(net.network()) | (address & host), net.addr().is_ipv4())
}

fn ip(number: u128, v4: bool) -> IpAddr {
    match u32::try_from(number) {
        Ok(number) if v4 => IpAddr::from(number.to_be_bytes()),
        _ => IpAddr::from(number.to_be_bytes()),
    }
}

/// Each address of a range with its probability. A hash of the client's address selects it, so over many clients all are
/// equally likely.
fn by_range(
    range: &NatRange,
    traced: &TracedPacket,
    context: &HookContext<'_>,
    sent_to: &dyn Fn(SocketAddr) -> TracedPacket,
) -> Vec<TracedPacket> {
    let to = traced.packet.destination;
    let (first, last) = range.addresses.unwrap_or((to.ip(), to.ip()));
    let (count_of_addresses, ports) =
        (bits(last).saturating_sub(bits(first)).saturating_add(1), ports(range, to.port()));
    let count = count_of_addresses.saturating_mul(u128::from(ports.1 - ports.0) + 1);
    if count > u128::from(MOST_CHOICES) {
        let mut one = sent_to(SocketAddr::new(first, ports.0));
        let why = format!("which of {count} addresses and ports it gets is not known");
        one.doubt(Doubt::new(format!("{} {}", context.table, context.hook), format!("{first}:{}", ports.0), why));
        return vec![one];
    }
    let mut all = Vec::new();
    for at in 0..count_of_addresses {
        for port in ports.0..=ports.1 {
            let mut one = sent_to(SocketAddr::new(ip(bits(first) + at, first.is_ipv4()), port));
            #[allow(clippy::cast_precision_loss)] // some thousand at most
            let share = 1.0 / count as f64;
            one.probability *= share;
            all.push(one);
        }
    }
    all
}

/// The range of ports that a packet to `port` may get.
fn ports(range: &NatRange, port: u16) -> (u16, u16) {
    let Some((from, to)) = range.ports else { return (port, port) };
    let size = to.saturating_sub(from).saturating_add(1);
    match range.base {
        _ if range.random => (from, to),
        Some(base) => {
            let port = from.saturating_add(port.wrapping_sub(base) % size.max(1));
            (port, port)
        }
        // A port within the range is kept; otherwise the kernel starts with the first.
        None if (from..=to).contains(&port) => (port, port),
        None => (from, from),
    }
}
