//! Connections, and who answered them.
//!
//! In: a machine to send from, an address to send to. Out: replies, counted by pod. Must not know: namespaces, rules.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;
use tokio::net::TcpSocket;

use super::machine::Machine;

/// A packet that is dropped tells nobody.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// What came of one connection.
#[derive(Clone, Debug)]
pub struct Reply {
    /// When it was begun.
    pub at: Instant,
    /// Who answered and whom it saw as its client, or what went wrong.
    pub answer: Result<(String, IpAddr), String>,
}

impl Reply {
    /// The pod's name.
    pub fn pod(&self) -> Option<&str> {
        self.answer.as_ref().ok().map(|(pod, _)| &**pod)
    }
}

/// Connects `count` times, one after the other, taking the sources in turn; ends early if nobody listens any more.
pub fn stream(
    machine: &Machine,
    target: SocketAddr,
    sources: Vec<IpAddr>,
    count: usize,
    pause: Duration,
) -> Receiver<Reply> {
    let (sender, replies) = mpsc::channel();
    machine.start(move || {
        // Without a runtime, no replies: that is noticed.
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        for source in sources.iter().cycle().take(count) {
            let at = Instant::now();
            let asked = runtime.block_on(async { tokio::time::timeout(CONNECT_TIMEOUT, ask(*source, target)).await });
            let answer = match asked {
                Ok(Ok(answer)) => Ok(answer),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err(format!("no answer in {CONNECT_TIMEOUT:?}")),
            };
            if sender.send(Reply { at, answer }).is_err() {
                return;
            }
            std::thread::sleep(pause);
        }
    });
    replies
}

async fn ask(source: IpAddr, target: SocketAddr) -> std::io::Result<(String, IpAddr)> {
    let socket = if target.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.bind(SocketAddr::new(source, 0))?;
    let mut text = String::new();
    socket.connect(target).await?.read_to_string(&mut text).await?;
    let answer = text.trim().split_once(' ').and_then(|(pod, peer)| Some((pod.to_owned(), peer.parse().ok()?)));
    answer.ok_or_else(|| std::io::Error::other(format!("a strange answer: {text:?}")))
}

/// Replies, counted.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// By pod: those that should answer, also if they did not, and those that should not have.
    pub pods: BTreeMap<String, usize>,
    /// What went wrong, and how often.
    pub failures: BTreeMap<String, usize>,
}

impl Tally {
    /// Nothing counted yet.
    pub fn of(pods: &[String]) -> Self {
        Self { pods: pods.iter().map(|pod| (pod.clone(), 0)).collect(), failures: BTreeMap::new() }
    }

    /// Counts one.
    pub fn add(&mut self, reply: &Reply) {
        match &reply.answer {
            Ok((pod, _)) => *self.pods.entry(pod.clone()).or_default() += 1,
            Err(error) => *self.failures.entry(error.clone()).or_default() += 1,
        }
    }

    /// All that were answered.
    pub fn answered(&self) -> usize {
        self.pods.values().sum()
    }

    /// Whether all connections were answered, and evenly, as far as chance allows.
    pub fn is_fair(&self) -> bool {
        let range = fair_range(self.answered(), self.pods.len());
        self.failures.is_empty() && self.answered() > 0 && self.pods.values().all(|count| range.contains(count))
    }
}

/// What a pod of several gets of so many connections, but for a chance below 1 in 10^10: seven standard deviations.
pub fn fair_range(connections: usize, pods: usize) -> std::ops::RangeInclusive<usize> {
    // Numbers this small are exact.
    #[allow(clippy::cast_precision_loss)]
    let (n, p) = (connections as f64, 1.0 / pods.max(1) as f64);
    let spread = 7.0 * (n * p * (1.0 - p)).sqrt();
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let bound = |value: f64| value.max(0.0) as usize;
    bound((n * p - spread).ceil())..=bound(n * p + spread)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The chance that a pod's share is outside the range.
    fn chance_outside(connections: usize, pods: usize) -> f64 {
        let p = 1.0 / pods as f64;
        let range = fair_range(connections, pods);
        let mut chance = (1.0 - p).powi(i32::try_from(connections).expect("small"));
        let mut outside = 0.0;
        for count in 0..=connections {
            if !range.contains(&count) {
                outside += chance;
            }
            chance *= (connections - count) as f64 / (count + 1) as f64 * p / (1.0 - p);
        }
        outside
    }

    #[test]
    fn false_alarms_are_rarer_than_one_in_a_thousand_million_runs() {
        // Three pods, or two, in each of at most six counts.
        for (connections, pods) in [(300, 3), (300, 2), (200, 3), (200, 2), (150, 3), (150, 2)] {
            let chance = chance_outside(connections, pods);
            assert!(chance * 18.0 < 1e-9, "{connections} over {pods}: {chance:e}");
        }
    }

    #[test]
    fn what_is_not_balanced_is_not_fair() {
        let pods = ["a", "b", "c"].map(str::to_owned);
        let mut tally = Tally::of(&pods);
        tally.pods.insert("a".to_owned(), 150);
        tally.pods.insert("b".to_owned(), 150);
        assert!(!tally.is_fair());
        tally.pods.insert("c".to_owned(), 130);
        assert!(tally.is_fair());
        tally.failures.insert("refused".to_owned(), 1);
        assert!(!tally.is_fair());
    }
}
