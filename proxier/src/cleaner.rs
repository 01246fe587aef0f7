//! Deletes stale flows after syncs.
//!
//! In: a snapshot and what changed, after each successful sync. Out: stale flows are gone from the conntrack table,
//! and what could not be done is kept for the next time. Must not know: how the rules are made.

use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use crate::conntrack::StaleFlows;
use crate::family::IpFamily;
use crate::kernel::{ConntrackTable, Deleted, Host};
use crate::model::{Destination, NodePortAddresses, Scope, Snapshot};
use crate::netfilter::conntrack::UDP;

/// What a look at the conntrack table came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cleaned {
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
    owes: bool,
    gone: BTreeSet<Destination>,
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
        let (owes, gone, complaint) = (false, BTreeSet::new(), String::new());
        Self { family, node_port_addresses, table, host, owes, gone, complaint }
    }

    /// Whether the last clean-up failed.
    #[must_use]
    pub fn owes(&self) -> bool {
        self.owes
    }

    /// Deletes the flows that are stale after a sync of `scope`, in which these destinations may have been given up.
    /// `None` if there was no need to look, or the table could not be listed.
    pub fn clean(&mut self, snapshot: &Snapshot<'_>, scope: &Scope, gone: BTreeSet<Destination>) -> Option<Cleaned> {
        self.gone.extend(gone);
        let scope = if self.owes { &Scope::Full } else { scope };
        let stale = StaleFlows::of(snapshot, scope, &self.gone);
        if stale.is_empty() {
            self.settle();
            return None;
        }
        let start = Instant::now();
        match self.delete(stale, snapshot) {
            Ok(deleted) => {
                let cleaned = Cleaned { duration: start.elapsed(), deleted: deleted.flows };
                self.note(&deleted, cleaned.duration);
                Some(cleaned)
            }
            Err(error) => {
                self.complain(format!("cannot look for stale UDP flows: {error}"));
                None
            }
        }
    }

    fn delete(&mut self, stale: StaleFlows, snapshot: &Snapshot<'_>) -> io::Result<Deleted> {
        let stale = if stale.has_node_ports() {
            let selector = self.node_port_addresses.resolve(self.family, snapshot.node_ip);
            stale.at_node(selector.select(&self.host.addresses(self.family)?))
        } else {
            stale
        };
        self.table.delete(self.family, UDP, &mut |flow| {
            let is_stale = stale.is_stale(flow);
            if is_stale {
                debug!("stale: {flow}");
            }
            is_stale
        })
    }

    fn note(&mut self, deleted: &Deleted, duration: Duration) {
        if deleted.flows > 0 {
            info!("{}: deleted {} stale UDP flows in {duration:?}", self.family, deleted.flows);
        }
        match &deleted.reason {
            Some(reason) => self.complain(format!("cannot delete {} stale UDP flows: {reason}", deleted.failed)),
            None if deleted.incomplete => {
                self.complain("the conntrack table changed too fast to find all stale UDP flows".to_owned());
            }
            None => self.settle(),
        }
    }

    fn settle(&mut self) {
        self.owes = false;
        self.gone.clear();
        self.complaint.clear();
    }

    /// Has everything looked at again; says once why.
    fn complain(&mut self, complaint: String) {
        self.owes = true;
        if self.complaint != complaint {
            warn!("{}: {complaint}; it will be tried again", self.family);
            self.complaint = complaint;
        }
    }
}
