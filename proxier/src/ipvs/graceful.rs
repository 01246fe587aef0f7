//! Graceful termination: real servers with weight 0 that wait for their last connection.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use netfilter::ipvs::{ServerKey, TCP};

/// The graceful termination period of a real server, as in kube-proxy.
pub const GRACEFUL_TERMINATION_PERIOD: Duration = Duration::from_mins(15);

/// The interval of checks for remaining connections.
const INTERVAL: Duration = Duration::from_secs(5);

/// Whether real servers of a protocol are terminated gracefully: TCP only, as in kube-proxy.
///
/// A UDP or SCTP client without replies retries, and its next packet goes to another real server
/// (`expire_nodest_conn`).
#[must_use]
pub fn is_graceful(protocol: u8) -> bool {
    protocol == TCP
}

/// The deadline of each terminating real server.
pub type Deadlines = BTreeMap<SocketAddr, Instant>;

/// All terminating real servers, by virtual server.
#[derive(Debug, Default)]
pub struct Draining {
    servers: BTreeMap<ServerKey, Deadlines>,
    next_check: Option<Instant>,
}

impl Draining {
    /// The terminating real servers of a virtual server.
    #[must_use]
    pub fn of(&self, key: ServerKey) -> Option<&Deadlines> {
        self.servers.get(&key)
    }

    /// Replaces the terminating real servers of a virtual server.
    pub fn set(&mut self, key: ServerKey, deadlines: Deadlines, now: Instant) {
        if deadlines.is_empty() {
            self.servers.remove(&key);
        } else {
            self.servers.insert(key, deadlines);
            self.next_check.get_or_insert(now + INTERVAL);
        }
        if self.servers.is_empty() {
            self.next_check = None;
        }
    }

    /// The virtual servers that have terminating real servers.
    #[must_use]
    pub fn keys(&self) -> BTreeSet<ServerKey> {
        self.servers.keys().copied().collect()
    }

    /// When the next check is due, if any real server is terminating.
    #[must_use]
    pub fn next_check(&self) -> Option<Instant> {
        self.next_check
    }

    /// Records a check that began at `now`; `effort` is the least time until the next one.
    pub fn checked(&mut self, now: Instant, effort: Duration) {
        self.next_check = (!self.servers.is_empty()).then(|| now + INTERVAL.max(effort));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_are_due_only_while_real_servers_terminate() {
        let now = Instant::now();
        let key = ServerKey { address: "10.0.0.1:80".parse().expect("an address"), protocol: TCP };
        let real = "10.1.0.1:80".parse().expect("an address");
        let mut draining = Draining::default();
        draining.set(key, Deadlines::from([(real, now + GRACEFUL_TERMINATION_PERIOD)]), now);
        assert_eq!(draining.next_check(), Some(now + INTERVAL));
        draining.checked(now + INTERVAL, Duration::from_mins(1));
        assert_eq!(
            draining.next_check(),
            Some(now + INTERVAL + Duration::from_mins(1)),
            "an expensive check is repeated later"
        );
        draining.set(key, Deadlines::new(), now);
        assert_eq!((draining.next_check(), draining.keys().len()), (None, 0));
    }
}
