//! The differences between two surveys of one plan.

use std::collections::BTreeSet;
use std::fmt;

use super::node::Outcome;
use super::packet::Refusal;
use super::plan::Question;
use super::survey::{Answer, Survey};

/// A question with different answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The question.
    pub question: Question,
    /// The first survey's answer.
    pub left: Answer,
    /// The second survey's answer.
    pub right: Answer,
}

/// All questions with different answers.
#[must_use]
pub fn differences(left: &Survey, right: &Survey) -> Vec<Difference> {
    let sticky: BTreeSet<_> = left
        .iter()
        .filter(|(_, answer)| answer.sticky)
        .map(|(question, _)| (question.to, question.transport))
        .collect();
    let all: BTreeSet<&Question> = left.keys().chain(right.keys()).collect();
    let differs = |question: &&Question| {
        let [one, other] = [left, right].map(|survey| survey.get(*question).cloned().unwrap_or_default());
        // With affinity, a single client gets one endpoint by chance; only its arrival is compared.
        let alone = sticky.contains(&(question.to, question.transport)) && one.outcomes.len() == 1;
        let equal = one == other || (alone && other.outcomes.len() == 1 && arrives(&one) && arrives(&other));
        (!equal).then(|| Difference { question: (*question).clone(), left: one, right: other })
    };
    all.iter().filter_map(differs).collect()
}

fn arrives(answer: &Answer) -> bool {
    answer.outcomes.iter().all(|outcome| matches!(outcome, Outcome::Arrived { .. }))
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n  - {}\n  + {}", self.question, self.left, self.right)
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let outcomes: Vec<String> = self.outcomes.iter().map(ToString::to_string).collect();
        write!(f, "{}{}", outcomes.join(", "), if self.sticky { ", one for each client" } else { "" })
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Arrived { at, masqueraded: None } => write!(f, "{at}"),
            Self::Arrived { at, masqueraded: Some(by) } => write!(f, "{at} from {by}"),
            Self::Refused(Refusal::Reset) => f.write_str("reset"),
            Self::Refused(Refusal::Icmp(kind, code)) => write!(f, "refused by ICMP {kind}/{code}"),
            Self::Dropped => f.write_str("dropped"),
        }
    }
}
