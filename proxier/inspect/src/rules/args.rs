//! A rule's words after the chain's name.
//!
//! In: words. Out: conditions and target, and what of the rule is not understood. Must not know: tables, chains or how
//! rules are walked. What is not understood is said: a match passed over would make a rule match more than it does.

use std::borrow::Cow;
use std::iter::Peekable;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use ipnet::IpNet;
use netfilter::IpFamily;
use netfilter::ipvs::ServerKey;

pub(super) use super::targets::is_target;
use super::values::{Condition, Meaning, Ports, State, Target, Test};
use super::words::{mark, number, ports};
use proxier::model::Protocol;

/// Reads a rule's words.
pub(super) fn rule(family: IpFamily, words: Vec<Cow<'_, str>>) -> Meaning {
    let mut reader = RuleReader::new(family, words);
    while let Some(word) = reader.words.next() {
        if let Err(problem) = reader.option(&word) {
            reader.problem.get_or_insert(problem);
            reader.skip();
        }
    }
    reader.finish()
}

pub(super) struct RuleReader<'a> {
    pub(super) family: IpFamily,
    words: Peekable<std::vec::IntoIter<Cow<'a, str>>>,
    negate: bool,
    protocol: Option<Protocol>,
    modules: Vec<Cow<'a, str>>,
    recent: Recent,
    random: bool,
    conditions: Vec<Condition>,
    comment: Option<Box<str>>,
    problem: Option<String>,
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

impl<'a> RuleReader<'a> {
    fn new(family: IpFamily, words: Vec<Cow<'a, str>>) -> Self {
        Self {
            family,
            words: words.into_iter().peekable(),
            negate: false,
            protocol: None,
            modules: vec![],
            recent: Recent::default(),
            random: false,
            conditions: vec![],
            comment: None,
            problem: None,
            target_name: None,
            target: None,
        }
    }

    /// Passes over values, up to the next option.
    pub(super) fn skip(&mut self) {
        self.negate = false;
        while self.words.next_if(|word| !word.starts_with('-') && *word != "!").is_some() {}
    }

    fn option(&mut self, option: &str) -> Result<(), String> {
        match option {
            "!" if !self.negate => {
                self.negate = true;
                return Ok(());
            }
            "-s" => self.net(Test::Source)?,
            "-d" => self.net(Test::Destination)?,
            "-i" | "-o" => {
                let name = self.value(option)?.into_owned();
                self.add(if option == "-i" { Test::InInterface(name) } else { Test::OutInterface(name) });
            }
            "-p" => self.protocol()?,
            "-m" => self.module()?,
            "-j" => self.jump()?,
            "-g" => self.goto()?,
            _ if self.target_name.is_some() => self.target_option(option)?,
            _ => self.match_option(option)?,
        }
        if self.negate {
            return Err(format!("{option} cannot be negated"));
        }
        Ok(())
    }

    fn protocol(&mut self) -> Result<(), String> {
        let name = self.value("-p")?;
        if name == "all" || name == "0" {
            return Ok(());
        }
        let known = Protocol::of_name(&name).or_else(|| Protocol::of_number(name.parse().ok()?));
        if known.is_none() && !(name.parse::<u8>().is_ok() || OTHER_PROTOCOLS.contains(&&*name)) {
            return Err(format!("-p does not take {name}"));
        }
        self.protocol = known.filter(|_| !self.negate);
        self.add(known.map_or(Test::OtherProtocol, Test::Protocol));
        Ok(())
    }

