//! The result of a trace, the same for every mode, and its text form.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use netfilter::ipset::SetQuery;
use netfilter::ipvs::Forward;
use netfilter::nft::ruleset::{TableId, UnreadPart};
use netfilter::route::RouteQuery;

/// The end of a packet's path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Sent on to this endpoint instead of its original destination.
    Delivered(SocketAddr),
    /// Discarded with an error to the sender.
    Rejected,
    /// Discarded silently.
    Dropped,
    /// Accepted without a change of its destination.
    Untouched,
    /// Forwarded to this real server untranslated, by direct routing or a tunnel: the real server needs the destination
    /// address too. The rules that the packet meets from there on are not followed.
    Forwarded(SocketAddr, Forward),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Delivered(to) => write!(f, "{to}"),
            Self::Rejected => f.write_str("reject"),
            Self::Dropped => f.write_str("drop"),
            Self::Untouched => f.write_str("untouched"),
            Self::Forwarded(to, how) => write!(f, "{to} by {}", how.name()),
        }
    }
}

/// One possible end of a packet, with its probability.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The end.
    pub verdict: Verdict,
    /// Whether the sender's address was replaced by the node's.
    pub masqueraded: bool,
    /// Between 0 and 1; the outcomes of one packet sum to 1.
    pub probability: f64,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.verdict)?;
        if self.masqueraded {
            f.write_str(", masqueraded")?;
        }
        if self.probability < 0.9999 {
            write!(f, " ({:.1}%)", self.probability * 100.0)?;
        }
        Ok(())
    }
}

/// A rule that the packet matched.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Table and hook, as in "nat PREROUTING"; in nftables table, chain and hook, as in
    /// "ip kube-proxy services (prerouting)".
    pub hook: String,
    /// The rule as written.
    pub rule: String,
    /// The probability of the match; 1 is certain.
    pub chance: f64,
    /// The rule's handle, in nftables; 0 for a chain's policy, which no rule has.
    pub handle: Option<u64>,
    /// The elements of sets and maps that matched, in nftables.
    pub elements: Vec<String>,
}

impl Step {
    /// A step at an iptables rule or a virtual server.
    pub(super) fn of(hook: String, rule: &str, chance: f64) -> Self {
        Self { hook, rule: rule.to_owned(), chance, handle: None, elements: Vec::new() }
    }
}

/// What a doubt is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DoubtKind {
    /// A rule that cannot be decided.
    Rule,
    /// A chain that is not followed.
    Chain,
    /// Whether legacy iptables or nf_tables runs first.
    Order,
    /// Which of several tables runs first.
    TableOrder,
}

/// A rule that cannot be decided, or another reason why the outcome may differ.
#[derive(Clone, Debug, PartialEq)]
pub struct Doubt {
    /// What it is about.
    pub kind: DoubtKind,
    /// Table and hook, as in "nat PREROUTING".
    pub hook: String,
    /// The rule as written.
    pub rule: String,
    /// Why the rule cannot be decided.
    pub why: String,
    /// How the packet ends if the rule matches, where known.
    pub otherwise: Vec<Outcome>,
}

impl Doubt {
    /// A doubt without known outcomes.
    pub(super) fn new(hook: String, rule: impl Into<String>, why: impl Into<String>) -> Self {
        Self { kind: DoubtKind::Rule, hook, rule: rule.into(), why: why.into(), otherwise: Vec::new() }
    }

    /// The condition under which the outcome differs, as in "unless …".
    #[must_use]
    pub fn condition(&self) -> String {
        match self.kind {
            DoubtKind::Rule => format!("a rule in {} matches that cannot be decided", self.hook),
            DoubtKind::Chain => format!("chain {} decides otherwise, which is not followed", self.hook),
            DoubtKind::Order | DoubtKind::TableOrder => self.rule.clone(),
        }
    }
}

