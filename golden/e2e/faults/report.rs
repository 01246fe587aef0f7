//! The measurements of a fault, as cells of a Markdown table.

use std::collections::BTreeSet;
use std::time::Duration;

use super::kinds::Fault;
use super::traffic::Lost;

/// The maximum duration of a check that begins in time.
const LATE: Duration = Duration::from_secs(5);

/// The measurements of a fault.
pub struct Report {
    /// Connections tried and lost.
    pub traffic: Lost,
    /// From the end of the injection until a change was in the kernel and all addresses answered; `None`: not in time.
    pub recovery: Option<Duration>,
    /// How long it was waited for.
    pub wait: Duration,
    /// What `/healthz` answered meanwhile; `None`: no answer.
    pub health: BTreeSet<Option<u16>>,
    /// What else was seen: how many calls failed.
    pub notes: Vec<String>,
}

impl Report {
    /// The head of the table, for so many proxies.
    pub fn header(proxies: usize) -> String {
        let titles = |who: &str| format!("| {who}lost | {who}`/healthz` | {who}recovery ");
        let cells: String = ["", "beside: "].into_iter().take(proxies).map(titles).collect();
        format!("| fault | injected {cells}|\n|---|---{}|", "|---|---|---".repeat(proxies))
    }

    /// The first cells of a row.
    pub fn subject(fault: &Fault) -> String {
        format!("| {} | {} ", fault.name, fault.injected)
    }

    /// Its cells. What the fault does not allow is bold.
    pub fn cells(&self, fault: &Fault) -> String {
        let Lost { tcp, udp, sessions } = self.traffic;
        let health: Vec<String> =
            self.health.iter().map(|code| code.map_or("no answer".to_owned(), |code| code.to_string())).collect();
        let count =
            |lost: usize, is_allowed| if lost == 0 || is_allowed { lost.to_string() } else { format!("**{lost}**") };
        let lost = [count(tcp.0, fault.may_lose), count(udp.0, fault.may_lose), count(sessions.0, false)].join(", ");
        let tried = format!("{}, {}, {}", tcp.1, udp.1, sessions.1);
        let recovery = match self.recovery {
            Some(time) if time <= fault.within + LATE => format!("{:.1} s", time.as_secs_f64()),
            Some(time) => format!("**{:.1} s**", time.as_secs_f64()),
            None => format!("**not within {:?}**", self.wait),
        };
        let notes = self.notes.iter().map(|note| format!("; {note}")).collect::<String>();
        format!("| {lost} of {tried} | {} | {recovery}{notes} ", health.join(", "))
    }

    /// The cells of a proxy for which the fault could not be measured to its end.
    pub fn no_figures(why: &str) -> String {
        format!("| **{}** | | ", why.lines().next().unwrap_or_default())
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
        if self.recovery.is_none_or(|time| time > fault.within + LATE) {
            problems.push(format!("not recovered within {:?}", fault.within));
        }
        problems
    }
}
