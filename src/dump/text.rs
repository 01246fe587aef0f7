//! Renders a report as text tables.

use std::fmt::Write;

use proxier_inspect::drift::Difference;
use proxier_inspect::node::facts::Facts;
use proxier_inspect::rules::Counters;
use proxier_inspect::services::{Address, AddressVerdict, EndpointView, RealView, ServicePortView};

use crate::inspect::report::Report;
use crate::terminal::{Style, Table, Terminal, wrapped};

/// What the counters of rules tell, and what not.
pub const COUNTED_SINCE: &str = "Connections are counted since kube-proxy last wrote the rule's chain, which may be a moment ago \
                                 (≥: other rules counted more).";

/// Whether rules of iptables count the connections of a Service port.
#[must_use]
pub fn counts_by_rules(view: &ServicePortView) -> bool {
    view.addresses.iter().any(|address| address.server.is_none() && address.counters.is_some())
}

/// The whole report. `wide`: with chains, hooks, interfaces.
#[must_use]
pub fn text(report: &Report, terminal: Terminal, wide: bool) -> String {
    // With `wide`, lines are not wrapped.
    let terminal = if wide { Terminal { width: usize::MAX, ..terminal } } else { terminal };
    let mut out = String::new();
    for view in &report.services {
        out += &service(view, terminal, wide);
        out.push('\n');
    }
    if report.services.iter().any(counts_by_rules) {
        out += &(wrapped(COUNTED_SINCE, terminal.width).join("\n") + "\n\n");
    }
    if report.services.is_empty() {
        out += "No Service ports.\n\n";
    }
    match &report.differences {
        None => out += "Not compared with what should be: that takes --config, --kubeconfig or --objects.\n\n",
        Some(differences) if differences.is_empty() => {
            out += &format!("{}\n\n", terminal.styled(Style::Green, "The rules are as they should be."));
        }
        Some(differences) => out += &drift(differences, terminal),
    }
    if let Some(configuration) = &report.configuration {
        let _ = writeln!(out, "{configuration}\n");
    }
    notes(report, terminal, wide, &mut out);
    facts(&report.facts, terminal, wide, &mut out);
    out
}

/// One Service port.
#[must_use]
pub fn service(view: &ServicePortView, terminal: Terminal, wide: bool) -> String {
    let mut out = format!("{}  {} {}\n", terminal.styled(Style::Bold, &view.name), view.protocol, view.family);
    let mut table =
        Table::new(2, &["ADDRESS", "KIND", "PACKETS GO", "CONNECTIONS", "CHAIN", "SCHEDULER", "BOUND", "SETS"]);
    for address in &view.addresses {
        let chain = address.chain.clone().filter(|_| wide).unwrap_or_default();
        let goes = fate(address).to_owned();
        let [scheduler, device, sets] = server(address, wide);
        let count = of_address(address);
        table.row(vec![spelled(address), address.kind.name().to_owned(), goes, count, chain, scheduler, device, sets]);
    }
    out += &table.text(terminal);
    let policies = policies(view);
    if !policies.is_empty() {
        let _ = writeln!(out, "  {policies}");
    }
    const ENDPOINTS: [&str; 10] =
        ["ENDPOINT", "STATE", "SHARE", "LOCAL SHARE", "CONNECTIONS", "CHAIN", "WEIGHT", "ACTIVE", "INACTIVE", "FLOWS"];
    let mut table = Table::new(2, &ENDPOINTS);
    for endpoint in &view.endpoints {
        let chain = endpoint.chain.clone().filter(|_| wide).unwrap_or_default();
        let [weight, active, inactive] = real(endpoint);
        table.row(vec![
            endpoint.address.map_or_else(|| "unknown".to_owned(), |address| address.to_string()),
            state(endpoint),
            share(endpoint.share),
            share(endpoint.local_share),
            of_endpoint(endpoint),
            chain,
            weight,
            active,
            inactive,
            flows(endpoint),
        ]);
    }
    let endpoints = table.text(terminal);
    out += if endpoints.is_empty() { "  no endpoints\n" } else { &endpoints };
    if wide {
        let mut table = Table::new(2, &["TABLE", "CHAIN", "RULES", "PACKETS", "BYTES", "ELEMENT"]);
        for part in &view.parts {
            let counted =
                |number: fn(Counters) -> u64| part.counters.map(|c| number(c).to_string()).unwrap_or_default();
            let rules = if part.element.is_none() { part.rules.to_string() } else { String::new() };
            let [packets, bytes] = [counted(|c| c.packets), counted(|c| c.bytes)];
            let element = part.element.clone().unwrap_or_default();
            table.row(vec![part.table.to_owned(), part.chain.clone(), rules, packets, bytes, element]);
        }
        out += &table.text(terminal);
    }
    for note in &view.notes {
        let _ = writeln!(out, "  {} {note}", terminal.styled(Style::Yellow, "!"));
    }
    out
}

