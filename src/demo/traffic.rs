//! Makes connections and counts the pods that answer.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;
use tokio::net::TcpSocket;

use super::machine::Machine;

/// How long a connection may take: dropped packets are not reported.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// The result of one connection.
#[derive(Clone, Debug)]
pub struct Reply {
    /// When it began.
    pub at: Instant,
    /// The pod that answered and the client address that it saw, or the error.
    pub answer: Result<(String, IpAddr), String>,
}

impl Reply {
    /// The pod's name.
    pub fn pod(&self) -> Option<&str> {
        self.answer.as_ref().ok().map(|(pod, _)| &**pod)
    }
}

/// Connects `count` times in sequence, cycling through the sources; ends early if the receiver is dropped.
pub fn stream(
    machine: &Machine,
    target: SocketAddr,
    sources: Vec<IpAddr>,
    count: usize,
    pause: Duration,
) -> Receiver<Reply> {
    let (sender, replies) = mpsc::channel();
    machine.start(move || {
        // Without a runtime no replies follow, which the receiver notices.
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
    answer.ok_or_else(|| std::io::Error::other(format!("unexpected answer: {text:?}")))
}

/// The number of replies.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Replies by pod, with 0 for expected pods that did not answer.
    pub pods: BTreeMap<String, usize>,
    /// Errors and their number.
    pub failures: BTreeMap<String, usize>,
}

impl Tally {
    /// No replies of these pods.
    pub fn of(pods: &[String]) -> Self {
        Self { pods: pods.iter().map(|pod| (pod.clone(), 0)).collect(), failures: BTreeMap::new() }
    }

    /// Counts a reply.
    pub fn add(&mut self, reply: &Reply) {
        match &reply.answer {
            Ok((pod, _)) => *self.pods.entry(pod.clone()).or_default() += 1,
            Err(error) => *self.failures.entry(error.clone()).or_default() += 1,
        }
    }

    /// The number of answered connections.
    pub fn answered(&self) -> usize {
        self.pods.values().sum()
    }

    /// Whether all connections were answered, and evenly within the limits of chance.
    pub fn is_fair(&self) -> bool {
        let range = fair_range(self.answered(), self.pods.len());
        self.failures.is_empty() && self.answered() > 0 && self.pods.values().all(|count| range.contains(count))
    }
}

/// The expected share of a pod, within seven standard deviations: exceeded with a probability below 1 in 10^10.
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
    fn unbalanced_replies_are_not_fair() {
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
