//! In: a flow table and something that answers where a packet goes. Out: how many flows hold, or the first that does not.
//! Must not know which mode answers, except in the function that asks iptables rules.

use std::fmt::Write as _;
use std::net::SocketAddr;

use netfilter::IpFamily;

use super::machine;
use super::spelling::Expected;
use super::table::{Flow, FlowTable};
use proxier_inspect::rules::Ruleset;
use proxier_inspect::walk::{Memory, Node, Outcome, Packet, Trace, Verdict};

/// How far from equal the shares of a flow's ends may be: iptables writes 1/3 with ten digits.
const TOLERANCE: f64 = 0.0001;

/// What a table asks about one flow.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The packet.
    pub packet: &'a Packet,
    /// The node it meets.
    pub node: &'a Node,
    /// The endpoint its sender was sent to before, and how many seconds ago.
    pub remembers: Option<(SocketAddr, u32)>,
}

/// Where the packet goes.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Each possible end once.
    pub outcomes: Vec<Outcome>,
    /// What led there, for people.
    pub explanation: String,
}

impl FlowTable {
    /// Asks about every flow and compares the answers with what the table says for this mode.
    ///
    /// # Errors
    /// Names the first flow that goes another way, or that cannot be answered.
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
/// As `FlowTable::check`, or the line of the rules that the tracer does not know.
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

/// What a sender is remembered by is found by sending it there once: so the rule that writes a list and the one that
/// reads it must agree on its name.
fn answer_iptables(rules: &Ruleset, question: Question<'_>) -> Result<Trace, String> {
    let Question { packet, node, remembers } = question;
    let first = rules.trace(packet, node, &Memory::new())?;
    let Some((endpoint, ago)) = remembers else { return Ok(first) };
    let there = first.branches.iter().filter(|branch| branch.outcome.verdict == Verdict::Delivered(endpoint));
    let memory: Memory = there.flat_map(|branch| &branch.remembered).map(|list| (list.clone(), ago)).collect();
    if memory.is_empty() {
        return Err(format!("nothing remembers that this sender was sent to {endpoint}\n{first}"));
    }
    rules.trace(packet, node, &memory)
}
