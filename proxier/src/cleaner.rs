//! Deletes stale conntrack entries of UDP flows after syncs.
//!
//! The kernel evaluates NAT rules only for the first packet of a flow, so a flow to a removed endpoint outlives its
//! rules. Failed deletions are retried. A second pass finds the flows of packets that were on their way through the old
//! rules during the first.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use netfilter::IpFamily;
use netfilter::conntrack::UDP;
use netfilter::kernel::{ConntrackTable, Deletions, Host};
use tracing::{debug, info, warn};

use crate::addresses::node_port_addresses;
use crate::conntrack::StaleFlows;
use crate::model::{Destination, NodePortAddresses, Scope, Snapshot};

/// The time from a pass to the second one.
///
/// A sender that is preempted between the NAT rules and the end of the hook, where the kernel enters the flow in the table,
/// or a packet in a queue for user space, comes after the first pass with what the old rules decided.
const SECOND_PASS_AFTER: Duration = Duration::from_secs(1);

/// The result of a pass over the conntrack table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CleanupStats {
    /// Duration of the pass.
    pub duration: Duration,
    /// Number of deleted flows.
    pub deleted: usize,
}

/// Deletes stale UDP flows of one family.
#[derive(Debug)]
pub struct FlowCleaner {
    family: IpFamily,
    node_port_addresses: NodePortAddresses,
    table: Box<dyn ConntrackTable>,
    host: Box<dyn Host>,
    /// Whether the last pass failed: the next one covers everything, and the destinations released since.
    needs_retry: bool,
    gone: BTreeSet<Destination>,
    /// Addresses that served node ports since the last full pass.
    served: BTreeSet<IpAddr>,
    /// The failure that is logged already.
    failure: String,
    second: Option<SecondPass>,
    second_after: Duration,
}

/// What the second pass looks for.
#[derive(Debug)]
struct SecondPass {
    at: Instant,
    scope: Scope,
    gone: BTreeSet<Destination>,
}

impl FlowCleaner {
    /// Creates a cleaner without failed passes.
    #[must_use]
    pub fn new(
        family: IpFamily,
        node_port_addresses: NodePortAddresses,
        table: Box<dyn ConntrackTable>,
        host: Box<dyn Host>,
    ) -> Self {
        Self {
            family,
            node_port_addresses,
            table,
            host,
            needs_retry: false,
            gone: BTreeSet::new(),
            served: BTreeSet::new(),
            failure: String::new(),
            second: None,
            second_after: SECOND_PASS_AFTER,
        }
    }

    /// Sets the time from a pass to the second one.
    #[must_use]
    pub fn with_second_pass_after(self, second_after: Duration) -> Self {
        Self { second_after, ..self }
    }

    /// Whether the last pass failed and must be repeated.
    #[must_use]
    pub fn needs_retry(&self) -> bool {
        self.needs_retry
    }

    /// Whether the node lost an address at which node ports were served.
    ///
    /// Flows may then be stale although no Service changed, and a full pass is needed. `node_ip` is the node's own
    /// address.
    #[must_use]
    pub fn lost_node_port_address(&mut self, node_ip: IpAddr) -> bool {
        if self.served.is_empty() {
            return false;
        }
        let Ok(now) = self.addresses(node_ip) else { return false };
        // Each pod that ends takes the link-local address of its interface along.
        let left = left(&self.served, &now).iter().any(|ip| !self.family.is_link_local(ip));
        self.served.extend(now);
        left
    }

    fn addresses(&mut self, node_ip: IpAddr) -> io::Result<Vec<IpAddr>> {
        node_port_addresses(self.host.as_mut(), &self.node_port_addresses, self.family, node_ip)
    }

