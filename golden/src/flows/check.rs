//! Checks the flows of a table against a source of answers: rules that are traced, or real packets.

use std::fmt::Write as _;
use std::net::SocketAddr;

use netfilter::IpFamily;

use super::machine;
use super::spelling::Expected;
use super::table::{Flow, FlowTable};
use proxier_inspect::rules::Ruleset;
use proxier_inspect::walk::{Node, Outcome, Packet, RecentLists, Trace, Verdict};

/// The tolerance of outcome shares: iptables writes 1/3 with ten digits.
const TOLERANCE: f64 = 0.0001;

/// A packet of a flow table with its context.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The packet.
    pub packet: &'a Packet,
    /// The node that receives it.
    pub node: &'a Node,
    /// The sender's affinity: an endpoint, and how many seconds ago it was chosen.
    pub remembers: Option<(SocketAddr, u32)>,
}

/// The outcome of a packet.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The possible outcomes, each once.
    pub outcomes: Vec<Outcome>,
    /// The rules that led there, for messages.
    pub explanation: String,
}

impl FlowTable {
    /// Compares the answers for every flow with the table, for a mode.
    ///
    /// # Errors
    /// The first flow with another outcome, or without an answer.
    pub fn check(
        &self,
        mode: &str,
        ask: &mut dyn FnMut(Question<'_>) -> Result<Answer, String>,
    ) -> Result<usize, String> {
        let node = machine::node();
        for flow in &self.flows {
            let question = Question { packet: &flow.packet, node: &node, remembers: flow.remembers };
            let answer = ask(question).map_err(|error| format!("{}: {error}", flow.title()))?;
            let expect = flow.modes.get(mode).unwrap_or(&flow.expect);
            if !agrees(expect, &answer.outcomes) {
                return Err(complaint(flow, expect, &answer));
            }
        }
        Ok(self.flows.len())
    }
}

impl Flow {
    fn title(&self) -> String {
        let mut title = format!("{} -> {} ({})", self.from, self.to, self.packet);
        if let Some((endpoint, ago)) = self.remembers {
            let _ = write!(title, ", sent to {endpoint} {ago} seconds before");
        }
        title
    }
}

fn agrees(expect: &[Expected], outcomes: &[Outcome]) -> bool {
    let mut found: Vec<_> = outcomes.iter().collect();
    found.sort_by_key(|outcome| (outcome.verdict, outcome.masqueraded));
    let share = 1.0 / f64::from(u32::try_from(expect.len()).unwrap_or(u32::MAX));
    found.len() == expect.len()
        && found.iter().zip(expect).all(|(outcome, expected)| {
            (outcome.verdict, outcome.masqueraded) == (expected.verdict, expected.masqueraded)
                && (outcome.probability - share).abs() < TOLERANCE
        })
}

fn complaint(flow: &Flow, expect: &[Expected], answer: &Answer) -> String {
    let list = |words: Vec<String>| words.join(" | ");
    format!(
        "{}\n  expected {}\n  found    {}\n{}",
        flow.title(),
        list(expect.iter().map(ToString::to_string).collect()),
        list(answer.outcomes.iter().map(ToString::to_string).collect()),
        answer.explanation
    )
}

/// Checks the table against iptables and ip6tables rules.
///
/// # Errors
/// As [`FlowTable::check`], or a line that the tracer does not support.
pub fn check_iptables(table: &FlowTable, rules_text_v4: &str, rules_text_v6: &str) -> Result<usize, String> {
    let parse = |family, text| Ruleset::parse(family, text).map_err(|error| format!("{family} rules, {error}"));
    let v4 = parse(IpFamily::V4, rules_text_v4)?;
    let v6 = parse(IpFamily::V6, rules_text_v6)?;
    table.check("iptables", &mut |question| {
        let rules = if question.packet.source.is_ipv4() { &v4 } else { &v6 };
        let trace = answer_iptables(rules, question)?;
        Ok(Answer { outcomes: trace.outcomes(), explanation: trace.to_string() })
    })
}

/// Traces a packet through iptables rules.
///
/// Affinity is set up by tracing an earlier packet, so that the rules that write and read a list must agree on its
/// name.
fn answer_iptables(rules: &Ruleset, question: Question<'_>) -> Result<Trace, String> {
    let Question { packet, node, remembers } = question;
    let first = rules.trace(packet, node, &RecentLists::new())?;
    let Some((endpoint, ago)) = remembers else { return Ok(first) };
    let there = first.branches.iter().filter(|branch| branch.outcome.verdict == Verdict::Delivered(endpoint));
    let memory: RecentLists = there.flat_map(|branch| &branch.remembered).map(|list| (list.clone(), ago)).collect();
    if memory.is_empty() {
        return Err(format!("nothing remembers that this sender was sent to {endpoint}\n{first}"));
    }
    rules.trace(packet, node, &memory)
}
