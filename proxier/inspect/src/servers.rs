//! Compares expected virtual servers, sets and bound addresses with those found.
//!
//! Differences of IPVS mode's rules come from `drift`. Servers, entries and addresses that only drain connections are no
//! difference.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use netfilter::IpFamily;
use netfilter::ipset::Entry;
use netfilter::ipvs::ServerKey;

use super::drift::{self, DEVICE, Difference, DifferenceKind, SERVERS, SETS};
use super::rules::Ruleset;
use proxier::ipvs::{Expected, ExpectedServer, ObservedServer, ObservedState};
use proxier::model::ServicePortName;

/// Compares the whole IPVS state, rules included. `excluded`: networks whose virtual servers belong to other programs.
///
/// # Errors
/// If an expected rule cannot be parsed.
pub fn differences(
    expected: &Expected,
    held: &ObservedState,
    rules: &Ruleset,
    excluded: &[IpNet],
) -> Result<Vec<Difference>, String> {
    let family = rules.family();
    let mut should_be = Ruleset::new(family);
    if let Some(problem) = should_be.read(&expected.rules).first() {
        return Err(format!("our own rule is not understood: {problem}"));
    }
    let mut search = Search { family, found: drift::differences(&should_be, rules, None) };
    search.servers(expected, held, excluded);
    let waiting: BTreeSet<IpAddr> = held
        .servers
        .values()
        .filter(|server| Expected::may_drain(server.server.key) && server.drains())
        .map(|server| server.server.key.address.ip())
        .collect();
    search.sets(expected, held, &waiting);
    search.addresses(expected, held, &waiting);
    search.found.sort();
    Ok(search.found)
}

struct Search {
    family: IpFamily,
    found: Vec<Difference>,
}

/// The location and the Service port of a difference.
struct Location<'a> {
    table: &'static str,
    chain: String,
    service: Option<&'a ServicePortName>,
}

impl Search {
    fn note(&mut self, kind: DifferenceKind, at: &Location<'_>, expected: Option<String>, found: Option<String>) {
        self.found.push(Difference {
            family: self.family.name(),
            kind,
            table: at.table.to_owned(),
            chain: at.chain.clone(),
            expected,
            found,
            service: at.service.map(ToString::to_string),
        });
    }

    fn servers(&mut self, expected: &Expected, held: &ObservedState, excluded: &[IpNet]) {
        for (key, server) in &expected.servers {
            let at = Location { table: SERVERS, chain: key.to_string(), service: Some(&server.owner) };
            match held.servers.get(key) {
                None => {
                    let text = server.server.to_string();
                    self.note(DifferenceKind::MissingVirtualServer, &at, Some(text), None);
                }
                Some(found) => self.server(&at, *key, server, found),
            }
        }
        for (key, server) in &held.servers {
            let others = excluded.iter().any(|net| net.contains(&key.address.ip()));
            let waits = Expected::may_drain(*key) && server.drains();
            if expected.servers.contains_key(key) || others || waits {
                continue;
            }
            let at = Location { table: SERVERS, chain: key.to_string(), service: None };
            self.note(DifferenceKind::UnexpectedVirtualServer, &at, None, Some(server.server.to_string()));
        }
    }

    fn server(&mut self, at: &Location<'_>, key: ServerKey, expected: &ExpectedServer, found: &ObservedServer) {
        if expected.server != found.server {
            let (expected, found) = (expected.server.to_string(), found.server.to_string());
            self.note(DifferenceKind::AlteredVirtualServer, at, Some(expected), Some(found));
        }
        for address in expected.reals.iter().filter(|address| !found.reals.contains_key(address)) {
            let real = expected.real(*address).map(|real| real.to_string());
            self.note(DifferenceKind::MissingRealServer, at, real, None);
        }
        for (address, real) in found.reals.iter().map(|(address, real)| (address, &real.server)) {
            match expected.real(*address) {
                Some(wanted) if wanted == *real => {}
                Some(wanted) => {
                    let (wanted, real) = (wanted.to_string(), real.to_string());
                    self.note(DifferenceKind::AlteredRealServer, at, Some(wanted), Some(real));
                }
                None if real.weight == 0 && Expected::may_drain(key) => {}
                None => self.note(DifferenceKind::UnexpectedRealServer, at, None, Some(real.to_string())),
            }
        }
    }

    fn sets(&mut self, expected: &Expected, held: &ObservedState, waiting: &BTreeSet<IpAddr>) {
        for (name, entries) in &expected.sets {
            let at = |service| Location { table: SETS, chain: (*name).to_owned(), service };
            let Some(set) = held.sets.get(*name) else {
                self.note(DifferenceKind::MissingSet, &at(None), None, None);
                continue;
            };
            for (entry, owner) in entries.iter().filter(|(entry, _)| !set.entries.contains(entry)) {
                self.note(DifferenceKind::MissingEntry, &at(owner.as_ref()), Some(entry.to_string()), None);
            }
            let waits = |entry: &Entry| matches!(entry, Entry::Ip(ip) if waiting.contains(ip));
            for entry in set.entries.iter().filter(|entry| !entries.contains_key(entry) && !waits(entry)) {
                self.note(DifferenceKind::UnexpectedEntry, &at(None), None, Some(entry.to_string()));
            }
        }
    }

    fn addresses(&mut self, expected: &Expected, held: &ObservedState, waiting: &BTreeSet<IpAddr>) {
        let at = |service| Location { table: DEVICE, chain: Expected::device(), service };
        let Some(bound) = &held.bound else {
            self.note(DifferenceKind::MissingDevice, &at(None), None, None);
            return;
        };
        let missing: BTreeMap<_, _> = expected.addresses.iter().filter(|(ip, _)| !bound.contains(ip)).collect();
        for (ip, owner) in missing {
            self.note(DifferenceKind::MissingAddress, &at(Some(owner)), Some(ip.to_string()), None);
        }
        for ip in bound.iter().filter(|ip| !expected.addresses.contains_key(ip) && !waiting.contains(ip)) {
            self.note(DifferenceKind::UnexpectedAddress, &at(None), None, Some(ip.to_string()));
        }
    }
}
