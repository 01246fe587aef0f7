//! In: one rule's words after the chain's name. Out: its conditions and target, or what in it is unknown.
//! Must not know tables, chains or how rules are walked. What it does not know it refuses: a match passed over would
//! make a rule match more than it does.

use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use super::rules::{Condition, Family, State, Target, Test};
use super::words::{mark, number};
use crate::tracer::Protocol;

/// Reads a rule's words.
pub(super) fn rule(family: Family, words: Vec<String>) -> Result<(Vec<Condition>, Option<Target>), String> {
    let mut reader = RuleReader::new(family, words);
    while let Some(word) = reader.words.next() {
        reader.option(&word)?;
    }
    reader.finish()
}

pub(super) struct RuleReader {
    pub(super) family: Family,
    words: std::vec::IntoIter<String>,
    negate: bool,
    protocol: Option<Protocol>,
    modules: Vec<String>,
    recent: Recent,
    random: bool,
    conditions: Vec<Condition>,
    pub(super) target_name: Option<String>,
    pub(super) target: Option<Target>,
}

#[derive(Default)]
struct Recent {
    /// Where among the conditions it stands.
    position: usize,
    list: Option<String>,
    set: bool,
    check: bool,
    seconds: Option<u32>,
    reap: bool,
}

impl RuleReader {
    fn new(family: Family, words: Vec<String>) -> Self {
        Self {
            family,
            words: words.into_iter(),
            negate: false,
            protocol: None,
            modules: vec![],
            recent: Recent::default(),
            random: false,
            conditions: vec![],
            target_name: None,
            target: None,
        }
    }

    fn option(&mut self, option: &str) -> Result<(), String> {
        match option {
            "!" if !self.negate => {
                self.negate = true;
                return Ok(());
            }
            "-s" => self.net(Test::Source)?,
            "-d" => self.net(Test::Destination)?,
            "-i" => {
                let name = self.value(option)?;
                self.add(Test::InInterface(name));
            }
            "-p" => {
                let protocol = self.parsed(option)?;
                self.protocol = (!self.negate).then_some(protocol);
                self.add(Test::Protocol(protocol));
            }
            "-m" => self.module()?,
            "-j" => self.jump()?,
            _ if self.target_name.is_some() => self.target_option(option)?,
            _ => self.match_option(option)?,
        }
        if self.negate {
            return Err(format!("{option} cannot be negated"));
        }
        Ok(())
    }

    fn module(&mut self) -> Result<(), String> {
        let name = self.value("-m")?;
        match name.as_str() {
            "comment" | "conntrack" | "mark" | "addrtype" | "statistic" | "nfacct" => {}
            "recent" => self.recent.position = self.conditions.len(),
            "tcp" | "udp" | "sctp" => {
                let protocol = Some(Protocol::from_str(&name)?);
                // iptables puts -p first when it prints, but reads them in any order: checked in finish.
                if self.protocol.is_some() && self.protocol != protocol {
                    return Err(format!("-m {name} with another protocol"));
                }
            }
            _ => return Err(format!("unknown match {name}")),
        }
        if self.modules.contains(&name) {
            return Err(format!("the tracer does not take two matches {name} in one rule"));
        }
        self.modules.push(name);
        Ok(())
    }

    pub(super) fn match_option(&mut self, option: &str) -> Result<(), String> {
        match option {
            "--comment" => {
                self.of("comment", option)?;
            }
            "--dport" | "--sport" => {
                if self.protocol.is_none() && !self.modules.iter().any(|m| Protocol::from_str(m).is_ok()) {
                    return Err(format!("{option} without a protocol"));
                }
                let port = self.parsed(option)?;
                self.add(if option == "--dport" { Test::DestinationPort(port) } else { Test::SourcePort(port) });
            }
            "--ctstate" => {
                let states = self.of("conntrack", option)?.split(',').map(state).collect::<Result<_, _>>()?;
                self.add(Test::State(states));
            }
            "--mark" => {
                let (value, mask) = mark(&self.of("mark", option)?)?;
                self.add(Test::Mark { value, mask });
            }
            "--dst-type" | "--src-type" => {
                let kind = self.of("addrtype", option)?;
                if kind != "LOCAL" {
                    return Err(format!("unknown address type {kind}"));
                }
                self.add(if option == "--dst-type" { Test::DestinationLocal } else { Test::SourceLocal });
            }
            "--mode" => {
                if self.of("statistic", option)? != "random" {
                    return Err("only statistic mode random is known".to_owned());
                }
                self.random = true;
            }
            "--probability" => {
                let probability: f64 = number(option, &self.of("statistic", option)?)?;
                if !(0.0..=1.0).contains(&probability) {
                    return Err(format!("probability {probability}"));
                }
                self.add(Test::Random(probability));
            }
            "--nfacct-name" => {
                self.of("nfacct", option)?;
            }
            _ if self.modules.iter().any(|m| m == "recent") => self.recent_option(option)?,
            _ => return Err(format!("unknown option {option}")),
        }
        Ok(())
    }

