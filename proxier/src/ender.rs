//! Ends connections to endpoints that are gone, for Services that ask for it.
//!
//! Rules affect only the first packet of a connection, so a connection to an endpoint that vanished without a word hangs
//! until its client gives up. Without its conntrack entry the client's next segment is a new connection to the kernel
//! (`nf_conntrack_tcp_loose`): it goes to another endpoint, which resets it. A probe makes clients send that segment at
//! once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::time::{Duration, Instant};

use netfilter::IpFamily;
use netfilter::kernel::{ClientProbe, ConntrackTable, Deletions, Host};
use tracing::{debug, info, warn};

use crate::addresses::node_port_addresses;
use crate::model::{NodePortAddresses, Protocol, Scope, ServicePort, ServicePortName, Snapshot};
use crate::vanished::{self, KnownEndpoints, VanishedConnections};

/// How long an endpoint must be gone: one that moves between EndpointSlices may be in none of them for a moment.
const GRACE: Duration = Duration::from_millis(500);

/// The least time between two passes over the conntrack table.
const PASS_INTERVAL: Duration = Duration::from_secs(1);

/// The time before another pass after a failure.
const RETRY: Duration = Duration::from_secs(30);

/// The most connections that a pass ends: clients should not all connect again in the same second.
pub const MAX_PER_PASS: usize = 1000;

/// A conntrack setting; unless it is 1, segments in the middle of a connection are invalid and never redirected.
const LOOSE: &str = "net/netfilter/nf_conntrack_tcp_loose";

/// Ends the connections of Service ports that a mode tracks itself, if it does.
pub type EndTracked<'a> = dyn FnMut(&BTreeSet<ServicePortName>) + 'a;

/// The access to the kernel that an ender needs.
#[derive(Debug)]
pub struct EnderKernel {
    /// The conntrack table.
    pub table: Box<dyn ConntrackTable>,
    /// Addresses and sysctls.
    pub host: Box<dyn Host>,
    /// Makes TCP clients send a segment.
    pub clients: Box<dyn ClientProbe>,
}

/// Ends connections to endpoints that are gone, in one family.
#[derive(Debug)]
pub struct ConnectionEnder {
    family: IpFamily,
    node_port_addresses: NodePortAddresses,
    kernel: EnderKernel,
    /// The endpoints of Service ports that ask, as of the last successful sync.
    known: KnownEndpoints,
    /// Service ports that may have connections to endpoints that are gone, each with the time of its last loss.
    pending: BTreeMap<ServicePortName, Instant>,
    due: Option<Instant>,
    last_pass: Option<Instant>,
    /// The failure that is logged already.
    failure: String,
}

impl ConnectionEnder {
    /// Creates an ender that knows no Service port.
    #[must_use]
    pub fn new(family: IpFamily, node_port_addresses: NodePortAddresses, kernel: EnderKernel) -> Self {
        Self {
            family,
            node_port_addresses,
            kernel,
            known: HashMap::new(),
            pending: BTreeMap::new(),
            due: None,
            last_pass: None,
            failure: String::new(),
        }
    }

    /// Compares the endpoints of the synced Service ports with those of the sync before, and schedules a pass.
    ///
    /// Only Service ports that ask are considered. Those that were not known may have lost any endpoint.
    pub fn synced(&mut self, snapshot: &Snapshot<'_>, scope: &Scope, now: Instant) {
        match scope {
            Scope::Full => {
                self.known.retain(|name, _| snapshot.ports.contains_key(name));
                self.pending.retain(|name, _| snapshot.ports.contains_key(name));
                for (name, port) in snapshot.ports {
                    self.compare(snapshot, name, Some(port), now);
                }
            }
            Scope::Changed(names) => {
                for name in names {
                    self.compare(snapshot, name, snapshot.ports.get(name), now);
                }
            }
        }
        self.schedule();
    }

    /// Schedules a pass for the Service port that has waited longest, if none is scheduled.
    fn schedule(&mut self) {
        let ready = self.pending.iter().filter(|(name, _)| self.can_reset(name));
        let Some(first) = ready.map(|(_, lost)| *lost + GRACE).min() else { return };
        let not_before = self.last_pass.map_or(first, |last| last + PASS_INTERVAL);
        self.due.get_or_insert(first.max(not_before));
    }

    fn compare(&mut self, snapshot: &Snapshot<'_>, name: &ServicePortName, port: Option<&ServicePort>, now: Instant) {
        if !port.is_some_and(|port| vanished::asks(name, port)) {
            self.known.remove(name);
            self.pending.remove(name);
            return;
        }
        let current = vanished::endpoints(snapshot, name);
        let lost = |before: &[_]| before.iter().any(|address| current.binary_search(address).is_err());
        if self.known.get(name).is_none_or(|before| lost(before)) {
            self.pending.insert(name.clone(), now);
        }
        self.known.insert(name.clone(), current);
    }

