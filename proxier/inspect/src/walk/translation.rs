//! What targets of the nat table make of a packet.
//!
//! In: a target, a packet, where it is. Out: the packet with its new address, once for each that it may get. Must not
//! know: which packets meet the target. Which address and port of a range it is, the kernel says (`nf_nat_core.c`).

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::MOST_CHOICES;
use super::chains::{Place, Traveller};
use super::{Doubt, Packet};
use crate::rules::{Range, Target, bits};

/// Whether a target translates.
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

/// Every packet that this one can become; `None` where the kernel takes no such target.
pub(super) fn translate(target: &Target, traveller: &Traveller, place: &Place<'_>) -> Option<Vec<Traveller>> {
    let before = matches!(place.hook, "PREROUTING" | "OUTPUT");
    let packet = &traveller.packet;
    if place.table != "nat" {
        return None;
    }
    let settled = || Traveller { settled: true, ..traveller.clone() };
    let sent_to = |to: SocketAddr| {
        let packet = Packet { destination: to, ..packet.clone() };
        Traveller { packet, translated: true, ..settled() }
    };
    let sent_from = |from: IpAddr| {
        let source = SocketAddr::new(from, packet.source.port());
        let packet = Packet { source, ..packet.clone() };
        Traveller { packet, masqueraded: from != traveller.sent.0.ip(), ..settled() }
    };
    Some(match target {
        Target::Dnat(to) if before => vec![sent_to(*to)],
        Target::DnatRange(range) if before => by_range(range, traveller, place, &sent_to),
        Target::Redirect(range) if before => {
            let here = here(packet.destination.ip(), place);
            by_range(&Range { addresses: Some((here, here)), ..*range }, traveller, place, &sent_to)
        }
        Target::Netmap(net) if before => {
            vec![sent_to(SocketAddr::new(mapped(packet.destination.ip(), *net), packet.destination.port()))]
        }
        Target::Masquerade if place.hook == "POSTROUTING" => {
            let to = packet.destination.ip();
            let on = place.out_interface(to).and_then(|name| place.node.address_on(name, to));
            let address = on.or_else(|| place.node.masquerade_address(packet.source.ip()));
            vec![Traveller { masqueraded: true, ..sent_from(address.unwrap_or(packet.source.ip())) }]
        }
        Target::Snat(range) if !before => match range.addresses {
            // A sender that has an address of the range keeps it.
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

/// The address of this node that REDIRECT takes.
fn here(like: IpAddr, place: &Place<'_>) -> IpAddr {
    let on = || place.node.address_on(place.in_interface, like);
    match place.hook {
        "OUTPUT" => place.family.localhost(),
        _ if place.in_interface == "lo" => place.family.localhost(),
        _ => on().or_else(|| place.node.masquerade_address(like)).unwrap_or(like),
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

/// Each client gets one address of a range, whichever its own address says; of many, all are as likely.
fn by_range(
    range: &Range,
    traveller: &Traveller,
    place: &Place<'_>,
    sent_to: &dyn Fn(SocketAddr) -> Traveller,
) -> Vec<Traveller> {
    let to = traveller.packet.destination;
    let (first, last) = range.addresses.unwrap_or((to.ip(), to.ip()));
    let (count_of_addresses, ports) =
        (bits(last).saturating_sub(bits(first)).saturating_add(1), ports(range, to.port()));
    let count = count_of_addresses.saturating_mul(u128::from(ports.1 - ports.0) + 1);
    if count > u128::from(MOST_CHOICES) {
        let mut one = sent_to(SocketAddr::new(first, ports.0));
        let why = format!("which of {count} addresses and ports it gets is not known");
        one.doubt(Doubt::new(format!("{} {}", place.table, place.hook), format!("{first}:{}", ports.0), why));
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

/// The ports that a packet to `port` may get, from and to.
fn ports(range: &Range, port: u16) -> (u16, u16) {
    let Some((from, to)) = range.ports else { return (port, port) };
    let size = to.saturating_sub(from).saturating_add(1);
    match range.base {
        _ if range.random => (from, to),
        Some(base) => {
            let port = from.saturating_add(port.wrapping_sub(base) % size.max(1));
            (port, port)
        }
        // A port of the range stays; of another one, the kernel begins with the first.
        None if (from..=to).contains(&port) => (port, port),
        None => (from, from),
    }
}
