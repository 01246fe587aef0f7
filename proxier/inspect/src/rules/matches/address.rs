//! Matches on addresses and interfaces.

use super::super::args::RuleParser;
use super::super::clauses::{Clause, OptionValues};
use super::super::conditions::{AddressKind, PhysdevMatch, Test};
use super::super::words::mark;

pub(super) fn read(reading: &mut RuleParser, clause: &Clause<'_>) -> Result<(), String> {
    match clause.extension.name {
        "addrtype" => kinds(reading, clause),
        "rpfilter" => {
            reading.add(clause.has("--invert"), Test::ReversePath { loose: clause.has("--loose") });
            Ok(())
        }
        _ => clause.choices.iter().try_for_each(|choice| {
            let test = one(reading, choice)?;
            reading.add(choice.negated, test);
            Ok(())
        }),
    }
}

fn kinds(reading: &mut RuleParser, clause: &Clause<'_>) -> Result<(), String> {
    let limit_in = match (clause.has("--limit-iface-in"), clause.has("--limit-iface-out")) {
        (false, false) => None,
        (limit_in, _) => Some(limit_in),
    };
    for choice in clause.choices.iter().filter(|choice| choice.name.ends_with("-type")) {
        let of_source = choice.name == "--src-type";
        let kinds: Vec<AddressKind> = choice.value().split(',').map(kind).collect::<Result<_, _>>()?;
        let test = match (&kinds[..], limit_in, of_source) {
            ([AddressKind::Local], None, true) => Test::SourceLocal,
            ([AddressKind::Local], None, false) => Test::DestinationLocal,
            _ => Test::AddressKind { of_source, kinds, limit_in },
        };
        reading.add(choice.negated, test);
    }
    Ok(())
}

fn kind(name: &str) -> Result<AddressKind, String> {
    Ok(match name {
        "UNICAST" => AddressKind::Unicast,
        "LOCAL" => AddressKind::Local,
        "BROADCAST" => AddressKind::Broadcast,
        "MULTICAST" => AddressKind::Multicast,
        "UNSPEC" | "ANYCAST" | "BLACKHOLE" | "UNREACHABLE" | "PROHIBIT" | "THROW" | "NAT" | "XRESOLVE" => {
            AddressKind::Other
        }
        _ => return Err(format!("unknown address type {name}")),
    })
}

fn one(reading: &RuleParser, choice: &OptionValues<'_>) -> Result<Test, String> {
    let name = || choice.value().to_owned();
    Ok(match &*choice.name {
        "--src-range" | "--dst-range" => {
            let (from, to) = choice.value().split_once('-').unwrap_or((choice.value(), choice.value()));
            let of_source = choice.name == "--src-range";
            Test::AddressRange { of_source, from: reading.ip(from)?, to: reading.ip(to)? }
        }
        "--src-group" | "--dst-group" => {
            let (value, mask) = mark(choice.value())?;
            Test::DeviceGroup { incoming: choice.name == "--src-group", value, mask }
        }
        "--pkt-type" => Test::PacketKind(match choice.value() {
            "unicast" | "host" => AddressKind::Unicast,
            "broadcast" => AddressKind::Broadcast,
            "multicast" => AddressKind::Multicast,
            other => return Err(format!("unknown packet type {other}")),
        }),
        "--physdev-in" => Test::Bridged(PhysdevMatch::In(name())),
        "--physdev-out" => Test::Bridged(PhysdevMatch::Out(name())),
        "--physdev-is-in" => Test::Bridged(PhysdevMatch::IsIn),
        "--physdev-is-out" => Test::Bridged(PhysdevMatch::IsOut),
        "--physdev-is-bridged" => Test::Bridged(PhysdevMatch::IsBridged),
        other => return Err(format!("unknown option {other}")),
    })
}
