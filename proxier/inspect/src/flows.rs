//! Counts conntrack entries by Service port and endpoint.
//!
//! Flows arrive one at a time and only counts are kept, because a conntrack table may hold millions of entries. Each
//! endpoint gets its flows by state and the number of stale ones.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};

use netfilter::Flow;

use super::services::{EndpointView, ServicePortView, owners};
use proxier::conntrack::StaleFlows;
use proxier::model::Protocol;

/// A flow's destination: index of the Service port, and the endpoint.
type PortEndpoint = (usize, SocketAddr);

#[derive(Debug, Default)]
struct Count {
    states: BTreeMap<&'static str, u64>,
    stale: u64,
}

/// Counts flows by endpoint.
#[derive(Debug)]
pub struct FlowCount<'a> {
    owners: HashMap<(Option<IpAddr>, u16, &'static str), usize>,
    endpoints: HashMap<PortEndpoint, bool>,
    /// Whether the rules of a Service port have endpoints.
    leads: Vec<bool>,
    node: &'a [IpAddr],
    stale: Option<&'a StaleFlows>,
    counts: HashMap<PortEndpoint, Count>,
    /// Flows without translation, by Service port.
    untranslated: BTreeMap<usize, u64>,
    total: u64,
}

impl<'a> FlowCount<'a> {
    /// A count of zero flows. `stale` decides by objects; without it, UDP flows to endpoints without rules are stale.
    #[must_use]
    pub fn new(views: &[ServicePortView], node: &'a [IpAddr], stale: Option<&'a StaleFlows>) -> Self {
        let mut endpoints = HashMap::new();
        for (at, view) in views.iter().enumerate() {
            for endpoint in &view.endpoints {
                if let Some(address) = endpoint.address {
                    endpoints.insert((at, address), endpoint.used());
                }
            }
        }
        let leads = views.iter().map(|view| view.endpoints.iter().any(EndpointView::used)).collect();
        let owners = owners(views).into_iter().collect();
        let (counts, untranslated) = (HashMap::new(), BTreeMap::new());
        Self { owners, endpoints, leads, node, stale, counts, untranslated, total: 0 }
    }

    /// Counts a flow.
    pub fn add(&mut self, flow: &Flow, state: &'static str) {
        self.total += 1;
        let Some(protocol) = Protocol::of_number(flow.protocol) else { return };
        let to = flow.original.destination;
        let address = self.owners.get(&(Some(to.ip()), to.port(), protocol.name()));
        let is_node = || to.ip().is_loopback() || self.node.contains(&to.ip());
        let node_port = || self.owners.get(&(None, to.port(), protocol.name())).filter(|_| is_node());
        let Some(&owner) = address.or_else(node_port) else { return };
        let place = (owner, flow.reply.source);
        let stale = protocol == Protocol::Udp
            && match self.stale {
                Some(stale) => stale.is_stale(flow),
                None => self.leads[owner] && self.endpoints.get(&place) != Some(&true),
            };
        if !flow.redirected() && !stale {
            *self.untranslated.entry(owner).or_default() += 1;
            return;
        }
        let count = self.counts.entry(place).or_default();
        *count.states.entry(state).or_default() += 1;
        count.stale += u64::from(stale);
    }

    /// Writes the counts to the views; returns the number of flows.
    pub fn finish(self, views: &mut [ServicePortView]) -> u64 {
        for ((owner, address), count) in self.counts {
            let endpoints = &mut views[owner].endpoints;
            let at = endpoints.iter().position(|endpoint| endpoint.address == Some(address)).unwrap_or_else(|| {
                let mut gone = EndpointView::at(Some(address));
                gone.unused = Some("no endpoint any more: flows of before still go there".to_owned());
                endpoints.push(gone);
                endpoints.len() - 1
            });
            endpoints[at].flows = count.states;
            endpoints[at].stale = count.stale;
        }
        for (owner, flows) in self.untranslated {
            views[owner].notes.push(format!("{flows} flows to its addresses that nothing translated"));
        }
        views.iter_mut().for_each(|view| view.endpoints.sort_by_key(|endpoint| endpoint.address));
        self.total
    }
}