/// A rule that was decided by an assumption.
#[derive(Clone, Debug, PartialEq)]
pub struct Assumption {
    /// Table and hook, as in "nat PREROUTING".
    pub hook: String,
    /// The rule as written.
    pub rule: String,
    /// What is assumed.
    pub what: String,
    /// How the packet ends if that is wrong, where it ends otherwise then.
    pub otherwise: Vec<Outcome>,
}

/// One path through the rules, with every random choice made.
#[derive(Clone, Debug)]
pub struct Branch {
    /// Its end, and the probability of the path.
    pub outcome: Outcome,
    /// The `recent` lists that the sender was added to.
    pub remembered: BTreeSet<String>,
    /// The rules that matched, in order.
    pub steps: Vec<Step>,
    /// Undecidable rules, treated as not matching, that would change the outcome.
    pub doubts: Vec<Doubt>,
    /// The built-in chain of iptables whose policy dropped the packet: table and chain, as in "filter FORWARD".
    pub policy: Option<String>,
    /// The source that rules gave it, if that is no address of this node: answers go there.
    pub foreign_source: Option<IpAddr>,
    /// The rule that stops the error which tells the sender of a refusal: the packet ends as if it were dropped.
    pub silenced: Option<Step>,
    /// Where and why routing stopped the packet.
    pub unrouted: Option<super::Unrouted>,
    /// Undecidable rules that would not change the outcome.
    pub harmless: Vec<Doubt>,
    /// Rules that were decided by an assumption.
    pub assumed: Vec<Assumption>,
}

impl Branch {
    /// Whether every packet of this path ends so: no undecidable rule and no assumption about a limit changes that.
    #[must_use]
    pub fn is_certain(&self) -> bool {
        self.doubts.is_empty() && self.assumed.iter().all(|assumed| assumed.otherwise.is_empty())
    }
}

/// All paths of one packet.
#[derive(Clone, Debug)]
pub struct Trace {
    /// The paths; their probabilities sum to 1.
    pub branches: Vec<Branch>,
    /// The `recent` lists that rules looked up for the sender.
    pub asked: BTreeSet<String>,
    /// Lookups in sets that were not read.
    pub queries: BTreeSet<SetQuery>,
    /// Route lookups without an answer, which the node's table decided.
    pub routes: BTreeSet<RouteQuery>,
    /// Chains that rules jump to but that were not read: `(table, chain)`.
    pub missing: BTreeSet<(String, String)>,
    /// Parts of nf_tables that decide but were not read: without them the paths may differ from the kernel's.
    pub lacks: BTreeSet<UnreadPart>,
    /// Dormant tables at the hooks that the packet passes: the kernel runs none of their chains.
    pub dormant: BTreeSet<TableId>,
}

impl Trace {
    /// Whether the paths are those of the kernel, given the assumptions: no outcome depends on an undecidable rule or on
    /// something that was not read.
    #[must_use]
    pub fn is_certain(&self) -> bool {
        let sure = |branch: &Branch| branch.doubts.is_empty();
        self.branches.iter().all(sure) && self.missing.is_empty() && self.lacks.is_empty()
    }

    /// The paths merged by outcome, in a fixed order.
    #[must_use]
    pub fn outcomes(&self) -> Vec<Outcome> {
        let mut outcomes: Vec<Outcome> = Vec::new();
        for Branch { outcome, .. } in &self.branches {
            match outcomes.iter_mut().find(|o| (o.verdict, o.masqueraded) == (outcome.verdict, outcome.masqueraded)) {
                Some(known) => known.probability += outcome.probability,
                None => outcomes.push(outcome.clone()),
            }
        }
        outcomes.sort_by_key(|o| (o.verdict, o.masqueraded));
        outcomes
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for branch in &self.branches {
            writeln!(f, "{}:", branch.outcome)?;
            if branch.steps.is_empty() {
                writeln!(f, "  no rule matches")?;
            }
            for step in &branch.steps {
                writeln!(f, "  {:<16} {}", step.hook, step.rule)?;
            }
        }
        Ok(())
    }
}
