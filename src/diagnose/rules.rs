//! Causes that lie in the rules: none, in the wrong place, altered, or of two proxies.
//!
//! Except for drift they do not depend on the Service in question.

use std::time::Duration;

use netfilter::nft::Expression;
use proxier_inspect::node::{FamilyRules, Focus, NFTABLES, Unread};
use proxier_inspect::services::{AddressVerdict, ServicePortView};

use super::finding::{Cause, Finding};
use crate::inspect::NodeInspection;
use crate::inspect::obstacles::{age_without_sync, unread_kinds};

/// Differences that are listed one by one; of more only the number is given.
const LISTED: usize = 3;
/// What to do where the proxy runs and has written nothing.
const NOTHING_WRITTEN: &str = "see what its log says last: it writes none until it has read its Node (--hostname-override), \
                               Services and EndpointSlices, nor while its syncs fail";
/// Where packets have to find the way to the Services.
const ENTRANCES: [&str; 2] = ["PREROUTING", "OUTPUT"];
/// The same in nftables mode, in both layouts.
const TABLE_ENTRANCES: [&str; 2] = ["nat-prerouting", "nat-output"];
/// The chain of our table that those jump to.
const SERVICES: &str = "services";

/// Whether there is one proxy's rules, where packets meet them.
pub fn of(seen: &NodeInspection) -> Vec<Finding> {
    let mut findings = Vec::new();
    let rules = &seen.rules;
    let other_mode = seen.other_modes();
    if rules.mode().is_none() && rules.in_other.is_empty() {
        // Rules that could not be read may be there.
        if seen.unread.iter().any(Unread::is_of_rules) {
            return findings;
        }
        findings.push(no_rules(&other_mode, &seen.running_proxies()));
        return findings;
    }
    findings.extend(two_proxies(seen, &other_mode));
    findings.extend(rules.families.iter().filter_map(|family| {
        let place = family.emptied_dispatch(&seen.unread)?;
        let what = format!("{place} is empty, while chains of Services have rules: no packet is sent to an endpoint");
        Some(Finding::certain(Cause::RulesAltered, what, REPAIRED))
    }));
    if rules.mode() == Some(NFTABLES) {
        findings.extend(rules.families.iter().flat_map(entrances_of_table));
        return findings;
    }
    findings.extend(flavours(seen));
    findings.extend(rules.families.iter().flat_map(dormant));
    for family in rules.families.iter().filter(|family| family.ruleset.chain("nat", "KUBE-SERVICES").is_some()) {
        for hook in ENTRANCES {
            let rules = family.ruleset.chain("nat", hook).map(|chain| chain.rules.as_slice()).unwrap_or_default();
            if !rules.iter().any(|rule| rule.jump_target() == Some("KUBE-SERVICES")) {
                findings.push(Finding::certain(
                    Cause::RulesAltered,
                    format!("{}: no rule of nat {hook} jumps to KUBE-SERVICES: packets do not meet the rules", family.family),
                    "find out what took the rule out (a restarted firewall service does); the proxy puts it back within \
                     its sync period if it runs",
                ));
            }
        }
    }
    findings
}

/// There are no rules: because no proxy runs, or although one does. `other_mode`: tables that only look like a proxy's.
fn no_rules(other_mode: &[String], running: &[u32]) -> Finding {
    let found = match other_mode.first() {
        Some(table) => {
            format!("there is {table}, and it has not the chains of one, so it is half written, or another program's")
        }
        None => "no chain KUBE-SERVICES in the nat table, and no table kube-proxy of nf_tables".to_owned(),
    };
    match running.first() {
        Some(process) => Finding::certain(
            Cause::NoRules,
            format!("kube-proxy runs on this node (process {process}) and has written no rules: {found}"),
            NOTHING_WRITTEN,
        ),
        None => Finding::certain(
            Cause::NoProxy,
            format!("there are no rules of a kube-proxy on this node: {found}"),
            "see whether kube-proxy runs on this node and what its log says: kubectl -n kube-system get pods -o wide \
             -l k8s-app=kube-proxy",
        ),
    }
}

