//! Deletes stale flows after syncs.
//!
//! In: a snapshot and what changed, after each successful sync. Out: stale flows are gone from the conntrack table,
//! and what could not be done is kept for the next time. Must not know: how the rules are made.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use netfilter::IpFamily;
use netfilter::conntrack::UDP;
use netfilter::kernel::{ConntrackTable, Deletions, Host};
use tracing::{debug, info, warn};

use crate::addresses::VIRTUAL_IP_DEVICE;
use crate::conntrack::StaleFlows;
use crate::model::{Destination, NodePortAddresses, Scope, Snapshot};

/// What a look at the conntrack table came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CleanupStats {
    /// How long it took.
    pub duration: Duration,
    /// How many flows were deleted.
    pub deleted: usize,
}

/// Keeps the conntrack table of one family in line with the rules.
#[derive(Debug)]
pub struct FlowCleaner {
    family: IpFamily,
    node_port_addresses: NodePortAddresses,
    table: Box<dyn ConntrackTable>,
    host: Box<dyn Host>,
    /// A clean-up failed: the next one looks at everything, and at what was given up since.
    needs_retry: bool,
    gone: BTreeSet<Destination>,
    /// Where node ports were served since all flows were looked at last.
    served: BTreeSet<IpAddr>,
    /// The failure that the log has already.
    complaint: String,
}

impl FlowCleaner {
    /// A cleaner that owes nothing.
    #[must_use]
    pub fn new(
        family: IpFamily,
        node_port_addresses: NodePortAddresses,
        table: Box<dyn ConntrackTable>,
        host: Box<dyn Host>,
    ) -> Self {
        let (needs_retry, gone, served, complaint) = (false, BTreeSet::new(), BTreeSet::new(), String::new());
        Self { family, node_port_addresses, table, host, needs_retry, gone, served, complaint }
    }

    /// Whether the last clean-up failed.
    #[must_use]
    pub fn needs_retry(&self) -> bool {
        self.needs_retry
    }

    /// Whether the node has given up an address at which node ports were served: then flows may be stale though no
    /// Service changed, and everything has to be looked at. `node_ip` is the node's own.
    #[must_use]
    pub fn left_addresses(&mut self, node_ip: IpAddr) -> bool {
        if self.served.is_empty() {
            return false;
        }
        let Ok(now) = self.addresses(node_ip) else { return false };
        let left = !left(&self.served, &now).is_empty();
        self.served.extend(now);
        left
    }

    fn addresses(&mut self, node_ip: IpAddr) -> io::Result<Vec<IpAddr>> {
        let selector = self.node_port_addresses.resolve(self.family, node_ip);
        // Those of Services, which IPVS mode has on a device of its own, serve no node ports.
        Ok(selector.select(&self.host.addresses_but(VIRTUAL_IP_DEVICE.as_str(), self.family)?))
    }

    /// Deletes the flows that are stale after a sync of `scope`, in which these destinations may have been given up.
    /// `None` if there was no need to look, or the table could not be listed.
    pub fn clean(
        &mut self,
        snapshot: &Snapshot<'_>,
        scope: &Scope,
        gone: BTreeSet<Destination>,
    ) -> Option<CleanupStats> {
        self.gone.extend(gone);
        let scope = if self.needs_retry { &Scope::Full } else { scope };
        let stale = StaleFlows::of(snapshot, scope, &self.gone);
        if stale.is_empty() {
            if *scope == Scope::Full {
                self.served.clear();
            }
            self.settle();
            return None;
        }
        let start = Instant::now();
        match self.delete(stale, snapshot) {
            Ok((deleted, addresses, problem)) => {
                let cleaned = CleanupStats { duration: start.elapsed(), deleted: deleted.flows };
                self.note(&deleted, problem, cleaned.duration);
                if *scope == Scope::Full && !self.needs_retry {
                    self.served.clear();
                }
                self.served.extend(addresses);
                Some(cleaned)
            }
            Err(error) => {
                self.complain(format!("cannot look for stale UDP flows: {error}"));
                None
            }
        }
    }

    /// What was deleted; where node ports are served now, if they were in question; and why that is only what was known.
    fn delete(
        &mut self,
        stale: StaleFlows,
        snapshot: &Snapshot<'_>,
    ) -> io::Result<(Deletions, Vec<IpAddr>, Option<io::Error>)> {
        let (mut stale, mut addresses, mut problem) = (stale, Vec::new(), None);
        if stale.has_node_ports() {
            addresses = self.addresses(snapshot.node_ip).unwrap_or_else(|error| {
                problem = Some(error);
                self.served.iter().copied().collect()
            });
            stale = stale.left(left(&self.served, &addresses)).at_node(addresses.clone());
        }
        let deleted = self.table.delete(self.family, UDP, &mut |flow| {
            let is_stale = stale.is_stale(flow);
            if is_stale {
                debug!("stale: {flow}");
            }
            is_stale
        })?;
        Ok((deleted, addresses, problem))
    }

    fn note(&mut self, deleted: &Deletions, problem: Option<io::Error>, duration: Duration) {
        if deleted.flows > 0 {
            info!("{}: deleted {} stale UDP flows in {duration:?}", self.family, deleted.flows);
        }
        match &deleted.reason {
            Some(reason) => self.complain(format!("cannot delete {} stale UDP flows: {reason}", deleted.failed)),
            None if deleted.incomplete => {
                self.complain("the conntrack table changed too fast to find all stale UDP flows".to_owned());
            }
            None => match problem {
                Some(error) => {
                    self.complain(format!("cannot read this node's addresses to look for stale UDP flows: {error}"));
                }
                None => self.settle(),
            },
        }
    }

    fn settle(&mut self) {
        self.needs_retry = false;
        self.gone.clear();
        self.complaint.clear();
    }

    /// Has everything looked at again; says once why.
    fn complain(&mut self, complaint: String) {
        self.needs_retry = true;
        if self.complaint != complaint {
            warn!("{}: {complaint}; it will be tried again", self.family);
            self.complaint = complaint;
        }
    }
}

/// The addresses that are not there any more.
fn left(before: &BTreeSet<IpAddr>, now: &[IpAddr]) -> Vec<IpAddr> {
    let now: BTreeSet<IpAddr> = now.iter().copied().collect();
    before.difference(&now).copied().collect()
}
