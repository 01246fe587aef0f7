//! Parses a rule's target with its options.

use std::net::{IpAddr, SocketAddr};

use super::actions::{CopyMark, HopChange, NatRange, SetMark, Target};
use super::args::RuleParser;
use super::clauses::{Clause, OptionValues};
use super::conditions::Ports;
use super::language::Support;
use super::matches::class;
use super::words::{any_number, mark, number};

/// Parses a target.
pub(super) fn read(reading: &mut RuleParser, clause: &Clause<'_>) -> Result<Target, String> {
    let name = clause.extension.name;
    let lacks = || format!("target {name} lacks its option");
    let the_one = || clause.choices.first().ok_or_else(lacks);
    Ok(match name {
        "ACCEPT" => Target::Accept,
        "DROP" => Target::Drop,
        "RETURN" => Target::Return,
        "REJECT" => reject(clause)?,
        "MASQUERADE" => Target::Masquerade,
        "NOTRACK" => Target::NoTrack,
        "CT" if clause.has("--notrack") => Target::NoTrack,
        "CT" if clause.choices.iter().any(|choice| choice.name.starts_with("--zone") && choice.value() != "0") => {
            Target::Zone
        }
        "DNAT" => destination(reading, clause)?.ok_or_else(lacks)?,
        "SNAT" => {
            let to = clause.find("--to-source").ok_or_else(lacks)?;
            Target::Snat(range(reading, to, clause)?)
        }
        "REDIRECT" => {
            let ports = clause.find("--to-ports").map(port_range).transpose()?;
            Target::Redirect(NatRange { addresses: None, ports, base: None, random: is_random(clause) })
        }
        "NETMAP" => Target::Netmap(reading.net(clause.find("--to").ok_or_else(lacks)?)?),
        "MARK" => {
            let SetMark { value, mask } = set_mark(the_one()?)?;
            Target::Mark { value, mask }
        }
        "CONNMARK" => connection_mark(clause)?,
        "HMARK" => Target::HashMark,
        "TOS" | "DSCP" | "ECN" => type_of_service(clause)?,
        "TTL" | "HL" => hop_limit(the_one()?)?,
        "SET" => {
            let named = clause.choices.iter().filter(|choice| choice.name.ends_with("-set"));
            if clause.has("--map-set") {
                reading.doubt(name, "marks that sets give to packets are not followed");
            }
            Target::ChangeSets(named.map(|choice| choice.value().to_owned()).collect())
        }
        "NFQUEUE" => queue(clause)?,
        name if clause.extension.support == Support::Doubt => Target::Unfollowed(name.to_owned()),
        passive => Target::Passive(passive.to_owned()),
    })
}

/// Parses `TOS`, `DSCP` and `ECN`, which change bits of one field.
fn type_of_service(clause: &Clause<'_>) -> Result<Target, String> {
    let name = clause.extension.name;
    if name == "ECN" {
        return Ok(match clause.find("--ecn-ip-ect") {
            Some(text) => Target::TypeOfService { value: number("--ecn-ip-ect", text)?, mask: 3 },
            None => Target::Passive(name.to_owned()),
        });
    }
    let choice = clause.choices.first().ok_or_else(|| format!("target {name} lacks its option"))?;
    if name == "TOS" {
        let SetMark { value, mask } = set_mark(choice)?;
        let byte = |number: u32| u8::try_from(number & 0xff).unwrap_or(u8::MAX);
        return Ok(Target::TypeOfService { value: byte(value), mask: byte(mask) });
    }
    let value = match &*choice.name {
        "--set-dscp-class" => class(choice.value())?,
        _ => u8::try_from(any_number(choice.value())?).map_err(|error| error.to_string())?,
    };
    Ok(Target::TypeOfService { value: value << 2, mask: 0xfc })
}

/// Parses `TTL` and `HL`.
fn hop_limit(choice: &OptionValues<'_>) -> Result<Target, String> {
    let by = u8::try_from(any_number(choice.value())?).map_err(|error| error.to_string())?;
    Ok(Target::HopLimit(match choice.name.rsplit('-').next() {
        Some("set") => HopChange::Set(by),
        Some("inc") => HopChange::Increase(by),
        _ => HopChange::Decrease(by),
    }))
}

fn reject(clause: &Clause<'_>) -> Result<Target, String> {
    const KNOWN: [&str; 23] = [
        "icmp-net-unreachable",
        "icmp-host-unreachable",
        "icmp-proto-unreachable",
        "icmp-port-unreachable",
        "icmp-net-prohibited",
        "icmp-host-prohibited",
        "icmp-admin-prohibited",
        "icmp6-no-route",
        "no-route",
        "icmp6-adm-prohibited",
        "adm-prohibited",
        "icmp6-addr-unreachable",
        "addr-unreach",
        "icmp6-port-unreachable",
        "port-unreach",
        "icmp6-policy-fail",
        "policy-fail",
        "icmp6-reject-route",
        "reject-route",
        "tcp-reset",
        "tcp-rst",
        "host-unreach",
        "net-unreach",
    ];
    match clause.find("--reject-with") {
        Some(with) if !KNOWN.contains(&with) => Err(format!("unknown way to reject {with}")),
        _ => Ok(Target::Reject),
    }
}

