//! Matches on packet headers.

use super::super::args::RuleParser;
use super::super::clauses::{Clause, OptionValues};
use super::super::conditions::Test;
use super::super::words::{any_number, number, ports, range};
use netfilter::IpFamily;

/// Protocols whose match has ports.
const WITH_PORTS: [&str; 5] = ["tcp", "udp", "udplite", "sctp", "dccp"];

pub(super) fn read(reading: &mut RuleParser, clause: &Clause<'_>) -> Result<(), String> {
    let name = clause.extension.name;
    if WITH_PORTS.contains(&name) {
        let of_rule = reading.protocol.clone();
        match of_rule.as_deref() {
            None => return Err(format!("-m {name} without -p {name}")),
            Some(protocol) if protocol != name && protocol.parse::<u8>().is_err() => {
                return Err(format!("-m {name} with another protocol"));
            }
            _ => {}
        }
    }
    match name {
        "multiport" => return multiport(reading, clause),
        "policy" => return policy(reading, clause),
        // AH is a protocol of its own in IPv4 and an extension header in IPv6.
        "ah" if reading.family == IpFamily::V6 => {
            let why = "the packet has no extension headers";
            reading.add(false, Test::Assumed { holds: false, why });
            return Ok(());
        }
        "icmp" | "icmp6" => {
            icmp(reading, clause);
            return Ok(());
        }
        // The kernel requires -p for these, and traced packets have other protocols.
        "ah" | "esp" | "ipcomp" | "mh" | "dccp" | "udplite" => {
            reading.add(false, Test::OtherProtocol);
            return Ok(());
        }
        "ipv6header" => return ipv6_header(reading, clause),
        "frag" | "rt" | "hbh" | "dst" | "srh" => {
            reading.add(false, Test::Assumed { holds: false, why: clause.extension.why });
            return Ok(());
        }
        _ => {}
    }
    for choice in clause.choices.iter().filter(|choice| choice.name != "--suppl-groups") {
        let test = one(clause, choice)?;
        reading.add(choice.negated, test);
    }
    Ok(())
}

fn one(clause: &Clause<'_>, choice: &OptionValues<'_>) -> Result<Test, String> {
    let (text, option) = (choice.value(), &*choice.name);
    let assumed = |holds| Test::Assumed { holds, why: clause.extension.why };
    let most = u32::from(u16::MAX);
    let number = |text: &str| any_number(text);
    let byte = |text: &str| -> Result<u8, String> {
        u8::try_from(number(text)?).map_err(|_| format!("{option} does not take {text}"))
    };
    Ok(match option {
        "--dport" => Test::DestinationPorts(vec![ports(option, text)?]),
        "--sport" => Test::SourcePorts(vec![ports(option, text)?]),
        "--syn" => Test::TcpFlags { mask: FIN | SYN | RST | ACK, set: SYN },
        "--tcp-flags" => {
            let set = choice.values.get(1).map(AsRef::as_ref).unwrap_or_default();
            Test::TcpFlags { mask: flags(text)?, set: flags(set)? }
        }
        "--tcp-option" => Test::TcpOption(byte(text)?),
        "--mss" => {
            let (from, to) = range(option, text, (0, most))?;
            Test::SegmentSize(from, to)
        }
        "--length" => {
            let (from, to) = range(option, text, (0, most))?;
            Test::Length(from, to)
        }
        "--ttl-eq" | "--hl-eq" => Test::HopLimit(number(text)?, number(text)?),
        "--ttl-lt" | "--hl-lt" => match number(text)? {
            0 => assumed(false),
            limit => Test::HopLimit(0, limit - 1),
        },
        "--ttl-gt" | "--hl-gt" => Test::HopLimit(number(text)?.saturating_add(1), 255),
        "--dscp" => Test::TypeOfService { value: byte(text)? << 2, mask: 0xfc },
        "--dscp-class" => Test::TypeOfService { value: class(text)? << 2, mask: 0xfc },
        "--tos" => type_of_service(text)?,
        "--ecn-ip-ect" => Test::TypeOfService { value: byte(text)?, mask: 3 },
        "--ecn-tcp-cwr" | "--ecn-tcp-ece" => assumed(false),
        "--chunk-types" => chunks(choice)?,
        "--realm" => {
            let (value, _) = text.split_once('/').unwrap_or((text, ""));
            // The name of realm 0 in iproute2's `rt_realms`.
            assumed(["0", "0x0", "cosmos"].contains(&value))
        }
        "--uid-owner" | "--gid-owner" => owner(choice),
        "--socket-exists" => Test::Owner { root: true },
        other => return Err(format!("unknown option {other}")),
    })
}

