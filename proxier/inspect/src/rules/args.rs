//! Parses a rule's arguments into conditions and a target.
//!
//! Anything not understood is recorded as the rule's problem: a match that is skipped would make the rule match more
//! packets than it does in the kernel.

use std::net::IpAddr;

use ipnet::IpNet;
use netfilter::IpFamily;

use super::actions::Target;
use super::clauses::{self, Action, OptionValues};
use super::conditions::{Condition, Test};
use super::language::Support;
use super::values::Meaning;
use super::words::{Word, bits};
use super::{matches, targets};
use proxier::model::Protocol;

/// Parses a rule's words.
pub(super) fn rule(family: IpFamily, words: Vec<Word<'_>>) -> Meaning {
    let clauses = clauses::sort(words);
    let mut reading = RuleParser {
        family,
        protocol: None,
        meaning: Meaning { problem: clauses.problem.clone(), ..Meaning::default() },
    };
    for choice in &clauses.plain {
        reading.note(|reading| reading.plain(choice));
    }
    for clause in &clauses.matches {
        if clause.extension.support == Support::Doubt {
            reading.doubt(clause.extension.name, clause.extension.why);
        }
        reading.note(|reading| matches::read(reading, clause));
    }
    reading.note(|reading| {
        let target = reading.act(clauses.action.as_ref());
        // The target's effect is unknown then, only its presence.
        reading.meaning.target = match (&target, &clauses.action) {
            (Err(_), Some(Action::Target(clause))) => Some(Target::Unfollowed(clause.extension.name.to_owned())),
            _ => target.as_ref().ok().cloned().flatten(),
        };
        target.map(drop)
    });
    reading.meaning
}

/// A rule being parsed.
pub(super) struct RuleParser {
    pub(super) family: IpFamily,
    /// The protocol of `-p`, unless negated.
    pub(super) protocol: Option<String>,
    pub(super) meaning: Meaning,
}

impl RuleParser {
    fn note(&mut self, read: impl FnOnce(&mut Self) -> Result<(), String>) {
        if let Err(problem) = read(self) {
            self.meaning.problem.get_or_insert(problem);
        }
    }

    /// Records a match or target that cannot be decided.
    pub(super) fn doubt(&mut self, name: &str, why: &str) {
        self.meaning.problem.get_or_insert_with(|| format!("{name}: {why}"));
    }

    pub(super) fn add(&mut self, negated: bool, test: Test) {
        self.meaning.conditions.push(Condition { negated, test });
    }

    fn plain(&mut self, choice: &OptionValues<'_>) -> Result<(), String> {
        let test = match &*choice.name {
            "-s" => self.address(choice.value(), true)?,
            "-d" => self.address(choice.value(), false)?,
            "-i" => Test::InInterface(choice.value().to_owned()),
            "-o" => Test::OutInterface(choice.value().to_owned()),
            "-f" => Test::Assumed { holds: false, why: "the packet is no fragment" },
            _ => return self.of_protocol(choice),
        };
        self.add(choice.negated, test);
        Ok(())
    }

    fn of_protocol(&mut self, choice: &OptionValues<'_>) -> Result<(), String> {
        let name = choice.value().to_ascii_lowercase();
        if name == "all" || name == "0" {
            return Ok(());
        }
        let known = protocol(&name)?;
        self.protocol = Some(known.map_or(name.clone(), |known| known.name().to_owned())).filter(|_| !choice.negated);
        let other = match (&*name, self.family) {
            ("icmp" | "1", IpFamily::V4) | ("icmpv6" | "ipv6-icmp" | "58", IpFamily::V6) => {
                Test::Icmp { kind: None, has_code: false }
            }
            _ => Test::OtherProtocol,
        };
        self.add(choice.negated, known.map_or(other, Test::Protocol));
        Ok(())
    }

