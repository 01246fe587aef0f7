//! Builds the view of one Service port of nftables mode from its destinations.
//!
//! Each destination comes with the elements that the table's maps have for it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use netfilter::IpFamily;
use netfilter::nft::ruleset::{Element, ElementLookup, Rule, Table};
use netfilter::nft::{Name, Verdict};

use super::dispatch::{Destination, DispatchSummary, octets, summarize};
use super::{
    ALLOWED, AllowedSources, CLUSTER_IPS, MapEntries, NO_ENDPOINTS, RESTRICTED, SERVICES, is_local, networks, ranges,
    spelled, verdict,
};
use crate::rules::Counters;
use crate::services::{Address, AddressKind, AddressVerdict, EndpointView, KernelObject, Policy, ServicePortView};
use proxier::model::ServicePort;

/// Probabilities that differ by less are equal.
const ALIKE: f64 = 1e-6;
/// Chains that exist without any Service, so they belong to no Service port.
pub(super) const OF_ALL: [&str; 6] =
    ["services", "external-local", "nodeport-local", "reject-chain", "firewall-check", "firewall-source-ranges"];

/// Builds the view of a Service port from its destinations.
pub(super) struct PortReader<'a> {
    pub(super) table: &'a Table,
    pub(super) allowed: &'a AllowedSources<'a>,
    pub(super) view: ServicePortView,
    /// Chains and elements that are already in the view.
    pub(super) met: BTreeSet<(Name, Vec<u8>)>,
}

impl<'a> PortReader<'a> {
    /// Adds a destination.
    pub(super) fn add(&mut self, family: IpFamily, to: Destination, entry: MapEntries<'a>, port: Option<&ServicePort>) {
        let chain = entry.service.and_then(verdict).and_then(Verdict::chain).cloned();
        let kind = self.kind(to, entry, port);
        let way = chain.as_ref().map(|chain| summarize(family, self.table, to, chain));
        let verdict = match entry.no_endpoints.and_then(verdict) {
            Some(Verdict::Drop) => AddressVerdict::Dropped,
            Some(refusal) => {
                let refuses = |chain: &Name| summarize(family, self.table, to, chain).rejects;
                if refusal.chain().is_some_and(refuses) { AddressVerdict::Rejected } else { AddressVerdict::Accepted }
            }
            None if chain.is_some() => AddressVerdict::Endpoints,
            None => return self.only_restricted(family, to, entry),
        };
        self.policies(kind, verdict, chain.as_ref(), way.as_ref());
        for (set, element) in self.dispatch(to, entry) {
            self.element(set, element);
        }
        if let Some(way) = &way {
            self.endpoints(to, way);
        }
        self.restrictions(family, to, entry);
        let counters = entry.service.and_then(|element| element.counters.as_deref().copied());
        let chain = chain.map(|chain| chain.to_string());
        let counters_incomplete = false;
        let server = None;
        let (ip, port) = (to.ip, to.port);
        self.view.addresses.push(Address { kind, ip, port, verdict, chain, counters, counters_incomplete, server });
    }

    /// Adds the source ranges of an address without a Service port.
    fn only_restricted(&mut self, family: IpFamily, to: Destination, entry: MapEntries<'a>) {
        self.view.notes.push(format!("{} has source ranges, and no rule serves it", spelled(to)));
        for (set, element) in self.dispatch(to, entry) {
            self.element(set, element);
        }
        self.restrictions(family, to, entry);
    }

    fn kind(&self, to: Destination, entry: MapEntries<'_>, port: Option<&ServicePort>) -> AddressKind {
        let Some(ip) = to.ip else { return AddressKind::NodePort };
        let cluster_ips = self.table.sets.get(CLUSTER_IPS);
        match port {
            Some(port) if port.cluster_ip == ip => AddressKind::ClusterIp,
            Some(port) if port.load_balancer_vips.contains(&ip) => AddressKind::LoadBalancer,
            Some(_) => AddressKind::ExternalIp,
            None if cluster_ips.is_some_and(|set| matches!(set.find(&octets(ip)), ElementLookup::Present(_))) => {
                AddressKind::ClusterIp
            }
            None if entry.restricted.is_some() => AddressKind::LoadBalancer,
            // The table does not distinguish these from load balancers without source ranges.
            None => AddressKind::ExternalIp,
        }
    }

    fn policies(
        &mut self,
        kind: AddressKind,
        verdict: AddressVerdict,
        chain: Option<&Name>,
        summary: Option<&DispatchSummary<'_>>,
    ) {
        let policy = |local| Some(if local { Policy::Local } else { Policy::Cluster });
        let dropped = (verdict == AddressVerdict::Dropped).then_some(Policy::Local);
        if kind == AddressKind::ClusterIp {
            let by_chain = chain.and_then(|chain| policy(is_local(chain)));
            self.view.internal_policy = self.view.internal_policy.or(by_chain).or(dropped);
        } else {
            let by_mark = summary.and_then(|summary| policy(!summary.marks_all));
            self.view.external_policy = self.view.external_policy.or(by_mark).or(dropped);
        }
    }