    fn module(&mut self) -> Result<(), String> {
        let name = self.value("-m")?;
        match &*name {
            "comment" | "conntrack" | "mark" | "addrtype" | "statistic" | "nfacct" | "multiport" | "set"
            | "physdev" | "ipvs" => {}
            "recent" => self.recent.position = self.conditions.len(),
            "tcp" | "udp" | "sctp" => {
                let protocol = Protocol::of_name(&name);
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
                let text = self.of("comment", option)?;
                self.comment = Some(text.into());
            }
            "--dport" | "--sport" => {
                if self.protocol.is_none() && !self.modules.iter().any(|m| Protocol::of_name(m).is_some()) {
                    return Err(format!("{option} without a protocol"));
                }
                let ports = vec![ports(option, &self.value(option)?)?];
                self.add_ports(option == "--dport", ports);
            }
            "--dports" | "--sports" => {
                let text = self.of("multiport", option)?;
                let ports = text.split(',').map(|text| ports(option, text)).collect::<Result<_, _>>()?;
                self.add_ports(option == "--dports", ports);
            }
            "--match-set" => {
                let name = self.of("set", option)?.into_owned();
                let parts = self.value(option)?;
                let of_source = parts.split(',').map(direction).collect::<Result<_, _>>()?;
                self.add(Test::Set { name, of_source });
            }
            "--physdev-is-in" => self.add(Test::FromBridge),
            "--vproto" => self.virtual_server()?,
            "--syn" => self.add(Test::TcpFlags { mask: FIN | SYN | RST | ACK, set: SYN }),
            "--tcp-flags" => {
                let (mask, set) = (flags(&self.value(option)?)?, flags(&self.value(option)?)?);
                self.add(Test::TcpFlags { mask, set });
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

    fn add_ports(&mut self, destination: bool, ports: Vec<Ports>) {
        self.add(if destination { Test::DestinationPorts(ports) } else { Test::SourcePorts(ports) });
    }

    fn recent_option(&mut self, option: &str) -> Result<(), String> {
        match option {
            "--rcheck" => self.recent.check = true,
            "--set" => self.recent.set = true,
            "--reap" => self.recent.reap = true,
            "--rsource" => {}
            "--seconds" => self.recent.seconds = Some(self.parsed(option)?),
            "--name" => self.recent.list = Some(self.value(option)?.into_owned()),
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

    fn finish(mut self) -> Meaning {
        if let Err(problem) = self.check() {
            self.problem.get_or_insert(problem);
        }
        let Self { conditions, target, comment, problem, .. } = self;
        Meaning { conditions, target, comment, problem }
    }

    fn check(&mut self) -> Result<(), String> {
        if self.negate {
            return Err("nothing after !".to_owned());
        }
        if let (Some(name), None) = (&self.target_name, &self.target) {
            return Err(format!("target {name} lacks its option"));
        }
        for module in &self.modules {
            if Protocol::of_name(module).is_some_and(|protocol| self.protocol != Some(protocol)) {
                return Err(format!("-m {module} without -p {module}"));
            }
        }
        let random = self.conditions.iter().any(|c| matches!(c.test, Test::Random(_)));
        if random != self.random || random != self.modules.iter().any(|m| m == "statistic") {
            return Err("match statistic needs --mode random and --probability".to_owned());
        }
        if self.modules.iter().any(|m| m == "recent") {
            let Recent { position, list, set, check, seconds, reap } = std::mem::take(&mut self.recent);
            let list = list.ok_or("match recent needs --name")?;
            let test = match (set, check) {
                (true, false) if seconds.is_none() && !reap => Test::RecentSet { list },
                (false, true) if seconds.is_some() || !reap => Test::RecentCheck { list, seconds },
                _ => return Err("match recent needs one of --set and --rcheck, with its own options".to_owned()),
            };
            self.conditions.insert(position, Condition { negated: false, test });
        }
        Ok(())
    }

    /// The three options that kube-proxy uses together.
    fn virtual_server(&mut self) -> Result<(), String> {
        let text = self.of("ipvs", "--vproto")?;
        let protocol = number("--vproto", &text)?;
        let mut next = |option: &str| match self.words.next() {
            Some(word) if word == option => self.words.next().ok_or_else(|| format!("{option} needs a value")),
            _ => Err(format!("match ipvs without {option} is not understood")),
        };
        let address = next("--vaddr")?;
        let port = number("--vport", &next("--vport")?)?;
        let net = address.parse().or_else(|_| address.parse::<IpAddr>().map(IpNet::from));
        let net: IpNet = net.map_err(|_| format!("{address} is no address"))?;
        self.add(Test::Ipvs(ServerKey { address: SocketAddr::new(net.addr(), port), protocol }));
        Ok(())
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
        if address.is_ipv4() == (self.family == IpFamily::V4) {
            return Ok(());
        }
        Err(format!("{address} is of the other family"))
    }

    pub(super) fn value(&mut self, option: &str) -> Result<Cow<'a, str>, String> {
        self.words.next().ok_or_else(|| format!("{option} needs a value"))
    }

    pub(super) fn parsed<T: FromStr>(&mut self, option: &str) -> Result<T, String> {
        let value = self.value(option)?;
        number(option, &value)
    }

    /// The value of an option that only this match has.
    fn of(&mut self, module: &str, option: &str) -> Result<Cow<'a, str>, String> {
        if !self.modules.iter().any(|m| m == module) {
            return Err(format!("{option} without -m {module}"));
        }
        self.value(option)
    }
}

fn direction(text: &str) -> Result<bool, String> {
    match text {
        "src" => Ok(true),
        "dst" => Ok(false),
        other => Err(format!("unknown direction {other}")),
    }
}

fn state(text: &str) -> Result<State, String> {
    match text {
        "NEW" => Ok(State::New),
        "ESTABLISHED" => Ok(State::Established),
        "RELATED" => Ok(State::Related),
        "INVALID" => Ok(State::Invalid),
        "UNTRACKED" => Ok(State::Untracked),
        "DNAT" => Ok(State::Dnat),
        other => Err(format!("unknown connection state {other}")),
    }
}

const OTHER_PROTOCOLS: [&str; 12] =
    ["icmp", "icmpv6", "ipv6-icmp", "igmp", "gre", "esp", "ah", "udplite", "dccp", "ipip", "ipv4", "ipv6"];

const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
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
