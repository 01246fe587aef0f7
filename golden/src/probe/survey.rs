//! Samples every question of a plan until all random choices have been observed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use super::Entry;
use super::node::{Node, Outcome};
use super::packet::{Probe, Stage};
use super::plan::{Client, Plan, Question};

/// The probability of missing an outcome in one question.
const RISK: f64 = 1e-9;
const BATCH: usize = 1000;
const ROUND: usize = 32;

/// The outcomes of one question.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answer {
    /// The possible outcomes.
    pub outcomes: BTreeSet<Outcome>,
    /// Whether one client always gets the same of several outcomes.
    pub sticky: bool,
}

/// The answers to all questions.
pub type Survey = BTreeMap<Question, Answer>;

/// Samples all questions of a plan.
///
/// Sampling continues until one more equally likely outcome would have been observed with probability 1 - `RISK`.
#[must_use]
pub fn survey(node: &Node, plan: &Plan) -> Survey {
    let mut asker = PacketSampler { node, number: 0, memory: node.memory() };
    let mut survey = Survey::new();
    for target in &plan.targets {
        asker.target(&plan.questions(*target), &mut survey);
        // Affinity across addresses of one client is not tested.
        node.forget_clients(&asker.memory);
    }
    survey
}

struct PacketSampler<'a> {
    node: &'a Node,
    number: u32,
    /// The commands that clear session affinity.
    memory: String,
}

impl PacketSampler<'_> {
    /// Samples the questions of all clients about one target.
    fn target(&mut self, questions: &[(&Client, Question)], survey: &mut Survey) {
        let mut found: Vec<BTreeSet<Outcome>> = vec![BTreeSet::new(); questions.len()];
        let mut open: Vec<usize> = (0..questions.len()).collect();
        // With affinity, a repeated client adds nothing: then all clients must be new.
        let pools = questions.iter().map(|(client, _)| client.pool.len() - 1);
        let lap = pools.filter(|others| *others >= ROUND).min().map_or(usize::MAX, |others| others / ROUND * ROUND);
        let mut samples = 0;
        let asked = |at: usize, nth: usize| (at, questions[at].0, &questions[at].1, nth);
        while !open.is_empty() {
            let round: Vec<_> = open.iter().flat_map(|at| (0..ROUND).map(|i| asked(*at, samples + i))).collect();
            for (at, outcome) in self.ask(&round) {
                found[at].insert(outcome);
            }
            samples += ROUND;
            if samples.is_multiple_of(lap) {
                self.node.forget_clients(&self.memory);
            }
            open.retain(|at| samples < enough(found[*at].len() + 1));
        }
        // A client that was not sampled.
        let many = (0..questions.len()).filter(|at| found[*at].len() > 1 && questions[*at].0.pool.len() > 1);
        let again: Vec<_> = many.flat_map(|at| (0..ROUND * 2).map(move |_| asked(at, usize::MAX))).collect();
        let mut single: BTreeMap<usize, BTreeSet<Outcome>> = BTreeMap::new();
        for (at, outcome) in self.ask(&again) {
            single.entry(at).or_default().insert(outcome);
        }
        for (at, ((_, question), outcomes)) in questions.iter().zip(found).enumerate() {
            let sticky = single.get(&at).is_some_and(|outcomes| outcomes.len() == 1);
            survey.insert(question.clone(), Answer { outcomes, sticky });
        }
    }

    /// Sends each question once, from the n-th address of its client's pool.
    fn ask(&mut self, asked: &[(usize, &Client, &Question, usize)]) -> Vec<(usize, Outcome)> {
        let mut all = Vec::with_capacity(asked.len());
        for batch in asked.chunks(BATCH) {
            let probes: Vec<(Entry, Probe)> = batch
                .iter()
                .map(|(_, client, question, nth)| {
                    self.number += 1;
                    let last = client.pool.len() - 1;
                    let from = client.pool[if *nth == usize::MAX { last } else { nth % last.max(1) }];
                    // Ports wrap around after 60,000 probes, when no earlier connection may be left.
                    let port = u16::try_from(1024 + self.number % 60_000).expect("below 65,536");
                    if self.number.is_multiple_of(60_000) {
                        self.node.forget();
                    }
                    let from = SocketAddr::new(from, port);
                    let Question { to, transport, .. } = **question;
                    (client.entry, Probe { from, to, transport, tag: self.number, stage: Stage::First })
                })
                .collect();
            all.extend(batch.iter().map(|asked| asked.0).zip(self.node.send(&probes)));
        }
        all
    }
}

/// The number of samples that shows each of n equally likely outcomes.
pub(crate) fn enough(n: usize) -> usize {
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    // Small and positive.
    let samples = |n: f64| ((n / RISK).ln() / -(1.0 - 1.0 / n).ln()).ceil() as usize;
    samples(u32::try_from(n.max(2)).map_or(f64::MAX, f64::from))
}
