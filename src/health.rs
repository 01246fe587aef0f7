//! Whether this proxy does its work, and whether its node should get traffic.
//!
//! In: when families were asked to sync and when they did; the Node. Out: the answers of `/healthz` and `/livez`.
//! Must not know: HTTP. A family is unhealthy when a change has waited for twice the sync period.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use proxier::IpFamily;
use serde::Serialize;

#[derive(Clone, Copy, Debug)]
struct Family {
    updated: Timestamp,
    pending_since: Option<Instant>,
}

#[derive(Debug)]
struct State {
    families: BTreeMap<IpFamily, Family>,
    node_eligible: bool,
}

/// Shared between the families' threads and the servers.
#[derive(Debug)]
pub struct Health {
    timeout: Duration,
    state: Mutex<State>,
}

/// An answer, in kube-proxy's form and order.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    status: BTreeMap<&'static str, FamilyAnswer>,
    /// Whether the status is 200.
    #[serde(skip)]
    pub ok: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyAnswer {
    last_updated: String,
    healthy: bool,
}

/// Go's zero time.
const NEVER: &str = "0001-01-01T00:00:00Z";

impl Health {
    /// `node_eligible`: what holds before the Node is known.
    pub fn new(sync_period: Duration, node_eligible: bool) -> Self {
        let state = State { families: BTreeMap::new(), node_eligible };
        Self { timeout: 2 * sync_period, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that holds the lock can leave half of a change behind.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A family's loop begins.
    pub fn started(&self, family: IpFamily) {
        self.state().families.insert(family, Family { updated: Timestamp::now(), pending_since: None });
    }

    /// A family has something to sync.
    pub fn queued(&self, family: IpFamily) {
        if let Some(family) = self.state().families.get_mut(&family) {
            family.pending_since.get_or_insert_with(Instant::now);
        }
    }

    /// A family's sync succeeded.
    pub fn synced(&self, family: IpFamily) {
        self.state().families.insert(family, Family { updated: Timestamp::now(), pending_since: None });
    }

    /// The Node was seen: whether load balancers should send traffic to it.
    pub fn node(&self, eligible: bool) {
        self.state().node_eligible = eligible;
    }

    /// The answer of `/healthz`, or of `/livez`, which does not look at the Node.
    pub fn answer(&self, with_node: bool) -> Answer {
        let state = self.state();
        let healthy = |family: &Family| family.pending_since.is_none_or(|since| since.elapsed() < self.timeout);
        let all_healthy = state.families.values().all(healthy);
        let ok = all_healthy && (!with_node || state.node_eligible);
        let now = Timestamp::now().to_string();
        let newest = state.families.values().map(|family| family.updated).max();
        let status = state.families.iter().map(|(name, family)| {
            (name.name(), FamilyAnswer { last_updated: family.updated.to_string(), healthy: healthy(family) })
        });
        Answer {
            last_updated: if ok { now.clone() } else { newest.map_or_else(|| NEVER.to_owned(), |t| t.to_string()) },
            current_time: now,
            node_eligible: with_node.then_some(state.node_eligible),
            healthy: all_healthy,
            status: status.collect(),
            ok,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_that_waits_too_long_is_unhealthy_until_it_is_synced() {
        let health = Health::new(Duration::ZERO, true);
        health.started(IpFamily::V4);
        assert!(health.answer(true).ok);
        health.queued(IpFamily::V4);
        let answer = health.answer(true);
        assert!(!answer.ok && !answer.healthy);
        health.synced(IpFamily::V4);
        assert!(health.answer(false).ok);
    }

    #[test]
    fn the_node_counts_for_healthz_only() {
        let health = Health::new(Duration::from_secs(30), true);
        health.node(false);
        let (healthz, livez) = (health.answer(true), health.answer(false));
        assert!(!healthz.ok && livez.ok && healthz.healthy);
        let text = serde_json::to_string(&healthz).expect("JSON");
        assert!(text.starts_with(r#"{"lastUpdated":"0001-01-01T00:00:00Z","currentTime":""#), "{text}");
        assert!(text.ends_with(r#""nodeEligible":false,"healthy":true}"#), "{text}");
        assert!(!serde_json::to_string(&livez).expect("JSON").contains("nodeEligible"));
    }
}
