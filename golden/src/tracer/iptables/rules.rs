//! In: nothing. Out: the values a ruleset's text is read into.
//! Must not know how the text is written, nor how rules are walked.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use ipnet::IpNet;

use crate::tracer::Protocol;

/// Which of iptables and ip6tables the rules are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// iptables
    V4,
    /// ip6tables
    V6,
}

/// All tables of one family.
#[derive(Clone, Debug)]
pub struct Ruleset {
    pub(super) family: Family,
    pub(super) tables: BTreeMap<String, Table>,
}

/// The chains of one table, the built-in ones always among them.
pub(super) type Table = BTreeMap<String, Chain>;

/// A chain: what its rules do not decide, its policy does, if it is a built-in one.
#[derive(Clone, Debug, Default)]
pub(super) struct Chain {
    pub(super) policy: Option<Policy>,
    pub(super) rules: Vec<Rule>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Policy {
    Accept,
    Drop,
}

#[derive(Clone, Debug)]
pub(super) struct Rule {
    pub(super) line: usize,
    pub(super) text: String,
    pub(super) conditions: Vec<Condition>,
    /// A rule without a target only counts.
    pub(super) target: Option<Target>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Condition {
    pub(super) negated: bool,
    pub(super) test: Test,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Test {
    Source(IpNet),
    Destination(IpNet),
    /// A trailing + stands for any rest of the name.
    InInterface(String),
    Protocol(Protocol),
    SourcePort(u16),
    DestinationPort(u16),
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
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    New,
    Established,
    Related,
    Invalid,
    Dnat,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
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
    Jump(String),
}
