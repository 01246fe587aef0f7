//! Real servers that get no new connections and wait for their last one to end.
//!
//! In: which ones began to wait, and when. Out: which may wait no longer, and when to look again.
//! Must not know: why they have to go, or how connections are counted.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use netfilter::ipvs::{ServerKey, TCP};

/// How long at most connections may keep a real server that has to go, as in kube-proxy.
pub const GRACEFUL_TERMINATION_PERIOD: Duration = Duration::from_mins(15);

/// How often is looked whether the last connection ended.
const INTERVAL: Duration = Duration::from_secs(5);

/// Whether connections of a protocol are worth waiting for. A UDP or SCTP client that hears nothing more tries again,
/// and is led elsewhere with its next packet (`expire_nodest_conn`); kube-proxy waits for TCP alone.
#[must_use]
pub fn is_graceful(protocol: u8) -> bool {
    protocol == TCP
}

/// Until when at most each may wait.
pub type Deadlines = BTreeMap<SocketAddr, Instant>;

/// All that wait, by virtual server.
#[derive(Debug, Default)]
pub struct Draining {
    servers: BTreeMap<ServerKey, Deadlines>,
    next_check: Option<Instant>,
}

impl Draining {
    /// Those of a virtual server that wait.
    #[must_use]
    pub fn of(&self, key: ServerKey) -> Option<&Deadlines> {
        self.servers.get(&key)
    }

    /// Those of a virtual server are now these.
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

    /// Every virtual server that has some.
    #[must_use]
    pub fn keys(&self) -> BTreeSet<ServerKey> {
        self.servers.keys().copied().collect()
    }

    /// When to look again, if any waits.
    #[must_use]
    pub fn next_check(&self) -> Option<Instant> {
        self.next_check
    }

    /// A look began at `now` that took so much `effort`; many at a time are looked at less often.
    pub fn checked(&mut self, now: Instant, effort: Duration) {
        self.next_check = (!self.servers.is_empty()).then(|| now + INTERVAL.max(effort));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_looks_only_while_some_wait() {
        let now = Instant::now();
        let key = ServerKey { address: "10.0.0.1:80".parse().expect("an address"), protocol: TCP };
        let real = "10.1.0.1:80".parse().expect("an address");
        let mut draining = Draining::default();
        draining.set(key, Deadlines::from([(real, now + GRACEFUL_TERMINATION_PERIOD)]), now);
        assert_eq!(draining.next_check(), Some(now + INTERVAL));
        draining.checked(now + INTERVAL, Duration::from_mins(1));
        assert_eq!(draining.next_check(), Some(now + INTERVAL + Duration::from_mins(1)), "as is right for much work");
        draining.set(key, Deadlines::new(), now);
        assert_eq!((draining.next_check(), draining.keys().len()), (None, 0));
    }
}