    /// Whether an endpoint can reset connections of a Service port. Clients ignore the error of rules that reject.
    fn can_reset(&self, name: &ServicePortName) -> bool {
        self.known.get(name).is_some_and(|endpoints| !endpoints.is_empty())
    }

    /// When the next pass is due.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Ends connections, at most [`MAX_PER_PASS`], and probes their TCP clients; returns their number.
    ///
    /// `end_tracked` ends those that a mode tracks besides, after entries are deleted and before clients are probed. If
    /// there are more, another pass is due after a second; after a failure, after 30 seconds.
    pub fn end(&mut self, snapshot: &Snapshot<'_>, now: Instant, end_tracked: &mut EndTracked<'_>) -> usize {
        self.due = None;
        let ready = self.pending.iter().filter(|(name, lost)| **lost + GRACE <= now && self.can_reset(name));
        let names: BTreeSet<_> = ready.map(|(name, _)| name.clone()).collect();
        if names.is_empty() {
            // A Service port that lost another endpoint waits longer.
            self.schedule();
            return 0;
        }
        self.last_pass = Some(now);
        match self.pass(snapshot, &names, end_tracked) {
            Ok(pass) => {
                if pass.ended > 0 {
                    info!("{}: ended {} connections to endpoints that are gone", self.family, pass.ended);
                }
                match pass.problem {
                    Some(problem) => self.record_failure(problem, now),
                    None if pass.incomplete => self.due = Some(now + PASS_INTERVAL),
                    None => {
                        self.failure.clear();
                        self.pending.retain(|name, _| !names.contains(name));
                        self.schedule();
                    }
                }
                pass.ended
            }
            Err(error) => {
                self.record_failure(format!("cannot end connections to endpoints that are gone: {error}"), now);
                0
            }
        }
    }

    fn pass(
        &mut self,
        snapshot: &Snapshot<'_>,
        names: &BTreeSet<ServicePortName>,
        end_tracked: &mut EndTracked<'_>,
    ) -> io::Result<Pass> {
        let mut pass = Pass::default();
        if self.kernel.host.sysctl(LOOSE).is_ok_and(|loose| loose == 0) {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            pass.problem = Some(format!(
                "cannot end connections of {} to endpoints that are gone: sysctl {LOOSE} is 0; set it to 1",
                names.join(", ")
            ));
            return Ok(pass);
        }
        let mut stale = VanishedConnections::of(snapshot, names, &self.known);
        if stale.has_node_ports() {
            let (host, config) = (self.kernel.host.as_mut(), &self.node_port_addresses);
            stale = stale.at_node(node_port_addresses(host, config, self.family, snapshot.node_ip)?);
        }
        let mut probed = Vec::new();
        for protocol in stale.protocols() {
            let (mut ended, mut more) = (Vec::new(), false);
            let left = MAX_PER_PASS.saturating_sub(pass.ended);
            let deleted = self.kernel.table.delete(self.family, protocol, &mut |flow| {
                if !stale.contains(flow) {
                    return false;
                }
                if ended.len() == left {
                    more = true;
                    return false;
                }
                debug!("ending connection: {flow}");
                ended.push(*flow);
                true
            })?;
            pass.add(&deleted, more);
            if protocol == Protocol::Tcp.number() {
                probed = ended;
            }
        }
        end_tracked(names);
        if let Err(error) = self.kernel.clients.probe(self.family, &probed) {
            warn!("{}: cannot probe clients of ended connections, they notice later: {error}", self.family);
        }
        Ok(pass)
    }

    /// Logs a new failure once, and schedules another pass.
    fn record_failure(&mut self, failure: String, now: Instant) {
        if self.failure != failure {
            warn!("{}: {failure}", self.family);
            self.failure = failure;
        }
        self.due = Some(now + RETRY);
    }
}

/// The result of a pass.
#[derive(Debug, Default)]
struct Pass {
    ended: usize,
    /// Whether connections may be left.
    incomplete: bool,
    problem: Option<String>,
}

impl Pass {
    fn add(&mut self, deleted: &Deletions, more: bool) {
        self.ended += deleted.flows;
        self.incomplete |= more || deleted.incomplete;
        if let Some(reason) = &deleted.reason {
            self.problem = Some(format!("cannot delete {} conntrack entries: {reason}; retrying", deleted.failed));
        }
    }
}
