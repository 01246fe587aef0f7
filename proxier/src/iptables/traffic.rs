//! Reads the connections that the rules of Service ports have counted.
//!
//! The rule with the `DNAT` target in an endpoint's chain counts the first packet of each connection: conntrack remembers
//! where all others go. Chains of endpoints stay as they are when other endpoints or Services change. Their Service port
//! is found by the chains that jump there, because large clusters have no comments on rules of endpoints.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;

use netfilter::IpFamily;
use netfilter::iptables::Table;
use netfilter::kernel::{CountedRule, Flavour, counted_rules};

use super::names::HASH_LEN;
use crate::model::{Protocol, ServicePortName};
use crate::traffic::{TrafficSample, connections};

/// The hash in a chain's name.
type ChainHash = [u8; HASH_LEN];

const ENDPOINT: &str = "KUBE-SEP-";
/// The chains of a Service port, whose hashes are the same.
const OF_PORT: [&str; 4] = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-FW-"];

/// What the rules of the `nat` table say about Service ports and endpoints.
#[derive(Debug, Default)]
struct NatRules {
    ports: HashMap<ChainHash, ServicePortName>,
    /// Endpoints to Service ports.
    port_of: HashMap<ChainHash, ChainHash>,
    endpoints: HashMap<ChainHash, (SocketAddr, u64)>,
}

/// Reads the connections of all endpoints in a family and flavour, of this kube-proxy's rules or upstream's.
///
/// # Errors
/// If the rules cannot be read.
pub fn read_connections(family: IpFamily, flavour: Flavour) -> io::Result<Vec<TrafficSample>> {
    let rules: NatRules = counted_rules(family, flavour, Table::Nat, NatRules::add)?;
    Ok(rules.samples())
}

/// The hash of a chain with one of these prefixes.
fn hash(chain: &str, prefixes: &[&str]) -> Option<ChainHash> {
    prefixes.iter().find_map(|prefix| chain.strip_prefix(prefix)?.as_bytes().try_into().ok())
}

impl NatRules {
    fn add(&mut self, rule: &CountedRule<'_>) {
        if let Some(address) = rule.dnat {
            if let Some(endpoint) = hash(rule.chain, &[ENDPOINT]) {
                self.endpoints.insert(endpoint, (address, rule.counters.packets));
            }
            return;
        }
        let Some(jump) = rule.jump else { return };
        if let Some(endpoint) = hash(jump, &[ENDPOINT]) {
            self.port_of.extend(hash(rule.chain, &OF_PORT).map(|port| (endpoint, port)));
        } else if let (Some(port), Some(protocol)) = (hash(jump, &OF_PORT), Protocol::of_number(rule.protocol)) {
            // `namespace/name:port cluster IP` and the like; rules without a protocol have other comments.
            let name = rule.comment.and_then(|comment| ServicePortName::parse(comment.split(' ').next()?, protocol));
            self.ports.extend(name.map(|name| (port, name)));
        }
    }

    fn samples(self) -> Vec<TrafficSample> {
        let Self { ports, port_of, endpoints } = self;
        let sample = |(chain, (address, count)): (ChainHash, _)| {
            Some(TrafficSample {
                source: chain.into(),
                port: ports.get(port_of.get(&chain)?)?.clone(),
                endpoint: Some(address),
                adds_to_port: true,
                is_draining: false,
                counts: connections(count),
            })
        };
        endpoints.into_iter().filter_map(sample).collect()
    }
}

#[cfg(test)]
mod tests {
    use netfilter::Counters;

    use super::*;

    fn rule<'a>(chain: &'a str, jump: &'a str, comment: Option<&'a str>, protocol: u8) -> CountedRule<'a> {
        CountedRule { chain, jump: Some(jump), comment, protocol, ..CountedRule::default() }
    }

    #[test]
    fn endpoints_without_comments_are_found_by_the_chains_that_jump_there() {
        let mut rules = NatRules::default();
        let (external, local, endpoint) =
            ("KUBE-EXT-AAAAAAAAAAAAAAAA", "KUBE-SVL-AAAAAAAAAAAAAAAA", "KUBE-SEP-BBBBBBBBBBBBBBBB");
        rules.add(&rule("KUBE-NODEPORTS", external, Some("ns/web:http"), 6));
        rules.add(&rule(external, "KUBE-SVC-AAAAAAAAAAAAAAAA", Some("route LOCAL traffic for ns/web:http"), 0));
        rules.add(&rule(local, endpoint, None, 0));
        let counters = Counters { packets: 7, bytes: 420 };
        let dnat = "10.244.1.5:8080".parse().ok();
        rules.add(&CountedRule { chain: endpoint, dnat, counters, protocol: 6, ..CountedRule::default() });
        // An endpoint that no Service port leads to, and a chain of another program.
        rules.add(&CountedRule { chain: "KUBE-SEP-CCCCCCCCCCCCCCCC", dnat, ..CountedRule::default() });
        rules.add(&CountedRule { chain: "DOCKER", dnat, counters, ..CountedRule::default() });
        let samples = rules.samples();
        assert_eq!(samples.len(), 1, "{samples:?}");
        let sample = &samples[0];
        assert_eq!((sample.port.to_string(), sample.counts.connections), ("ns/web:http".to_owned(), 7));
        assert_eq!((sample.endpoint, sample.adds_to_port), (dnat, true));
    }
}