/// What keeps the proxy from changing its rules: a table that another process owns, or else syncs or watches that fail.
///
/// Where there are no rules at all, that is the cause, and nothing is late.
pub fn obstacles(seen: &mut NodeInspection, causes: &[Finding]) -> Vec<Finding> {
    let owned = owned(seen);
    if !owned.is_empty() || causes.iter().any(|finding| finding.cause == Cause::NoRules) {
        return owned;
    }
    let Some(metrics) = seen.metrics_of_proxy() else { return Vec::new() };
    let unread = unread_kinds(&metrics);
    if let Some(waiting) = never_synced(&metrics) {
        return [waiting].into_iter().chain(watch_fails(&unread)).collect();
    }
    let late = seen.overdue_syncs(&metrics).into_iter().map(|(family, since)| {
        let of = if family.is_empty() { String::new() } else { format!(" of {family}") };
        let what = format!(
            "the running kube-proxy has not written a change{of} for {} s: its syncs fail or hang, and the kernel keeps \
             older rules",
            since.as_secs()
        );
        let next = "see what its log says of the last sync: kubectl -n kube-system logs, or journalctl";
        Finding::certain(Cause::SyncFails, what, next)
    });
    late.chain(watch_fails(&unread)).collect()
}

/// A proxy that has written nothing since it was started, while the rules of an earlier one are there.
fn never_synced(metrics: &str) -> Option<Finding> {
    let age = age_without_sync(metrics)?;
    let what = format!(
        "the running kube-proxy has written no rules since its start {} s ago: the kernel keeps those of before",
        age.as_secs()
    );
    Some(Finding::certain(Cause::NoRules, what, NOTHING_WRITTEN))
}

/// The kinds of objects that the proxy does not read any more.
fn watch_fails(unread: &[(String, Duration)]) -> Option<Finding> {
    let longest = unread.iter().map(|(_, lasted)| *lasted).max()?;
    let kinds: Vec<String> = unread.iter().map(|(kind, _)| format!("{kind}s")).collect();
    let what = format!(
        "the running kube-proxy has failed to read {} from the API server for {} s: the kernel keeps rules of older objects",
        kinds.join(", "),
        longest.as_secs()
    );
    let next = "see its log for \"Failed to watch\": the address, the certificate, the credentials or the rights with which \
                it asks the API server";
    Some(Finding::certain(Cause::WatchFails, what, next))
}

/// Tables that another process owns: the proxy cannot change them, and keeps the rules that are there.
fn owned(seen: &mut NodeInspection) -> Vec<Finding> {
    let found = seen.owned_tables().into_iter().map(|found| {
        let process = if found.process.is_empty() { String::new() } else { format!(", which is {}", found.process) };
        let what = format!(
            "nf_tables table {} belongs to another process (flags owner, netlink port ID {}{process}), and the kernel lets \
             no other change it: each sync of kube-proxy fails",
            found.table, found.owner
        );
        Finding::certain(Cause::SyncFails, what, "stop that process; the proxy tries again by itself")
    });
    found.collect()
}

/// Tables of iptables that the kernel does not run. Without those of filter, Services with endpoints work.
fn dormant(family: &FamilyRules) -> Vec<Finding> {
    let of_table = |name: &&str| family.is_dormant(name);
    let found = ["nat", "filter"].into_iter().filter(of_table).map(|name| {
        let table = format!("{} {name}", family.family.nft());
        let what =
            format!("table {table} is dormant: the kernel runs none of its chains, so packets do not meet its rules");
        let next = format!(
            "find out what deactivated it (no kube-proxy and no iptables does), and activate it: nft add table {table}"
        );
        Finding { certain: name == "nat", ..Finding::certain(Cause::RulesAltered, what, next) }
    });
    found.collect()
}

/// What to do about rules that the proxy repairs.
const REPAIRED: &str = "find out what emptied it (nft monitor shows changes as they are made); the proxy fills it again \
                        within its sync period if it runs";

/// Whether packets find the way to the Services in the table of nftables mode.
fn entrances_of_table(family: &FamilyRules) -> Vec<Finding> {
    const NEXT: &str = "find out who changed it (nft monitor shows who does what); the proxy puts it back within its sync \
                        period if it runs";
    let Some(table) = family.proxy_table() else { return Vec::new() };
    let name = format!("table {} kube-proxy", family.family.nft());
    if table.dormant {
        let what = format!("{name} is dormant: no packet meets its rules");
        return vec![Finding::certain(Cause::RulesAltered, what, NEXT)];
    }
    let leads_on = |chain: &str| {
        let rules = table.chains.get(chain).and_then(|chain| chain.rules.as_ref());
        let leads = |expression: &Expression| match expression {
            Expression::Verdict(verdict) => verdict.chain().is_some_and(|to| &**to == SERVICES),
            _ => false,
        };
        rules.into_iter().flatten().any(|rule| rule.expressions.iter().any(leads))
    };
    let lost = TABLE_ENTRANCES.into_iter().filter(|chain| !leads_on(chain));
    lost.map(|chain| {
        let what =
            format!("no rule of chain {chain} of {name} jumps to chain {SERVICES}: packets do not meet the rules");
        Finding::certain(Cause::RulesAltered, what, NEXT)
    })
    .collect()
}