    /// Deletes the flows that are stale after a sync of `scope` that released the destinations `gone`.
    ///
    /// Returns `None` if no flow can be stale or the table cannot be listed.
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
            self.record_success();
            return None;
        }
        let released = self.gone.clone();
        let (cleaned, addresses) = self.pass(stale, snapshot)?;
        if *scope == Scope::Full && !self.needs_retry {
            self.served.clear();
        }
        self.served.extend(addresses);
        self.schedule_second_pass(scope, released);
        Some(cleaned)
    }

    /// Deletes again what is stale by now of what the last passes looked for, once that is due.
    ///
    /// Returns `None` if nothing was deleted.
    pub fn clean_again(&mut self, snapshot: &Snapshot<'_>, now: Instant) -> Option<CleanupStats> {
        let second = self.second.take_if(|second| second.at <= now)?;
        let stale = StaleFlows::of(snapshot, &second.scope, &second.gone);
        // A retry covers everything.
        if stale.is_empty() || self.needs_retry {
            return None;
        }
        self.pass(stale, snapshot).map(|(cleaned, _)| cleaned).filter(|cleaned| cleaned.deleted > 0)
    }

    /// Plans a second pass for this and what one is planned for already.
    fn schedule_second_pass(&mut self, scope: &Scope, gone: BTreeSet<Destination>) {
        let at = Instant::now() + self.second_after;
        let second = self.second.get_or_insert_with(|| SecondPass { at, scope: scope.clone(), gone: BTreeSet::new() });
        second.at = at;
        second.gone.extend(gone);
        match (&mut second.scope, scope) {
            (Scope::Changed(planned), Scope::Changed(names)) => planned.extend(names.iter().cloned()),
            (planned, _) => *planned = Scope::Full,
        }
    }

    /// Passes over the table once. Also returns the current node port addresses if they were needed.
    fn pass(&mut self, stale: StaleFlows, snapshot: &Snapshot<'_>) -> Option<(CleanupStats, Vec<IpAddr>)> {
        let start = Instant::now();
        match self.delete(stale, snapshot) {
            Ok((deleted, addresses, problem)) => {
                let cleaned = CleanupStats { duration: start.elapsed(), deleted: deleted.flows };
                self.report(&deleted, problem, cleaned.duration);
                Some((cleaned, addresses))
            }
            Err(error) => {
                self.record_failure(format!("cannot list conntrack entries to find stale UDP flows: {error}"));
                None
            }
        }
    }

    /// Returns the deletions, the current node port addresses if needed, and the error if those could not be read.
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
                debug!("deleting stale flow: {flow}");
            }
            is_stale
        })?;
        Ok((deleted, addresses, problem))
    }

    fn report(&mut self, deleted: &Deletions, problem: Option<io::Error>, duration: Duration) {
        if deleted.flows > 0 {
            info!("{}: deleted {} stale UDP flows in {duration:?}", self.family, deleted.flows);
        }
        match &deleted.reason {
            Some(reason) => self.record_failure(format!("cannot delete {} stale UDP flows: {reason}", deleted.failed)),
            None if deleted.incomplete => {
                self.record_failure(
                    "cannot find all stale UDP flows: the conntrack table changed during the listing".to_owned(),
                );
            }
            None => match problem {
                Some(error) => {
                    self.record_failure(format!("cannot read node addresses to find stale UDP flows: {error}"));
                }
                None => self.record_success(),
            },
        }
    }

    fn record_success(&mut self) {
        self.needs_retry = false;
        self.gone.clear();
        self.failure.clear();
    }

    /// Schedules a full pass; logs a new reason once.
    fn record_failure(&mut self, failure: String) {
        self.needs_retry = true;
        if self.failure != failure {
            warn!("{}: {failure}; retrying", self.family);
            self.failure = failure;
        }
    }
}

/// The addresses in `before` that are not in `now`.
fn left(before: &BTreeSet<IpAddr>, now: &[IpAddr]) -> Vec<IpAddr> {
    let now: BTreeSet<IpAddr> = now.iter().copied().collect();
    before.difference(&now).copied().collect()
}
