//! Reads the packets that the rules of Service ports in the `filter` table have refused.
//!
//! Every refusing rule has a comment with the Service port and the reason, in large clusters too. The rules of one
//! Service port differ in their destination, which the fingerprint stands for.

use std::collections::HashMap;
use std::io;

use netfilter::IpFamily;
use netfilter::iptables::Table;
use netfilter::kernel::{CountedRule, Flavour, counted_rules};

use super::names::{EXTERNAL_SERVICES, PROXY_FIREWALL, SERVICES};
use crate::model::{Protocol, ServicePortName};
use crate::traffic::{RefusalReason, RefusalSample, RefusedBy};

/// How comments end after the Service port's name, with the reason.
const REASONS: [(&str, RefusalReason); 3] = [
    (" has no endpoints", RefusalReason::NoEndpoints),
    (" has no local endpoints", RefusalReason::NoLocalEndpoints),
    (" traffic not accepted by ", RefusalReason::SourceRange),
];

/// The refusing rules by chain and fingerprint. Of equal rules only the first refuses packets.
#[derive(Debug, Default)]
struct Refusals(HashMap<Box<[u8]>, RefusalSample>);

/// Reads the packets that were refused in a family and flavour, by this kube-proxy's rules or upstream's.
///
/// # Errors
/// If the rules cannot be read.
pub fn read_refusals(family: IpFamily, flavour: Flavour) -> io::Result<Vec<RefusalSample>> {
    let rules: Refusals = counted_rules(family, flavour, Table::Filter, Refusals::add)?;
    Ok(rules.0.into_values().collect())
}

impl Refusals {
    fn add(&mut self, rule: &CountedRule<'_>) {
        if ![SERVICES, EXTERNAL_SERVICES, PROXY_FIREWALL].iter().any(|chain| chain.as_str() == rule.chain) {
            return;
        }
        let Some((port, reason)) = rule.comment.and_then(|comment| refusal(comment, rule.protocol)) else { return };
        let source: Box<[u8]> = [rule.chain.as_bytes(), &rule.fingerprint.to_ne_bytes()].concat().into();
        let packets = rule.counters.packets;
        let sample = RefusalSample { source: source.clone(), by: RefusedBy::Port(port), reason, packets };
        let known = self.0.entry(source).or_insert(sample);
        known.packets = known.packets.max(packets);
    }
}

fn refusal(comment: &str, protocol: u8) -> Option<(ServicePortName, RefusalReason)> {
    let (name, end) = comment.split_at(comment.find(' ')?);
    let (_, reason) = REASONS.iter().find(|(text, _)| end.starts_with(text))?;
    Some((ServicePortName::parse(name, Protocol::of_number(protocol)?)?, *reason))
}

#[cfg(test)]
mod tests {
    use netfilter::Counters;

    use super::*;

    #[test]
    fn rules_of_one_service_port_are_told_apart_by_their_fingerprint() {
        let mut rules = Refusals::default();
        let mut add = |chain, comment, fingerprint, packets| {
            let counters = Counters { packets, bytes: 60 * packets };
            rules.add(&CountedRule {
                chain,
                comment: Some(comment),
                protocol: 6,
                fingerprint,
                counters,
                ..CountedRule::default()
            });
        };
        add("KUBE-SERVICES", "ns/web:http has no endpoints", 1, 3);
        // The same rule again, as when a chain is read again, and a duplicate behind it.
        add("KUBE-SERVICES", "ns/web:http has no endpoints", 1, 4);
        add("KUBE-SERVICES", "ns/web:http has no endpoints", 1, 0);
        add("KUBE-EXTERNAL-SERVICES", "ns/web:http has no endpoints", 2, 5);
        add("KUBE-EXTERNAL-SERVICES", "ns/dns has no local endpoints", 3, 6);
        add("KUBE-PROXY-FIREWALL", "ns/web:http traffic not accepted by KUBE-FW-AAAAAAAAAAAAAAAA", 4, 7);
        // Of another program, and of no Service port.
        add("DOCKER", "ns/web:http has no endpoints", 5, 8);
        add("KUBE-SERVICES", "nothing", 6, 9);
        let mut found: Vec<String> = rules
            .0
            .into_values()
            .map(|sample| {
                let RefusedBy::Port(port) = sample.by else { panic!("a port") };
                format!("{port} {} {}", sample.reason.name(), sample.packets)
            })
            .collect();
        found.sort_unstable();
        let expected = [
            "ns/dns no_local_endpoints 6",
            "ns/web:http no_endpoints 4",
            "ns/web:http no_endpoints 5",
            "ns/web:http source_range 7",
        ];
        assert_eq!(found, expected);
    }
}
