//! What was measured of one fault, as a row of a Markdown table.

use std::collections::BTreeSet;
use std::time::Duration;

use super::kinds::Fault;
use super::traffic::Lost;

/// What came of a fault.
pub struct Report {
    /// Connections tried and lost.
    pub traffic: Lost,
    /// From the end of the injection until a change was in the kernel and all addresses answered; `None`: not in time.
    pub recovery: Option<Duration>,
    /// What `/healthz` answered meanwhile; `None`: no answer.
    pub health: BTreeSet<Option<u16>>,
}

impl Report {
    /// The head of the table.
    pub const HEADER: &str = "| fault | injected | new TCP lost | new UDP lost | open connections lost | `/healthz` | recovery |\n\
                              |---|---|---|---|---|---|---|";

    /// Its row.
    pub fn row(&self, fault: &Fault) -> String {
        let Lost { tcp, udp, sessions } = self.traffic;
        let health: Vec<String> =
            self.health.iter().map(|code| code.map_or("no answer".to_owned(), |code| code.to_string())).collect();
        let recovery = match self.recovery {
            Some(time) => format!("{:.1} s", time.as_secs_f64()),
            None => format!("not within {:?}", fault.within),
        };
        let of = |(lost, tried)| format!("{lost} of {tried}");
        let (name, injected, health) = (fault.name, fault.injected, health.join(", "));
        format!("| {name} | {injected} | {} | {} | {} | {health} | {recovery} |", of(tcp), of(udp), of(sessions))
    }

    /// Where it is worse than the fault allows.
    pub fn problems(&self, fault: &Fault) -> Vec<String> {
        let Lost { tcp, udp, sessions } = self.traffic;
        let mut problems = Vec::new();
        for (what, (lost, _)) in [("new TCP connections", tcp), ("new UDP flows", udp)] {
            if lost > 0 && !fault.may_lose {
                problems.push(format!("{lost} {what} lost"));
            }
        }
        if sessions.0 > 0 {
            problems.push(format!("{} open connections lost", sessions.0));
        }
        if self.recovery.is_none() {
            problems.push(format!("not recovered within {:?}", fault.within));
        }
        problems
    }
}