/// `-m icmp`, `-m icmp6`: a type as a number with an optional code, or any other words for any type.
fn icmp(reading: &mut RuleParser, clause: &Clause<'_>) {
    let mut added = false;
    for choice in &clause.choices {
        let (kind, code) =
            choice.value().split_once('/').map_or((choice.value(), None), |(kind, code)| (kind, Some(code)));
        let is_any = matches!(kind, "any" | "255");
        let number = kind.parse::<u8>().ok().filter(|_| !is_any);
        if number.is_none() && !is_any {
            // A name: types that rules name are mostly those of echo requests, but which is not looked up.
            reading.add(choice.negated, Test::Icmp { kind: None, has_code: true });
        } else {
            reading.add(choice.negated, Test::Icmp { kind: number, has_code: code.is_some() && !is_any });
        }
        added = true;
    }
    if !added {
        reading.add(false, Test::Icmp { kind: None, has_code: false });
    }
}

/// `--uid-owner`, `--gid-owner`: whether the user, group or range begins with root.
fn owner(choice: &OptionValues<'_>) -> Test {
    let (from, _) = choice.value().split_once('-').unwrap_or((choice.value(), ""));
    Test::Owner { root: matches!(from, "0" | "root") }
}

fn multiport(reading: &mut RuleParser, clause: &Clause<'_>) -> Result<(), String> {
    for choice in &clause.choices {
        let list: Vec<_> = choice.value().split(',').map(|text| ports(&choice.name, text)).collect::<Result<_, _>>()?;
        let test = match &*choice.name {
            "--dports" | "--destination-ports" => Test::DestinationPorts(list),
            "--sports" | "--source-ports" => Test::SourcePorts(list),
            _ => Test::EitherPorts(list),
        };
        reading.add(choice.negated, test);
    }
    Ok(())
}

fn policy(reading: &mut RuleParser, clause: &Clause<'_>) -> Result<(), String> {
    let holds = match clause.find("--pol") {
        Some("none") => true,
        Some("ipsec") => false,
        _ => return Err("match policy needs --pol".to_owned()),
    };
    reading.add(false, Test::Assumed { holds, why: clause.extension.why });
    Ok(())
}

/// A traced packet has no extension headers; whether its protocol counts as one is not followed.
fn ipv6_header(reading: &mut RuleParser, clause: &Clause<'_>) -> Result<(), String> {
    let header = clause.choices.iter().find(|choice| choice.name == "--header");
    let header = header.ok_or("match ipv6header needs --header")?;
    let own = header.value().split(',').any(|name| ["proto", "prot", "none"].contains(&name));
    if own {
        reading.doubt("ipv6header", "how the kernel counts the packet's own protocol is not followed");
    }
    reading.add(header.negated, Test::Assumed { holds: false, why: clause.extension.why });
    Ok(())
}

fn chunks(choice: &OptionValues<'_>) -> Result<Test, String> {
    let list = choice.values.get(1).map(AsRef::as_ref).unwrap_or_default();
    let (all, only) = match choice.value() {
        "any" => (false, false),
        "all" => (true, false),
        "only" => (true, true),
        other => return Err(format!("unknown word {other} of --chunk-types")),
    };
    let names = || list.split(',').map(|name| name.split(':').next().unwrap_or_default());
    let is_init = |name: &str| matches!(name, "INIT" | "ALL");
    Ok(Test::Chunks { all, only, init: names().any(is_init), others: names().any(|name| name != "INIT") })
}

fn type_of_service(text: &str) -> Result<Test, String> {
    let named = [
        ("Minimize-Delay", 0x10),
        ("Maximize-Throughput", 0x08),
        ("Maximize-Reliability", 0x04),
        ("Minimize-Cost", 0x02),
        ("Normal-Service", 0),
    ];
    if let Some((_, value)) = named.iter().find(|(name, _)| *name == text) {
        return Ok(Test::TypeOfService { value: *value, mask: 0x3f });
    }
    let (value, mask) = text.split_once('/').unwrap_or((text, "0xff"));
    let byte = |text: &str| u8::try_from(any_number(text)?).map_err(|_| format!("--tos does not take {text}"));
    Ok(Test::TypeOfService { value: byte(value)?, mask: byte(mask)? })
}

/// The DSCP of a class name, such as `AF11`.
pub(in super::super) fn class(name: &str) -> Result<u8, String> {
    let name = name.to_ascii_uppercase();
    let digit = |text: &str| number::<u8>("--dscp-class", text);
    match name.as_str() {
        "BE" => Ok(0),
        "EF" => Ok(0x2e),
        _ if name.starts_with("CS") => Ok(digit(&name[2..])? << 3),
        _ if name.starts_with("AF") && name.len() == 4 => Ok((digit(&name[2..3])? << 3) | (digit(&name[3..])? << 1)),
        _ => Err(format!("unknown class {name}")),
    }
}

const FIN: u8 = 1;
const SYN: u8 = super::super::args::SYN;
const RST: u8 = 4;
const ACK: u8 = 16;

fn flags(text: &str) -> Result<u8, String> {
    let one = |name: &str| match name {
        "FIN" => Ok(FIN),
        "SYN" => Ok(SYN),
        "RST" => Ok(RST),
        "PSH" => Ok(8),
        "ACK" => Ok(ACK),
        "URG" => Ok(32),
        "ALL" => Ok(63),
        "NONE" => Ok(0),
        _ => Err(format!("unknown flag {name}")),
    };
    text.split(',').map(one).try_fold(0, |all, flag| Ok(all | flag?))
}