/// Rules in both flavours are of two proxies, or left by an earlier one. Rules in the other flavour alone work: packets
/// meet the rules of both.
fn flavours(seen: &NodeInspection) -> Option<Finding> {
    let rules = &seen.rules;
    let other = rules.in_other.first().filter(|_| rules.choice.flavour.is_none_or(|chosen| chosen == rules.flavour))?;
    Some(Finding::certain(
        Cause::WrongFlavour,
        format!(
            "{other}: kube-proxy's rules are in both flavours of iptables, while this node uses {}",
            rules.choice.flavour.map_or_else(|| "none that is known".to_owned(), |flavour| flavour.to_string()),
        ),
        "make all agents of the node use one flavour (update-alternatives --config iptables), then remove the other's \
         rules with its own iptables programs or a restart of the node; kube-proxy --cleanup beside a running kube-proxy \
         removes the rules of that one too",
    )
    .shown_by(rules.choice.reason.clone()))
}

fn two_proxies(seen: &NodeInspection, other_modes: &[String]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let running = seen.running_proxies();
    if running.len() > 1 {
        let pids: Vec<String> = running.iter().map(ToString::to_string).collect();
        findings.push(Finding::certain(
            Cause::TwoProxies,
            format!("{} kube-proxy processes run in this network namespace: {}", running.len(), pids.join(", ")),
            "stop all but one: each takes away what the other writes",
        ));
    }
    // Beside the chains of Services, what IPVS mode has is the other one's.
    let iptables = seen.rules.families.iter().any(|family| family.has_service_chains());
    let is_nftables = seen.rules.mode() == Some(NFTABLES);
    let used = if iptables && !is_nftables { Some("iptables") } else { seen.rules.mode() };
    if let Some(mode) = other_modes.first().filter(|_| used.is_some()) {
        findings.push(Finding::certain(
            Cause::TwoProxies,
            format!(
                "there are rules of {} mode, and {mode}: of two proxies, or left by an earlier one",
                used.unwrap_or_default()
            ),
            "see which kube-proxy runs and whether its log says that it removes what the other mode left; if none should \
             run, kube-proxy --cleanup removes the rules of both",
        ));
    }
    findings
}

/// Whether the rules of a Service are what they should be; without objects, whether they make sense.
///
/// `is_outdated`: the proxy has not read the objects of now.
pub fn drift(seen: &mut NodeInspection, focus: &Focus, views: &[ServicePortView], is_outdated: bool) -> Vec<Finding> {
    const NEXT: &str = "see kube-proxy dump for all of them; the proxy repairs them within its sync period if it runs and \
                        reads the API server: look at its log, and at who else writes rules on this node";
    if seen.rules.mode().is_none() {
        return Vec::new();
    }
    if let Some(differences) = focus.service.as_ref().and_then(|_| seen.differences(focus, views)) {
        let listed = differences.iter().take(LISTED).map(|difference| {
            let rule = difference.expected.as_ref().or(difference.found.as_ref());
            let rule = rule.map(|rule| format!(": {rule}")).unwrap_or_default();
            format!("{} in {}{rule}", difference.kind.name(), difference.place())
        });
        let listed: Vec<String> = listed.collect();
        if listed.is_empty() {
            return Vec::new();
        }
        let more = differences.len().saturating_sub(LISTED);
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        let what = format!("the rules are not as they should be: {}{more}", listed.join("; "));
        let altered = Finding::certain(Cause::RulesAltered, what, NEXT);
        // They may be those of older objects.
        return vec![Finding { certain: !is_outdated, ..altered }];
    }
    let broken = views.iter().filter(|view| {
        let promises = view.addresses.iter().any(|address| address.verdict == AddressVerdict::Endpoints);
        promises
            && view.notes.iter().any(|note| {
                note.contains("does not exist")
                    || note.contains("has no endpoint")
                    || note.contains("translates nothing")
                    || note.contains("match none of")
                    || note.contains("not equally likely")
            })
    });
    let found = broken.map(|view| {
        let what = format!("{} ({}): {}", view.name, view.family, view.notes.join("; "));
        Finding::certain(Cause::RulesAltered, what, NEXT)
    });
    found.collect()
}
