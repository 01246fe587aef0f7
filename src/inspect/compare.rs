//! Compares the iptables rules of one family with the rules that the objects ask for.
//!
//! Only the Services in focus are rendered; all Services are rendered in parts, one at a time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use netfilter::kernel::node;
use proxier::iptables::{ExpectedPart, HostFacts, expected_parts, is_of_service_port};
use proxier::model::{Config, ServicePort, ServicePortName, Snapshot};
use proxier_inspect::drift::{Comparison, Difference, ServiceFilter};
use proxier_inspect::node::{FamilyRules, Focus, is_of};
use proxier_inspect::rules::Ruleset;
use proxier_inspect::services::{ServicePortView, hash_of_name};

/// Compares the rules of the selected Services, and the rules shared by all Services.
pub fn differences(
    rules: &FamilyRules,
    config: &Config,
    snapshot: &Snapshot<'_>,
    focus: &Focus,
    views: &[ServicePortView],
) -> Vec<Difference> {
    let host = host(rules);
    let each = |snapshot: &Snapshot<'_>, take: &mut dyn FnMut(&ExpectedPart<'_, '_>)| {
        expected_parts(rules.family, config, snapshot, &host, take);
    };
    if focus.is_everything() && rules.whole {
        let mut comparison = Comparison::new(&rules.ruleset, None);
        each(snapshot, &mut |part| {
            let owners = owners(part);
            comparison.take(&ruleset(rules, part), &|chain| owners.get(chain).map(ToString::to_string));
        });
        return comparison.finish();
    }
    let ports = wanted(snapshot, focus);
    let mine: Vec<&ServicePortView> = views.iter().filter(|view| view.family == rules.family.name()).collect();
    let mut chains: BTreeSet<String> =
        mine.iter().flat_map(|view| &view.parts).map(|part| part.chain.clone()).collect();
    let mut parts = Vec::new();
    each(&Snapshot { ports: &ports, ..*snapshot }, &mut |part| {
        let owners: HashMap<String, String> =
            owners(part).into_iter().map(|(chain, owner)| (chain.to_owned(), owner.to_string())).collect();
        let ruleset = ruleset(rules, part);
        let names = ruleset.chains("nat").map(|(name, _)| name).filter(|name| is_of_service_port(name));
        chains.extend(names.map(str::to_owned));
        parts.push((ruleset, owners));
    });
    let names: BTreeSet<String> =
        ports.keys().map(ToString::to_string).chain(mine.iter().map(|view| view.name.clone())).collect();
    let of_service = |name: &str| focus.endpoint.is_none() && focus.service.as_ref().is_some_and(|s| is_of(name, s));
    let service = |name: &str| names.contains(name) || of_service(name);
    let mut comparison = Comparison::new(&rules.ruleset, Some(ServiceFilter { chains: &chains, service: &service }));
    for (part, owners) in &parts {
        comparison.take(part, &|chain| owners.get(chain).cloned());
    }
    comparison.finish()
}

/// What the chains of the wanted Service ports have in their names.
pub fn hashes(snapshot: &Snapshot<'_>, focus: &Focus) -> BTreeSet<String> {
    snapshot.ports.keys().filter(|name| focus.wants(Some(name))).filter_map(hash_of_name).collect()
}

/// The selected Service ports.
fn wanted(snapshot: &Snapshot<'_>, focus: &Focus) -> BTreeMap<ServicePortName, ServicePort> {
    let has = |name: &ServicePortName, ip: IpAddr| snapshot.endpoints.of(name).iter().any(|e| e.address.ip() == ip);
    let named = snapshot.ports.iter().filter(|(name, _)| focus.wants(Some(name)));
    let wanted = named.filter(|(name, _)| focus.endpoint.is_none_or(|ip| has(name, ip)));
    wanted.map(|(name, port)| (name.clone(), port.clone())).collect()
}

fn host(rules: &FamilyRules) -> HostFacts {
    HostFacts {
        addresses: rules.addresses.clone(),
        random_fully: rules.random_fully,
        nfacct: rules.names("nfacct"),
        tcp_be_liberal: node::sysctl("net/netfilter/nf_conntrack_tcp_be_liberal") == Some(1),
    }
}

fn ruleset(rules: &FamilyRules, part: &ExpectedPart<'_, '_>) -> Ruleset {
    let mut ruleset = Ruleset::new(rules.family);
    let mut reader = ruleset.reader();
    part.lines().for_each(|(line, _)| reader.line(line));
    for problem in reader.finish() {
        tracing::error!("our own rule is not understood: {problem}");
    }
    ruleset
}

/// Whose the chains are.
fn owners<'a>(part: &'a ExpectedPart<'_, '_>) -> HashMap<&'a str, &'a ServicePortName> {
    let declared = part.lines().filter_map(|(line, owner)| Some((line.strip_prefix(':')?, owner?)));
    declared.map(|(line, owner)| (line.split(' ').next().unwrap_or_default(), owner)).collect()
}