/// Scheduler, device and sets of its virtual server.
pub(super) fn server(address: &Address, wide: bool) -> [String; 3] {
    let Some(server) = &address.server else { return Default::default() };
    let device = if server.on_device { "yes" } else { "no" };
    let sets = if wide { server.sets.join(" ") } else { String::new() };
    [server.scheduler.clone(), device.to_owned(), sets]
}

/// What a rule's counter tells: it counts since its chain was last written.
#[must_use]
pub fn at_least(count: u64, incomplete: bool) -> String {
    if incomplete { format!("≥ {count}") } else { count.to_string() }
}

/// The connections to an address, where anything counts them.
#[must_use]
pub fn of_address(address: &Address) -> String {
    match &address.server {
        Some(server) => server.connections.to_string(),
        None => address.counters.map(|c| at_least(c.packets, address.counters_incomplete)).unwrap_or_default(),
    }
}

/// The connections to an endpoint, where anything counts them.
#[must_use]
pub fn of_endpoint(endpoint: &EndpointView) -> String {
    connections(endpoint).map(|count| at_least(count, endpoint.counters_incomplete)).unwrap_or_default()
}

/// The connections that it got since its rule or virtual server was written, where anything counts them.
#[must_use]
pub fn connections(endpoint: &EndpointView) -> Option<u64> {
    match &endpoint.servers[..] {
        [] => endpoint.counters.map(|counters| counters.packets),
        servers => Some(servers.iter().map(|one| one.connections).sum()),
    }
}

/// Weight and connections of an endpoint, of all its virtual servers together.
pub(super) fn real(endpoint: &EndpointView) -> [String; 3] {
    let weights = || endpoint.servers.iter().map(|one| one.weight);
    let (Some(least), Some(most)) = (weights().min(), weights().max()) else { return Default::default() };
    let weight = if least == most { least.to_string() } else { format!("{least} to {most}") };
    let sum = |count: fn(&RealView) -> u32| endpoint.servers.iter().map(|one| u64::from(count(one))).sum::<u64>();
    [weight, sum(|one| one.active).to_string(), sum(|one| one.inactive).to_string()]
}

pub(super) fn spelled(address: &Address) -> String {
    match address.ip {
        Some(ip) => std::net::SocketAddr::new(ip, address.port).to_string(),
        None => format!("*:{}", address.port),
    }
}

pub(super) fn fate(address: &Address) -> &'static str {
    match address.verdict {
        AddressVerdict::Dropped if address.chain.is_some() => "nowhere from outside: no local endpoints",
        AddressVerdict::Endpoints => "to endpoints",
        AddressVerdict::Rejected => "nowhere: rejected, no endpoints",
        AddressVerdict::Dropped => "nowhere: dropped, no local endpoints",
        AddressVerdict::Accepted => "to who listens",
    }
}

pub(super) fn share(share: Option<f64>) -> String {
    share.map(|share| format!("{:.1} %", share * 100.0)).unwrap_or_default()
}

pub(super) fn policies(view: &ServicePortView) -> String {
    let mut parts = Vec::new();
    parts.extend(view.internal_policy.map(|policy| format!("internal traffic {policy:?}")));
    parts.extend(view.external_policy.map(|policy| format!("external traffic {policy:?}")));
    parts.extend(view.affinity_seconds.map(|seconds| format!("a client stays with its endpoint for {seconds} s")));
    if !view.source_ranges.is_empty() {
        let ranges: Vec<String> = view.source_ranges.iter().map(ToString::to_string).collect();
        parts.push(format!("load balancer only from {}", ranges.join(", ")));
    }
    parts.join("; ")
}

pub(super) fn state(endpoint: &EndpointView) -> String {
    let Some(state) = endpoint.state else { return String::new() };
    let ready = match (state.ready, state.terminating, state.serving) {
        (true, false, _) => "ready",
        (true, true, _) => "ready, terminating",
        (false, true, true) => "terminating, serving",
        (false, true, false) => "terminating",
        (false, false, _) => "not ready",
    };
    format!("{ready}{}", if state.local { ", local" } else { "" })
}

pub(super) fn flows(endpoint: &EndpointView) -> String {
    let mut parts: Vec<String> = endpoint.flows.iter().map(|(state, count)| format!("{count} {state}")).collect();
    if endpoint.stale > 0 {
        parts.push(format!("{} stale", endpoint.stale));
    }
    parts.extend(endpoint.unused.as_ref().map(|why| format!("unused: {why}")));
    parts.join(", ")
}

fn drift(differences: &[Difference], terminal: Terminal) -> String {
    let title = match differences.len() {
        1 => "One difference from what should be".to_owned(),
        n => format!("{n} differences from what should be"),
    };
    let mut out = format!("{}\n", terminal.styled(Style::Red, &title));
    for difference in differences {
        let Difference { family, kind, expected, found, service, .. } = difference;
        let of = service.as_ref().map(|service| format!(", of {service}")).unwrap_or_default();
        let _ = writeln!(out, "  {}: {}, {family}{of}", kind.name(), difference.place());
        for (sign, rule, style) in [("-", expected, Style::Red), ("+", found, Style::Green)] {
            if let Some(rule) = rule {
                let _ = writeln!(out, "    {}", terminal.styled(style, &format!("{sign} {rule}")));
            }
        }
    }
    out.push('\n');
    out
}

