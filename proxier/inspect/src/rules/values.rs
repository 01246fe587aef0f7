//! The values that a ruleset's text is read into.
//!
//! In: nothing. Out: tables, chains, rules, conditions, targets. Must not know: how the text is written, or how rules
//! are walked. What a rule means is read from its text when somebody asks: a big table has hundreds of thousands.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::OnceLock;

use ipnet::IpNet;
use netfilter::Counters;
use netfilter::IpFamily;
use netfilter::ipvs::ServerKey;

use super::args;
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

/// A rule as it was read.
#[derive(Clone, Debug)]
pub struct Rule {
    /// The line it stood in, from 1.
    pub(super) line: usize,
    /// The rule as written, without counters: `-A CHAIN …`.
    pub text: Box<str>,
    /// What it counted.
    pub counters: Counters,
    pub(super) meaning: OnceLock<Box<Meaning>>,
}

/// What a rule's words say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Meaning {
    /// What a packet must be like, in order.
    pub conditions: Vec<Condition>,
    /// What happens to it; a rule without a target only counts.
    pub target: Option<Target>,
    /// The text of `--comment`.
    pub comment: Option<Box<str>>,
    /// What of the rule is not understood; then it may match less than the conditions say, and do something else.
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
        jump_of(&self.text).filter(|to| !args::is_target(to))
    }

    /// What it means, read anew.
    #[must_use]
    pub fn read(&self, family: IpFamily) -> Meaning {
        match words::words(self.options()) {
            Ok(words) => args::rule(family, words),
            Err(problem) => Meaning { problem: Some(problem), ..Meaning::default() },
        }
    }

    /// What it means, kept once it was read.
    pub(crate) fn meaning(&self, family: IpFamily) -> &Meaning {
        self.meaning.get_or_init(|| Box::new(self.read(family)))
    }
}

/// Something that a packet must be like, or with `!` must not.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    /// `!`
    pub negated: bool,
    /// What.
    pub test: Test,
}

/// From and to, both included.
pub type Ports = (u16, u16);

/// What a condition looks at.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // they are named as the options are
pub enum Test {
    Source(IpNet),
    Destination(IpNet),
    /// A trailing + stands for any rest of the name.
    InInterface(String),
    /// The same for the way out.
    OutInterface(String),
    Protocol(Protocol),
    /// A protocol that Services do not know.
    OtherProtocol,
    SourcePorts(Vec<Ports>),
    DestinationPorts(Vec<Ports>),
    State(Vec<State>),
    Mark {
        value: u32,
        mask: u32,
    },
    SourceLocal,
    DestinationLocal,
    Random(f64),
    RecentCheck {
        list: String,
        seconds: Option<u32>,
    },
    RecentSet {
        list: String,
    },
    /// The set has an entry made of these parts of the packet: `true` of its source, `false` of its destination.
    Set {
        name: String,
        of_source: Vec<bool>,
    },
    /// It came in by a port of a bridge.
    FromBridge,
    /// It belongs to a connection of that virtual server.
    Ipvs(ServerKey),
    /// Of these flags of TCP, exactly those are set.
    TcpFlags {
        mask: u8,
        set: u8,
    },
}

/// What conntrack says of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // they are named as the kernel names them
pub enum State {
    New,
    Established,
    Related,
    Invalid,
    Untracked,
    Dnat,
}

/// What happens to a packet that matched.
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
    Masquerade,
    Dnat(SocketAddr),
    /// `CT --notrack`
    NoTrack,
    Jump(String),
    Goto(String),
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

    /// Chains that rules of a table jump to and that were not read, of those that `wanted` accepts.
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

/// The word after `-j` or `-g`.
fn jump_of(text: &str) -> Option<&str> {
    let at = text.rfind(" -j ").or_else(|| text.rfind(" -g "))?;
    text[at + 4..].split(' ').next()
}