    fn recent_option(&mut self, option: &str) -> Result<(), String> {
        match option {
            "--rcheck" => self.recent.check = true,
            "--set" => self.recent.set = true,
            "--reap" => self.recent.reap = true,
            "--rsource" => {}
            "--seconds" => self.recent.seconds = Some(self.parsed(option)?),
            "--name" => self.recent.list = Some(self.value(option)?),
            "--mask" => {
                let mask = self.value(option)?;
                if mask != "255.255.255.255" && mask != "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff" {
                    return Err(format!("only whole addresses are remembered, not {mask}"));
                }
            }
            _ => return Err(format!("unknown option {option}")),
        }
        Ok(())
    }

    fn finish(mut self) -> Result<(Vec<Condition>, Option<Target>), String> {
        if self.negate {
            return Err("nothing after !".to_owned());
        }
        if let (Some(name), None) = (&self.target_name, &self.target) {
            return Err(format!("target {name} lacks its option"));
        }
        for module in &self.modules {
            if Protocol::from_str(module).is_ok_and(|protocol| self.protocol != Some(protocol)) {
                return Err(format!("-m {module} without -p {module}"));
            }
        }
        let random = self.conditions.iter().any(|c| matches!(c.test, Test::Random(_)));
        if random != self.random || random != self.modules.iter().any(|m| m == "statistic") {
            return Err("match statistic needs --mode random and --probability".to_owned());
        }
        if self.modules.iter().any(|m| m == "recent") {
            let Recent { position, list, set, check, seconds, reap } = self.recent;
            let list = list.ok_or("match recent needs --name")?;
            let test = match (set, check) {
                (true, false) if seconds.is_none() && !reap => Test::RecentSet { list },
                (false, true) if seconds.is_some() || !reap => Test::RecentCheck { list, seconds },
                _ => return Err("match recent needs one of --set and --rcheck, with its own options".to_owned()),
            };
            self.conditions.insert(position, Condition { negated: false, test });
        }
        Ok((self.conditions, self.target))
    }

    fn add(&mut self, test: Test) {
        self.conditions.push(Condition { negated: std::mem::take(&mut self.negate), test });
    }

    fn net(&mut self, test: fn(IpNet) -> Test) -> Result<(), String> {
        let text = self.value("-s or -d")?;
        let net = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        let net: IpNet = net.map_err(|_| format!("{text} is no address"))?;
        self.check_family(net.addr())?;
        self.add(test(net));
        Ok(())
    }

    pub(super) fn check_family(&self, address: IpAddr) -> Result<(), String> {
        if address.is_ipv4() == (self.family == Family::V4) {
            return Ok(());
        }
        Err(format!("{address} is of the other family"))
    }

    pub(super) fn value(&mut self, option: &str) -> Result<String, String> {
        self.words.next().ok_or_else(|| format!("{option} needs a value"))
    }

    pub(super) fn parsed<T: FromStr>(&mut self, option: &str) -> Result<T, String> {
        let value = self.value(option)?;
        number(option, &value)
    }

    /// The value of an option that only this match has.
    fn of(&mut self, module: &str, option: &str) -> Result<String, String> {
        if !self.modules.iter().any(|m| m == module) {
            return Err(format!("{option} without -m {module}"));
        }
        self.value(option)
    }
}

fn state(text: &str) -> Result<State, String> {
    match text {
        "NEW" => Ok(State::New),
        "ESTABLISHED" => Ok(State::Established),
        "RELATED" => Ok(State::Related),
        "INVALID" => Ok(State::Invalid),
        "DNAT" => Ok(State::Dnat),
        other => Err(format!("unknown connection state {other}")),
    }
}
