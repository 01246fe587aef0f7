//! In: the words from `-j` on. Out: the rule's target.
//! Must not know the matches, which `args` reads, nor what a target does to a packet.

use std::net::SocketAddr;

use super::args::RuleReader;
use super::rules::{Family, Target};
use super::words::mark;

impl RuleReader {
    pub(super) fn jump(&mut self) -> Result<(), String> {
        if self.target_name.is_some() {
            return Err("a second target".to_owned());
        }
        let name = self.value("-j")?;
        self.target = match name.as_str() {
            "ACCEPT" => Some(Target::Accept),
            "DROP" => Some(Target::Drop),
            "RETURN" => Some(Target::Return),
            "REJECT" => Some(Target::Reject),
            "MASQUERADE" => Some(Target::Masquerade),
            "MARK" | "DNAT" => None,
            chain => Some(Target::Jump(chain.to_owned())),
        };
        self.target_name = Some(name);
        Ok(())
    }

    pub(super) fn target_option(&mut self, option: &str) -> Result<(), String> {
        let name = self.target_name.clone().unwrap_or_default();
        match (name.as_str(), option) {
            ("REJECT", "--reject-with") => self.reject_with(),
            ("MASQUERADE", "--random-fully") => Ok(()),
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
            // A jump may be written before the matches.
            _ if !matches!(name.as_str(), "REJECT" | "MASQUERADE" | "DNAT" | "MARK") => self.match_option(option),
            _ => Err(format!("unknown option {option} of target {name}")),
        }
    }

    fn reject_with(&mut self) -> Result<(), String> {
        let with = self.value("--reject-with")?;
        match (self.family, with.as_str()) {
            (Family::V4, "icmp-port-unreachable") | (Family::V6, "icmp6-port-unreachable") => Ok(()),
            _ => Err(format!("unknown way to reject {with}")),
        }
    }
}
