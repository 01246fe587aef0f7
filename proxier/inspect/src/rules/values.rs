//! Tables, chains, rules, conditions and targets of a ruleset.
//!
//! A rule keeps its text, and its meaning is parsed on demand, because a big table has hundreds of thousands of rules.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::OnceLock;

use ipnet::IpNet;
use netfilter::Counters;
use netfilter::IpFamily;
use netfilter::iptables::has_open_quote;
use netfilter::nft::ruleset;

use super::args;
use super::language;
use super::words;
use proxier::model::Protocol;

/// Tables of one family, as far as they were read.
#[derive(Clone, Debug)]
pub struct Ruleset {
    pub(super) family: IpFamily,
    pub(super) tables: BTreeMap<String, Table>,
}

/// The chains of one table, the built-in ones always among them.
pub type Table = BTreeMap<Box<str>, Chain>;

/// A chain: what its rules do not decide, its policy does, if it is a built-in one.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    /// The policy of a built-in chain.
    pub policy: Option<Policy>,
    /// What the policy decided.
    pub counters: Counters,
    /// The rules, in order.
    pub rules: Vec<Rule>,
}

/// What a built-in chain does at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// `ACCEPT`
    Accept,
    /// `DROP`
    Drop,
}

/// A parsed rule.
#[derive(Clone, Debug)]
pub struct Rule {
    /// The line it stood in, from 1.
    pub(super) line: usize,
    /// The rule as written, without counters: `-A CHAIN …`.
    pub text: Box<str>,
    /// Its counters.
    pub counters: Counters,
    /// What the kernel holds of it, where its text does not tell all: nft put it there.
    pub(crate) kernel: Option<Box<ruleset::Rule>>,
    pub(super) meaning: OnceLock<Box<Meaning>>,
}

/// The meaning of a rule.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Meaning {
    /// Conditions, in order.
    pub conditions: Vec<Condition>,
    /// The target; a rule without one only counts.
    pub target: Option<Target>,
    /// The text of `--comment`.
    pub comment: Option<Box<str>>,
    /// The part not understood; the rule may then match fewer packets than the conditions say, and act differently.
    pub problem: Option<String>,
}

impl Rule {
    /// What follows the chain's name.
    #[must_use]
    pub fn options(&self) -> &str {
        self.text.splitn(3, ' ').nth(2).unwrap_or_default()
    }

    /// The chain that it jumps to; one of the kernel's own targets is no chain.
    #[must_use]
    pub fn leads_to(&self) -> Option<&str> {
        jump_of(&self.text).filter(|to| language::target_of(to).is_none())
    }

    /// Parses the meaning.
    #[must_use]
    pub fn read(&self, family: IpFamily) -> Meaning {
        match words::words(self.options()) {
            Ok(words) => args::rule(family, words),
            Err(problem) => Meaning { problem: Some(problem), ..Meaning::default() },
        }
    }

    /// The meaning, parsed once and cached.
    pub(crate) fn meaning(&self, family: IpFamily) -> &Meaning {
        self.meaning.get_or_init(|| Box::new(self.read(family)))
    }
}

/// A condition on a packet, possibly negated.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    /// `!`
    pub negated: bool,
    /// What.
    pub test: Test,
}

/// First and last port, inclusive.
pub type Ports = (u16, u16);