fn notes(report: &Report, terminal: Terminal, wide: bool, out: &mut String) {
    if !report.unused_chains.is_empty() {
        let count = report.unused_chains.len();
        let _ = writeln!(out, "{count} chains of Services that no rule jumps to: {}, …", report.unused_chains[0]);
    }
    if report.not_understood.is_empty() {
        return;
    }
    let _ = writeln!(
        out,
        "{} rules of others are not understood; a trace says where it meets one.",
        report.not_understood.len()
    );
    if wide {
        let mut table = Table::new(2, &["PLACE", "WHY", "RULE"]);
        for rule in &report.not_understood {
            table.row(vec![rule.place.clone(), rule.why.clone(), rule.rule.clone()]);
        }
        *out += &table.text(terminal);
    }
    out.push('\n');
}

/// The node's facts in full width, without colours.
#[must_use]
pub fn facts_text(of: &Facts) -> String {
    let mut out = String::new();
    facts(of, Terminal { width: usize::MAX, ..Terminal::plain() }, true, &mut out);
    out
}

fn facts(facts: &Facts, terminal: Terminal, wide: bool, out: &mut String) {
    let _ = writeln!(out, "{}", terminal.styled(Style::Bold, "Node"));
    let mode = facts.mode.unwrap_or("none that is known: no chain KUBE-SERVICES, no table kube-proxy");
    let _ = writeln!(out, "  mode {mode}; iptables flavour {}: {}", facts.flavour, facts.flavour_reason);
    for family in &facts.rules_in_other_flavour {
        let text = format!("{family}: kube-proxy's rules are in the other flavour of iptables too");
        let _ = writeln!(out, "  {} {text}", terminal.styled(Style::Yellow, "!"));
    }
    for text in &facts.other_flavour {
        let _ = writeln!(out, "  {} {text}", terminal.styled(Style::Yellow, "!"));
    }
    if let Some(conntrack) = facts.conntrack {
        #[allow(clippy::cast_precision_loss)] // for people
        let share = conntrack.count as f64 / (conntrack.max.max(1) as f64) * 100.0;
        let _ = writeln!(out, "  conntrack {} of {} entries ({share:.1} %)", conntrack.count, conntrack.max);
    }
    let mut table = Table::new(2, &["FAMILY", "TABLE", "CHAINS", "RULES", "SETS", "ELEMENTS", "CANARY", "READ"]);
    for size in &facts.tables {
        let canary = size.canary.map(|is_there| if is_there { "yes" } else { "no" }).unwrap_or_default();
        let number = |number: Option<usize>| number.map(|number| number.to_string()).unwrap_or_default();
        let [chains, rules, sets, elements] =
            [Some(size.chains), Some(size.rules), size.sets, size.elements].map(number);
        let names = [size.family.to_owned(), size.table.clone()];
        let read = if size.read_in_part { "in part" } else { "" };
        table.row([names.to_vec(), vec![chains, rules, sets, elements, canary.to_owned(), read.to_owned()]].concat());
    }
    *out += &table.text(terminal);
    let shared = facts.hooks.iter().filter(|hook| wide || hook.order.iter().any(|owner| is_other(owner)));
    let mut table = Table::new(2, &["FAMILY", "HOOK", "PACKETS MEET, IN THIS ORDER"]);
    for hook in shared {
        let end = hook.drops.then(|| "the policy: DROP".to_owned());
        let order: Vec<String> = hook.order.iter().cloned().chain(end).collect();
        table.row(vec![hook.family.to_owned(), format!("{} {}", hook.table, hook.hook), order.join(" > ")]);
    }
    *out += &table.text(terminal);
    let sysctls: Vec<String> = facts
        .sysctls
        .iter()
        .filter(|(name, _)| !name.ends_with("_count") && !name.ends_with("_max"))
        .map(|(name, value)| format!("{}={value}", name.trim_start_matches("net/")))
        .collect();
    for line in wrapped(&sysctls.join(" "), terminal.width.saturating_sub(2)) {
        let _ = writeln!(out, "  {line}");
    }
    if wide {
        let mut table = Table::new(2, &["INTERFACE", "MTU", "STATE", "ADDRESSES"]);
        for link in &facts.links {
            let addresses: Vec<String> = link.addresses.iter().map(ToString::to_string).collect();
            let state = if link.up { "up" } else { "down" };
            table.row(vec![link.name.clone(), link.mtu.to_string(), state.to_owned(), addresses.join(" ")]);
        }
        *out += &table.text(terminal);
    }
}

fn is_other(owner: &str) -> bool {
    // The owners of iptables rules are listed with each of its tables.
    owner != "kube-proxy" && owner != "kubelet" && !owner.starts_with("iptables ")
}
