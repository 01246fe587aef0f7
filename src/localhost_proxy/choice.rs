//! Chooses an endpoint for each connection: uniformly at random, or the pinned one with ClientIP affinity.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::SocketAddr;
use std::time::Duration;

use proxier::model::localhost_ports::LocalhostPort;
use tokio::time::Instant;

/// The endpoints of a node port, and the pin of ClientIP affinity.
///
/// All clients have the loopback address, so there is one pin, as with kube-proxy.
#[derive(Debug)]
pub struct EndpointChoice {
    endpoints: Box<[SocketAddr]>,
    affinity: Option<Duration>,
    /// The endpoint of the last connection, and when that was. Each connection renews it.
    pin: Option<(SocketAddr, Instant)>,
}

impl EndpointChoice {
    /// Without a pin.
    pub fn new(port: &LocalhostPort) -> Self {
        Self { endpoints: port.endpoints.clone(), affinity: port.affinity, pin: None }
    }

    /// Takes other endpoints or another timeout. A pin stays while the timeout is the same.
    pub fn update(&mut self, port: &LocalhostPort) {
        self.endpoints.clone_from(&port.endpoints);
        if self.affinity != port.affinity {
            (self.affinity, self.pin) = (port.affinity, None);
        }
    }

    /// The endpoint for a connection now; `None` without endpoints.
    pub fn choose(&mut self, now: Instant) -> Option<SocketAddr> {
        let pinned = self.pin.filter(|(endpoint, used)| {
            self.affinity.is_some_and(|timeout| now.saturating_duration_since(*used) <= timeout)
                && self.endpoints.contains(endpoint)
        });
        let chosen = match pinned {
            Some((endpoint, _)) => endpoint,
            None => *self.endpoints.get(below(self.endpoints.len())?)?,
        };
        self.pin = self.affinity.map(|_| (chosen, now));
        Some(chosen)
    }
}

/// A random number below `count`. `None` if that is 0.
fn below(count: usize) -> Option<usize> {
    // Each state has other keys. The bias of the remainder is at most count / 2^64.
    let random = usize::try_from(RandomState::new().build_hasher().finish() >> 1).unwrap_or_default();
    random.checked_rem(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(endpoints: &[&str], affinity: Option<u64>) -> LocalhostPort {
        let endpoints = endpoints.iter().map(|text| text.parse().expect("an endpoint")).collect();
        LocalhostPort { node_port: 30000, endpoints, affinity: affinity.map(Duration::from_secs) }
    }

    const THREE: [&str; 3] = ["10.0.0.1:80", "10.0.0.2:80", "[fd00::1]:80"];

    #[test]
    fn endpoints_when_chosen_at_random_are_equally_likely() {
        let mut choice = EndpointChoice::new(&port(&THREE, None));
        let mut counts = std::collections::BTreeMap::new();
        for _ in 0..30_000 {
            *counts.entry(choice.choose(Instant::now()).expect("one")).or_insert(0_i32) += 1;
        }
        assert_eq!(counts.len(), 3);
        // Six standard deviations.
        assert!(counts.values().all(|count| (count - 10_000).abs() < 500), "{counts:?}");
        assert_eq!(EndpointChoice::new(&port(&[], None)).choose(Instant::now()), None);
    }

    #[test]
    fn a_pin_slides_with_each_connection_and_ends_after_the_timeout() {
        let mut choice = EndpointChoice::new(&port(&THREE, Some(10)));
        let mut now = Instant::now();
        let first = choice.choose(now);
        for _ in 0..50 {
            now += Duration::from_secs(10);
            assert_eq!(choice.choose(now), first);
        }
        let others = (0..50).filter(|_| {
            now += Duration::from_millis(10_001);
            choice.choose(now) != first
        });
        assert!(others.count() > 5, "a new choice after the timeout");
    }

    #[test]
    fn a_pin_ends_with_its_endpoint_and_with_another_timeout_only() {
        let now = Instant::now();
        let mut choice = EndpointChoice::new(&port(&THREE, Some(10)));
        let first = choice.choose(now).expect("one");
        let rest: Vec<&str> = THREE.into_iter().filter(|text| *text != first.to_string()).collect();
        choice.update(&port(&["10.0.0.9:80", &first.to_string(), "10.0.0.8:80"], Some(10)));
        assert_eq!(choice.choose(now), Some(first), "other endpoints beside it");
        choice.update(&port(&rest, Some(10)));
        let second = choice.choose(now).expect("one");
        assert_ne!(second, first);
        choice.update(&port(&THREE, Some(10)));
        assert_eq!(choice.choose(now), Some(second), "the first one is back");
        let again = (0..50).filter(|seconds| {
            choice.update(&port(&THREE, Some(20 + seconds)));
            choice.choose(now) != Some(second)
        });
        assert!(again.count() > 5, "a new choice with each timeout");
    }
}