/// What a condition tests.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // they are named as the options are
pub enum Test {
    Source(IpNet),
    Destination(IpNet),
    /// An address with a non-contiguous mask.
    Bits {
        of_source: bool,
        value: u128,
        mask: u128,
    },
    /// An address between two others.
    AddressRange {
        of_source: bool,
        from: IpAddr,
        to: IpAddr,
    },
    /// A trailing + stands for any rest of the name.
    InInterface(String),
    /// The same for the way out.
    OutInterface(String),
    Protocol(Protocol),
    /// A protocol that Services do not know.
    OtherProtocol,
    SourcePorts(Vec<Ports>),
    DestinationPorts(Vec<Ports>),
    /// One of both.
    EitherPorts(Vec<Ports>),
    State(Vec<CtState>),
    Connection(ConntrackMatch),
    Mark {
        value: u32,
        mask: u32,
    },
    ConnectionMark {
        value: u32,
        mask: u32,
    },
    SourceLocal,
    DestinationLocal,
    AddressKind {
        of_source: bool,
        kinds: Vec<AddressKind>,
        /// Only addresses of the interface that it came in by (`true`) or leaves by.
        limit_in: Option<bool>,
    },
    Random(f64),
    Recent(RecentMatch),
    /// The set has an entry made of these parts of the packet: `true` of its source, `false` of its destination.
    Set {
        name: String,
        of_source: Vec<bool>,
        return_nomatch: bool,
    },
    /// Ports of bridges.
    Bridged(PhysdevMatch),
    /// It belongs to a connection of a virtual server that is like that.
    Ipvs(IpvsMatch),
    /// Of these flags of TCP, exactly those are set.
    TcpFlags {
        mask: u8,
        set: u8,
    },
    /// A first packet has the options that Linux sends.
    TcpOption(u8),
    SegmentSize(u32, u32),
    /// `--chunk-types`
    Chunks {
        all: bool,
        only: bool,
        init: bool,
        others: bool,
    },
    Length(u32, u32),
    /// TTL or hop limit.
    HopLimit(u32, u32),
    TypeOfService {
        value: u8,
        mask: u8,
    },
    /// It comes from a process of this node: of root's, or not.
    Owner {
        root: bool,
    },
    /// `broadcast` or `multicast`, else `unicast`.
    PacketKind(AddressKind),
    /// Its sender is routed back to where it comes from.
    ReversePath {
        loose: bool,
    },
    /// The group of its interface.
    DeviceGroup {
        incoming: bool,
        value: u32,
        mask: u32,
    },
    /// A match that asks the sender's socket.
    SenderSocket {
        /// The match's name: `socket` or `cgroup`.
        name: String,
        /// Whether a socket that is bound to any address counts, too.
        any_address: bool,
    },
    /// Whether it holds, by an assumption.
    Assumed {
        holds: bool,
        why: &'static str,
    },
}

/// Kinds of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // they are named as the kernel names them
pub enum AddressKind {
    Unicast,
    Local,
    Broadcast,
    Multicast,
    /// One that no packet that is walked has: `BLACKHOLE`, say.
    Other,
}

/// A test on a conntrack entry beside its state.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // they are named as the options are
pub enum ConntrackMatch {
    Protocol(Option<Protocol>),
    /// An address or port of the original or the reply direction.
    Address {
        reply: bool,
        of_source: bool,
        net: IpNet,
    },
    Port {
        reply: bool,
        of_source: bool,
        ports: Ports,
    },
    /// Whether any of these holds for a connection that was seen before, and for one that was not.
    Status {
        seen: bool,
    },
    Expires,
    Reply(bool),
}

/// `-m recent`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecentMatch {
    /// The list.
    pub list: String,
    /// What is done.
    pub action: RecentAction,
    /// Only entries that were seen so many seconds ago at most.
    pub seconds: Option<u32>,
    /// Only entries that were seen so often.
    pub hits: u32,
    /// Whether it is the whole address of the sender that is remembered.
    pub of_sender: bool,
}

/// What `-m recent` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // they are named as the options are
pub enum RecentAction {
    Set,
    Check,
    Update,
    Remove,
}

/// `-m physdev`
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // they are named as the options are
pub enum PhysdevMatch {
    In(String),
    Out(String),
    IsIn,
    IsOut,
    IsBridged,
}

/// `-m ipvs`: what is given has to be so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // they are named as the options are
pub struct IpvsMatch {
    pub protocol: Option<(bool, u8)>,
    pub address: Option<(bool, IpNet)>,
    pub port: Option<(bool, u16)>,
    /// Whether it is in the direction of answers.
    pub reply: Option<(bool, bool)>,
    /// Whether it is by masquerading.
    pub masquerade: Option<(bool, bool)>,
    /// `--vportctl`: of a connection that controls others.
    pub control: bool,
    /// What is asked is negated as a whole.
    pub none: bool,
}

/// A packet's conntrack state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // they are named as the kernel names them
pub enum CtState {
    New,
    Established,
    Related,
    Invalid,
    Untracked,
    Dnat,
    Snat,
}

/// `mark = (mark & !mask) ^ value`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // as the target's options
pub struct SetMark {
    pub value: u32,
    pub mask: u32,
}

/// A copy of one mark in the other; the kernel's `nfmask`, `ctmask` and shift.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // as the target's options
pub struct CopyMark {
    pub nfmask: u32,
    pub ctmask: u32,
    /// To the left.
    pub left: u32,
    /// To the right.
    pub right: u32,
}

