//! A rule's target.
//!
//! In: the words from `-j` on. Out: the target. Must not know: the matches, which `args` reads, nor what a target does
//! to a packet.

use std::net::SocketAddr;

use super::args::RuleReader;
use super::values::Target;
use super::words::mark;

/// Targets that let the packet go on as it is, as far as rules can see.
const PASSIVE: [&str; 11] =
    ["AUDIT", "CHECKSUM", "CLASSIFY", "DSCP", "IDLETIMER", "LED", "LOG", "NFLOG", "TCPMSS", "TRACE", "ULOG"];
/// Targets that take options.
const WITH_OPTIONS: [&str; 5] = ["REJECT", "MASQUERADE", "DNAT", "MARK", "CT"];
/// Targets that the tracer cannot follow.
const OTHER: [&str; 14] = [
    "CONNMARK",
    "CONNSECMARK",
    "NETMAP",
    "NFQUEUE",
    "QUEUE",
    "REDIRECT",
    "SECMARK",
    "SET",
    "SNAT",
    "SYNPROXY",
    "TEE",
    "TOS",
    "TPROXY",
    "TTL",
];

/// Whether a word after `-j` is one of the kernel's own targets and no chain.
pub(super) fn is_target(word: &str) -> bool {
    matches!(word, "ACCEPT" | "DROP" | "RETURN")
        || [&PASSIVE[..], &WITH_OPTIONS[..], &OTHER[..]].iter().any(|known| known.contains(&word))
}

impl RuleReader<'_> {
    pub(super) fn jump(&mut self) -> Result<(), String> {
        if self.target_name.is_some() {
            return Err("a second target".to_owned());
        }
        let name = self.value("-j")?.into_owned();
        self.target = match name.as_str() {
            "ACCEPT" => Some(Target::Accept),
            "DROP" => Some(Target::Drop),
            "RETURN" => Some(Target::Return),
            "REJECT" => Some(Target::Reject),
            "MASQUERADE" => Some(Target::Masquerade),
            name if PASSIVE.contains(&name) => Some(Target::Passive(name.to_owned())),
            name if OTHER.contains(&name) || WITH_OPTIONS.contains(&name) => None,
            chain => Some(Target::Jump(chain.to_owned())),
        };
        let unknown = OTHER.contains(&name.as_str()).then(|| format!("the tracer does not know target {name}"));
        self.target_name = Some(name);
        unknown.map_or(Ok(()), Err)
    }

    pub(super) fn goto(&mut self) -> Result<(), String> {
        if self.target_name.is_some() {
            return Err("a second target".to_owned());
        }
        let name = self.value("-g")?.into_owned();
        self.target = Some(Target::Goto(name.clone()));
        self.target_name = Some(name);
        Ok(())
    }

    pub(super) fn target_option(&mut self, option: &str) -> Result<(), String> {
        let name = self.target_name.clone().unwrap_or_default();
        match (name.as_str(), option) {
            ("REJECT", "--reject-with") => self.reject_with(),
            ("MASQUERADE", "--random-fully") => Ok(()),
            ("CT", "--notrack") => {
                self.target = Some(Target::NoTrack);
                Ok(())
            }
            ("DNAT", "--to-destination") if self.target.is_none() => {
                let to: SocketAddr = self.parsed(option)?;
                self.check_family(to.ip())?;
                self.target = Some(Target::Dnat(to));
                Ok(())
            }
            ("MARK", "--set-xmark" | "--set-mark" | "--or-mark" | "--xor-mark" | "--and-mark")
                if self.target.is_none() =>
            {
                let (value, mask) = mark(&self.value(option)?)?;
                let (value, mask) = match option {
                    "--set-xmark" => (value, mask),
                    "--set-mark" => (value, mask | value),
                    "--or-mark" => (value, value),
                    "--xor-mark" => (value, 0),
                    _ => (0, !value),
                };
                self.target = Some(Target::Mark { value, mask });
                Ok(())
            }
            // Whatever they say, the packet goes on.
            (passive, _) if PASSIVE.contains(&passive) => {
                self.skip();
                Ok(())
            }
            // A jump may be written before the matches.
            (chain, _) if !is_target(chain) || matches!(chain, "ACCEPT" | "DROP" | "RETURN") => {
                self.match_option(option)
            }
            _ => Err(format!("unknown option {option} of target {name}")),
        }
    }

    fn reject_with(&mut self) -> Result<(), String> {
        const KNOWN: [&str; 8] = [
            "icmp-port-unreachable",
            "icmp-host-unreachable",
            "icmp-host-prohibited",
            "icmp-admin-prohibited",
            "icmp-net-prohibited",
            "icmp6-port-unreachable",
            "icmp6-adm-prohibited",
            "tcp-reset",
        ];
        let with = self.value("--reject-with")?;
        if KNOWN.contains(&&*with) { Ok(()) } else { Err(format!("unknown way to reject {with}")) }
    }
}