    fn address(&self, text: &str, of_source: bool) -> Result<Test, String> {
        let (address, mask) = self.masked(text)?;
        match IpNet::with_netmask(address, mask) {
            Ok(net) if of_source => Ok(Test::Source(net)),
            Ok(net) => Ok(Test::Destination(net)),
            Err(_) => Ok(Test::Bits { of_source, value: bits(address) & bits(mask), mask: bits(mask) }),
        }
    }

    /// An address and its mask, which may be a prefix length.
    fn masked(&self, text: &str) -> Result<(IpAddr, IpAddr), String> {
        let bad = || format!("{text} is no address");
        let (address, mask) = text.split_once('/').unwrap_or((text, ""));
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        self.check_family(address)?;
        let mask = match (mask, mask.parse::<u8>()) {
            ("", _) => IpNet::from(address).netmask(),
            (_, Ok(length)) => IpNet::new(address, length).map_err(|_| bad())?.netmask(),
            (mask, Err(_)) => mask.parse().map_err(|_| bad())?,
        };
        Ok((address, mask))
    }

    /// An address with a prefix.
    pub(super) fn net(&self, text: &str) -> Result<IpNet, String> {
        let (address, mask) = self.masked(text)?;
        IpNet::with_netmask(address, mask).map_err(|_| format!("the mask of {text} is no prefix"))
    }

    pub(super) fn ip(&self, text: &str) -> Result<IpAddr, String> {
        let address = text.parse().map_err(|_| format!("{text} is no address"))?;
        self.check_family(address)?;
        Ok(address)
    }

    fn check_family(&self, address: IpAddr) -> Result<(), String> {
        if address.is_ipv4() == (self.family == IpFamily::V4) {
            return Ok(());
        }
        Err(format!("{address} is of the other family"))
    }

    fn act(&mut self, action: Option<&Action<'_>>) -> Result<Option<Target>, String> {
        Ok(match action {
            None => None,
            Some(Action::Jump(chain)) => Some(Target::Jump(chain.clone())),
            Some(Action::Goto(chain)) => Some(Target::Goto(chain.clone())),
            Some(Action::Target(clause)) => {
                if clause.extension.support == Support::Doubt && clause.extension.name != "NFQUEUE" {
                    self.doubt(clause.extension.name, clause.extension.why);
                }
                Some(targets::read(self, clause)?)
            }
        })
    }
}

/// Parses a protocol name or number; `None`: a protocol that Services do not use.
pub(super) fn protocol(name: &str) -> Result<Option<Protocol>, String> {
    let known = Protocol::of_name(name).or_else(|| Protocol::of_number(name.parse().ok()?));
    if known.is_none() && !(name.parse::<u8>().is_ok() || OTHER_PROTOCOLS.contains(&name)) {
        return Err(format!("-p does not take {name}"));
    }
    Ok(known)
}

/// Other protocol names of `/etc/protocols` and of iptables.
const OTHER_PROTOCOLS: [&str; 57] = [
    "icmp",
    "icmpv6",
    "ipv6-icmp",
    "igmp",
    "ggp",
    "ipencap",
    "st",
    "egp",
    "igp",
    "pup",
    "hmp",
    "xns-idp",
    "rdp",
    "iso-tp4",
    "dccp",
    "xtp",
    "ddp",
    "idpr-cmtp",
    "ipv6",
    "ipv6-route",
    "ipv6-frag",
    "idrp",
    "rsvp",
    "gre",
    "esp",
    "ah",
    "skip",
    "ipv6-nonxt",
    "ipv6-opts",
    "rspf",
    "vmtp",
    "eigrp",
    "ospf",
    "ospfigp",
    "ax.25",
    "ipip",
    "etherip",
    "encap",
    "pim",
    "ipcomp",
    "vrrp",
    "l2tp",
    "isis",
    "fc",
    "mobility-header",
    "mh",
    "ipv6-mh",
    "udplite",
    "mpls-in-ip",
    "manet",
    "hip",
    "shim6",
    "wesp",
    "rohc",
    "ethernet",
    "ipv4",
    "mptcp",
];

pub(crate) const SYN: u8 = 2;