    /// The elements that the destination has, with their sets.
    fn dispatch(&self, to: Destination, entry: MapEntries<'a>) -> Vec<(Name, &'a Element)> {
        let place = usize::from(to.ip.is_none());
        let named = |name: &str, element: Option<&'a Element>| element.map(|element| (Name::from(name), element));
        let cluster_ip = to.ip.and_then(|ip| match self.table.sets.get(CLUSTER_IPS)?.find(&octets(ip)) {
            ElementLookup::Present(element) => named(CLUSTER_IPS, Some(element)),
            ElementLookup::Absent | ElementLookup::Unread => None,
        });
        [
            named(SERVICES[place], entry.service),
            named(NO_ENDPOINTS[place], entry.no_endpoints),
            named(RESTRICTED, entry.restricted),
            cluster_ip,
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    fn endpoints(&mut self, to: Destination, summary: &DispatchSummary<'a>) {
        self.view.affinity_seconds =
            self.view.affinity_seconds.or(summary.affinity.map(|seconds| u32::try_from(seconds).unwrap_or(u32::MAX)));
        for chooser in &summary.choosers {
            let local = is_local(&chooser.chain);
            let mut shares: BTreeMap<SocketAddr, (f64, Option<&Name>)> = BTreeMap::new();
            for choice in &chooser.choices {
                shares.entry(choice.to).or_insert((0.0, choice.chain.as_ref())).0 += choice.share;
            }
            let sum: f64 = shares.values().map(|(share, _)| share).sum();
            let sum = if (sum - 1.0).abs() < ALIKE { 1.0 } else { sum };
            if shares.is_empty() {
                self.view.notes.push(format!("chain {} has no endpoint for {}", chooser.chain, spelled(to)));
            } else if sum < 1.0 - ALIKE {
                let (lost, chain) = ((1.0 - sum) * 100.0, &chooser.chain);
                self.view.notes.push(format!(
                    "{lost:.1} % of the packets to {} match none of the rules of chain {chain}",
                    spelled(to)
                ));
            }
            #[allow(clippy::cast_precision_loss)] // endpoints are few
            let each = sum / shares.len() as f64;
            let even = shares.values().all(|(share, _)| (share - each).abs() < ALIKE);
            // Slots of a hash cannot always be divided evenly.
            if !even && !chooser.by_hash {
                let (to, chain) = (spelled(to), &chooser.chain);
                let note = format!(
                    "endpoints of {to} are not equally likely: chain {chain} draws numbers without an endpoint"
                );
                self.view.notes.push(note);
            }
            for (address, (share, chain)) in shares {
                let known = self.view.endpoints.iter().position(|endpoint| endpoint.address == Some(address));
                let at = known.unwrap_or_else(|| {
                    self.view.endpoints.push(EndpointView::at(Some(address)));
                    self.view.endpoints.len() - 1
                });
                let endpoint = &mut self.view.endpoints[at];
                let slot = if local { &mut endpoint.local_share } else { &mut endpoint.share };
                // All addresses have the same endpoints; `drift` reports one that differs.
                *slot = slot.or(Some(if even { each } else { share }));
                // The names of our session affinity chains do not contain an endpoint.
                endpoint.chain = endpoint.chain.take().or(chain.map(ToString::to_string));
            }
        }
        if summary.choosers.is_empty() {
            self.view.notes.push(format!("{} has no endpoint", spelled(to)));
        }
        for (set, element) in &summary.elements {
            self.element(set.clone(), element);
        }
        for chain in summary.chains.iter().filter(|chain| !OF_ALL.contains(&&***chain)) {
            self.chain(chain);
        }
    }

    /// Adds the source ranges of an address.
    fn restrictions(&mut self, family: IpFamily, to: Destination, entry: MapEntries<'a>) {
        let Some(element) = entry.restricted else { return };
        let (mut ranges, chain) = ranges(family, self.table, to, element);
        if let Some(chain) = chain.filter(|chain| !OF_ALL.contains(&&***chain)) {
            self.chain(chain);
        }
        let of_element = self.allowed.0.get(&*element.key).cloned().unwrap_or_default();
        for allowed in of_element {
            ranges.extend(networks(element, allowed));
            self.element(Name::from(ALLOWED), allowed);
        }
        ranges.retain(|range| !self.view.source_ranges.contains(range));
        self.view.source_ranges.extend(ranges);
    }

    fn element(&mut self, name: Name, element: &Element) {
        if !self.met.insert((name.clone(), element.key.to_vec())) {
            return;
        }
        let text = self.table.sets.get(&name).map(|set| set.text(element).to_string());
        let counters = element.counters.as_deref().copied();
        let table = self.view.parts_table();
        self.view.parts.push(KernelObject { table, chain: name.to_string(), element: text, rules: 0, counters });
    }

    fn chain(&mut self, name: &Name) {
        let Some(rules) = self.table.chains.get(name).and_then(|chain| chain.rules.as_ref()) else { return };
        if !self.met.insert((name.clone(), Vec::new())) {
            return;
        }
        let table = self.view.parts_table();
        let part = KernelObject {
            table,
            chain: name.to_string(),
            element: None,
            rules: rules.len(),
            counters: counted(rules),
        };
        self.view.parts.push(part);
    }

    /// Returns the finished view.
    pub(super) fn finish(self) -> ServicePortView {
        let mut view = self.view;
        view.addresses.sort_by_key(|address| (address.kind, address.ip, address.port));
        view.endpoints.sort_by_key(|endpoint| endpoint.address);
        view.source_ranges.sort_unstable();
        view.notes.sort_unstable();
        view.notes.dedup();
        view
    }
}

/// The sum of the counters of rules; `None` without a counter.
fn counted(rules: &[Rule]) -> Option<Counters> {
    rules.iter().filter_map(|rule| rule.counters).reduce(|mut sum, one| {
        sum += one;
        sum
    })
}

impl ServicePortView {
    fn parts_table(&self) -> &'static str {
        if self.family == IpFamily::V4.name() { "ip kube-proxy" } else { "ip6 kube-proxy" }
    }
}
