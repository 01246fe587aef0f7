//! Health of the proxy and eligibility of its node, as `/healthz` and `/livez` report them.
//!
//! A family is unhealthy when a change has waited for twice the sync period, or when its thread has not taken a message
//! for
//! that long, wherever it hangs.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::jiff::{Zoned, tz::Offset};
use netfilter::IpFamily;
use proxier::mailbox::Activity;
use serde::Serialize;

/// A clock, replaced in tests.
pub trait Clock: fmt::Debug + Send + Sync {
    /// Monotonic time, to measure with.
    fn instant(&self) -> Instant;
    /// Wall-clock time in the local time zone, to show.
    fn date(&self) -> Zoned;
}

/// The system's clock.
#[derive(Debug)]
struct SystemClock;

impl Clock for SystemClock {
    fn instant(&self) -> Instant {
        Instant::now()
    }

    fn date(&self) -> Zoned {
        Zoned::now()
    }
}

#[derive(Debug)]
struct FamilyHealth {
    updated: Zoned,
    pending_since: Option<Instant>,
}

#[derive(Debug)]
struct HealthState {
    families: BTreeMap<IpFamily, FamilyHealth>,
    threads: BTreeMap<IpFamily, Activity>,
    node_eligible: bool,
}

/// Health state, shared between the families' threads and the HTTP servers.
#[derive(Debug)]
pub struct Health {
    timeout: Duration,
    clock: Box<dyn Clock>,
    state: Mutex<HealthState>,
}

/// A response body, in kube-proxy's form and field order.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HealthResponse {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    status: BTreeMap<&'static str, FamilyHealthResponse>,
    /// Whether the HTTP status is 200.
    #[serde(skip)]
    pub ok: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyHealthResponse {
    last_updated: String,
    healthy: bool,
}

/// Go's zero time.
const NEVER: &str = "0001-01-01T00:00:00Z";

impl Health {
    /// `node_eligible`: the eligibility reported before the Node is known.
    pub fn new(sync_period: Duration, node_eligible: bool) -> Self {
        Self::with_clock(sync_period, node_eligible, Box::new(SystemClock))
    }

    /// [`Self::new`] with another clock.
    pub fn with_clock(sync_period: Duration, node_eligible: bool, clock: Box<dyn Clock>) -> Self {
        let state = HealthState { families: BTreeMap::new(), threads: BTreeMap::new(), node_eligible };
        Self { timeout: 2 * sync_period, clock, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, HealthState> {
        // No holder of the lock can leave a partial change behind.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks a family as started.
    pub fn started(&self, family: IpFamily) {
        self.synced(family);
    }

    /// Counts the family as unhealthy while its thread hangs.
    pub fn watch_thread(&self, family: IpFamily, activity: Activity) {
        self.state().threads.insert(family, activity);
    }

    /// Marks a family as having changes to sync.
    pub fn queued(&self, family: IpFamily) {
        if let Some(family) = self.state().families.get_mut(&family) {
            family.pending_since.get_or_insert_with(|| self.clock.instant());
        }
    }

    /// Marks a family's sync as successful.
    pub fn synced(&self, family: IpFamily) {
        let updated = FamilyHealth { updated: self.clock.date(), pending_since: None };
        self.state().families.insert(family, updated);
    }

    /// Sets whether load balancers should send traffic to this node.
    pub fn set_node_eligible(&self, eligible: bool) {
        self.state().node_eligible = eligible;
    }

    /// Whether no change of the family waits too long and its thread does not hang.
    fn is_in_time(&self, state: &HealthState, name: IpFamily, family: &FamilyHealth) -> bool {
        let late = |since: Instant| self.clock.instant().saturating_duration_since(since) >= self.timeout;
        let busy_since = state.threads.get(&name).and_then(Activity::busy_since);
        !family.pending_since.is_some_and(late) && !busy_since.is_some_and(late)
    }

    fn all_in_time(&self, state: &HealthState) -> bool {
        state.families.iter().all(|(name, family)| self.is_in_time(state, *name, family))
    }

    /// Whether all families are healthy, as `/livez` reports.
    pub fn is_live(&self) -> bool {
        self.all_in_time(&self.state())
    }

    /// The response of `/healthz` or, without the Node, of `/livez`.
    pub fn response(&self, with_node: bool) -> HealthResponse {
        let state = self.state();
        let all_healthy = self.all_in_time(&state);
        let ok = all_healthy && (!with_node || state.node_eligible);
        let now = rfc3339(&self.clock.date());
        let newest = state.families.values().map(|family| &family.updated).max_by_key(|updated| updated.timestamp());
        let status = state.families.iter().map(|(name, family)| {
            let healthy = self.is_in_time(&state, *name, family);
            let response = FamilyHealthResponse { last_updated: rfc3339(&family.updated), healthy };
            (name.name(), response)
        });
        HealthResponse {
            last_updated: if ok { now.clone() } else { newest.map_or_else(|| NEVER.to_owned(), rfc3339) },
            current_time: now,
            node_eligible: with_node.then_some(state.node_eligible),
            healthy: all_healthy,
            status: status.collect(),
            ok,
        }
    }
}

/// A date in Go's RFC3339Nano: fractional digits as needed, the zone as an offset or `Z`.
fn rfc3339(date: &Zoned) -> String {
    let zone = if date.offset() == Offset::UTC { "Z" } else { "%:z" };
    date.strftime(&format!("%Y-%m-%dT%H:%M:%S%.f{zone}")).to_string()
}

#[cfg(test)]
#[path = "health_tests.rs"]
mod tests;