fn is_random(clause: &Clause<'_>) -> bool {
    clause.has("--random") || clause.has("--random-fully")
}

/// One address and one port, or anything else that translates.
fn destination(reading: &RuleParser, clause: &Clause<'_>) -> Result<Option<Target>, String> {
    let Some(to) = clause.find("--to-destination") else { return Ok(None) };
    if let Ok(to) = to.parse::<SocketAddr>() {
        reading.ip(&to.ip().to_string())?;
        return Ok(Some(Target::Dnat(to)));
    }
    let range = range(reading, to, clause)?;
    Ok(Some(match range {
        NatRange { addresses: Some((ip, last)), ports: Some((port, end)), base: None, .. }
            if ip == last && port == end =>
        {
            Target::Dnat(SocketAddr::new(ip, port))
        }
        range => Target::DnatRange(range),
    }))
}

/// `ADDRESS[-ADDRESS][:PORT[-PORT][/PORT]]`, with brackets about addresses of IPv6 that a port follows.
fn range(reading: &RuleParser, text: &str, clause: &Clause<'_>) -> Result<NatRange, String> {
    let (addresses, ports) = match text.strip_prefix('[') {
        Some(rest) => {
            let (addresses, rest) = rest.split_once(']').ok_or_else(|| format!("{text} is no address"))?;
            // Each end of a range may have its own brackets.
            match rest.strip_prefix("-[") {
                Some(last) => {
                    let (last, rest) = last.split_once(']').ok_or_else(|| format!("{text} is no address"))?;
                    (format!("{addresses}-{last}"), rest.strip_prefix(':'))
                }
                None => (addresses.to_owned(), rest.strip_prefix(':')),
            }
        }
        None if text.matches(':').count() > 1 => (text.to_owned(), None),
        None => match text.split_once(':') {
            Some((addresses, ports)) => (addresses.to_owned(), Some(ports)),
            None => (text.to_owned(), None),
        },
    };
    let (ports, base) = match ports.map(|ports| ports.split_once('/').unwrap_or((ports, ""))) {
        None => (None, None),
        Some((ports, "")) => (Some(port_range(ports)?), None),
        Some((ports, base)) => (Some(port_range(ports)?), Some(number("a port", base)?)),
    };
    let addresses = (!addresses.is_empty()).then(|| address_range(reading, &addresses)).transpose()?;
    Ok(NatRange { addresses, ports, base, random: is_random(clause) })
}

fn address_range(reading: &RuleParser, text: &str) -> Result<(IpAddr, IpAddr), String> {
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    Ok((reading.ip(from)?, reading.ip(to)?))
}

fn port_range(text: &str) -> Result<Ports, String> {
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    Ok((number("a port", from)?, number("a port", to)?))
}

fn set_mark(choice: &OptionValues<'_>) -> Result<SetMark, String> {
    let (value, mask) = mark(choice.value())?;
    let (value, mask) = match &*choice.name {
        "--set-xmark" | "--set-tos" => (value, mask),
        "--set-mark" => (value, mask | value),
        "--or-mark" | "--or-tos" => (value, value),
        "--xor-mark" | "--xor-tos" => (value, 0),
        _ => (0, !value),
    };
    Ok(SetMark { value, mask })
}

fn connection_mark(clause: &Clause<'_>) -> Result<Target, String> {
    let number = |name: &str, default: u32| clause.find(name).map_or(Ok(default), any_number);
    // Old versions have one mask for both.
    let both = number("--mask", u32::MAX)?;
    let copy = CopyMark {
        nfmask: number("--nfmask", both)?,
        ctmask: number("--ctmask", both)?,
        left: number("--left-shift-mark", 0)?,
        right: number("--right-shift-mark", 0)?,
    };
    match () {
        () if clause.has("--save-mark") => Ok(Target::SaveMark(copy)),
        () if clause.has("--restore-mark") => Ok(Target::RestoreMark(copy)),
        () => {
            let set = clause.choices.iter().find(|choice| choice.name.ends_with("mark"));
            set_mark(set.ok_or("target CONNMARK lacks its option")?).map(Target::ConnectionMark)
        }
    }
}

fn queue(clause: &Clause<'_>) -> Result<Target, String> {
    let first = clause.find("--queue-num").map(|text| number("--queue-num", text)).transpose()?;
    let number = match clause.find("--queue-balance") {
        Some(_) => None,
        None => Some(first.unwrap_or(0)),
    };
    Ok(Target::Queue { number, bypass: clause.has("--queue-bypass") })
}
