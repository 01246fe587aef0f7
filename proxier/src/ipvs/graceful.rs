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

/// How long a real server whose TCP connections are to end waits for [`Backend::end_connections`].
///
/// When it goes, the kernel forgets its connections, and with them the clients that are to be probed.
///
/// [`Backend::end_connections`]: crate::backend::Backend::end_connections
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// The removed real servers that keep their connections, with weight 0.
#[derive(Clone, Copy, Debug)]
pub enum Retained<'a> {
    /// Those of a protocol that [`is_graceful`].
    ByProtocol,
    /// Only these, in order: what the Service asks for by annotation.
    Only(&'a [SocketAddr]),
}

impl<'a> Retained<'a> {
    /// The addresses that a Service port names, if it does.
    #[must_use]
    pub fn of(addresses: Option<&'a [SocketAddr]>) -> Self {
        addresses.map_or(Self::ByProtocol, Self::Only)
    }

    /// Whether a removed real server keeps its connections until they end.
    #[must_use]
    pub fn has(self, protocol: u8, address: &SocketAddr) -> bool {
        match self {
            Self::ByProtocol => is_graceful(protocol),
            Self::Only(addresses) => addresses.binary_search(address).is_ok(),
        }
    }

    /// How long a removed real server keeps its connections at most.
    #[must_use]
    pub fn period(self, protocol: u8, address: &SocketAddr) -> Duration {
        match self {
            _ if self.has(protocol, address) => GRACEFUL_TERMINATION_PERIOD,
            Self::Only(_) if is_graceful(protocol) => END_TIMEOUT,
            _ => Duration::ZERO,
        }
    }
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

    /// Ends the wait of terminating real servers of a virtual server that are not retained; returns whether any waits.
    pub fn expire(&mut self, key: ServerKey, retained: Retained<'_>, now: Instant) -> bool {
        let deadlines = self.servers.get_mut(&key).into_iter().flatten();
        let mut expired = deadlines.filter(|(address, _)| !retained.has(key.protocol, address)).peekable();
        let any = expired.peek().is_some();
        expired.for_each(|(_, deadline)| *deadline = now);
        any
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