/// A translation with more, or less, than one address and one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // as the target's options
pub struct NatRange {
    pub addresses: Option<(IpAddr, IpAddr)>,
    pub ports: Option<Ports>,
    /// The port that the first of the range stands for.
    pub base: Option<u16>,
    pub random: bool,
}

/// The action on a matching packet.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // they are named as the targets are
pub enum Target {
    Accept,
    Drop,
    Reject,
    Return,
    /// mark = (mark & !mask) ^ value
    Mark {
        value: u32,
        mask: u32,
    },
    ConnectionMark(SetMark),
    SaveMark(CopyMark),
    RestoreMark(CopyMark),
    /// `HMARK`: any number.
    HashMark,
    Masquerade,
    /// To one address and port.
    Dnat(SocketAddr),
    DnatRange(NatRange),
    Snat(NatRange),
    /// To these ports of this node.
    Redirect(NatRange),
    Netmap(IpNet),
    /// `CT --notrack`
    NoTrack,
    /// `CT --zone`: answers are looked up in another zone.
    Zone,
    /// `NFQUEUE`: its number, and whether packets go on where no program listens.
    Queue {
        number: Option<u16>,
        bypass: bool,
    },
    /// type of service = (type & !mask) ^ value
    TypeOfService {
        value: u8,
        mask: u8,
    },
    /// TTL or hop limit.
    HopLimit,
    /// `SET`: the sets that it changes.
    ChangeSets(Vec<String>),
    Jump(String),
    Goto(String),
    /// One that decides in a way that is not followed.
    Unfollowed(String),
    /// One that neither decides nor changes anything that rules look at: `LOG`, say.
    Passive(String),
}

impl Ruleset {
    /// The family.
    #[must_use]
    pub fn family(&self) -> IpFamily {
        self.family
    }

    /// The tables' names, in order.
    pub fn tables(&self) -> impl Iterator<Item = &str> {
        self.tables.keys().map(String::as_str)
    }

    /// The chains of a table, none if it was not read.
    pub fn chains(&self, table: &str) -> impl Iterator<Item = (&str, &Chain)> {
        self.tables.get(table).into_iter().flatten().map(|(name, chain)| (&**name, chain))
    }

    /// A table, if it was read.
    #[must_use]
    pub fn table(&self, name: &str) -> Option<&Table> {
        self.tables.get(name)
    }

    /// A chain.
    #[must_use]
    pub fn chain(&self, table: &str, name: &str) -> Option<&Chain> {
        self.tables.get(table)?.get(name)
    }

    /// Gives the rules of a chain what the kernel holds of them, where their text does not tell all.
    ///
    /// # Errors
    /// If the chain's text has more or less rules than the kernel.
    pub fn attach(&mut self, table: &str, chain: &str, kernel: Vec<ruleset::Rule>) -> Result<(), String> {
        let rules = self.tables.get_mut(table).and_then(|chains| chains.get_mut(chain)).map(|chain| &mut chain.rules);
        let Some(rules) = rules else { return Ok(()) };
        if rules.len() != kernel.len() {
            let (text, held) = (rules.len(), kernel.len());
            return Err(format!(
                "table {table}, chain {chain}: iptables shows {text} rules, and the kernel has {held}"
            ));
        }
        for (rule, kernel) in rules.iter_mut().zip(kernel) {
            rule.kernel = Some(kernel).filter(|kernel| !kernel.is_told_by_iptables()).map(Box::new);
        }
        Ok(())
    }

    /// Chains accepted by `wanted` that rules of a table jump to but that were not read.
    #[must_use]
    pub fn unread(&self, table: &str, wanted: impl Fn(&str, &Rule) -> bool) -> BTreeSet<String> {
        let mut unread = BTreeSet::new();
        for (name, chain) in self.chains(table) {
            for rule in &chain.rules {
                let Some(to) = rule.leads_to() else { continue };
                if self.chain(table, to).is_none() && wanted(name, rule) {
                    unread.insert(to.to_owned());
                }
            }
        }
        unread
    }
}

/// The word after `-j` or `-g`. A comment may have those letters in it.
fn jump_of(text: &str) -> Option<&str> {
    let ends = |at: &usize| !has_open_quote(&text[..*at]);
    let last = |word: &str| text.rmatch_indices(word).map(|(at, _)| at).find(ends);
    let at = last(" -j ").or_else(|| last(" -g "))?;
    text[at + 4..].split(' ').next()
}
