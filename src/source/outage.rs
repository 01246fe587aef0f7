//! How long objects could not be read from the API server, by kind.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proxier::track::Kind;
use tokio::time::Instant;

/// The outages of all kinds, shared by their reflectors and the metrics.
#[derive(Clone, Debug, Default)]
pub struct Outages(Arc<Mutex<BTreeMap<&'static str, Outage>>>);

/// Since when one kind cannot be read.
#[derive(Clone, Copy, Debug, Default)]
struct Outage {
    since: Option<Instant>,
    /// A list or watch has been answered since.
    is_over: bool,
}

impl Outages {
    /// Adds a kind, without an outage.
    pub fn add(&self, kind: Kind) {
        self.of_kinds().entry(kind.name()).or_default();
    }

    /// Records that a list was complete or a watch was opened.
    pub fn recovered(&self, kind: Kind) {
        self.of_kinds().entry(kind.name()).or_default().is_over = true;
    }

    /// Records a failure. `is_short`: of a watch that ended at once, so that its opening was no recovery.
    pub fn failed(&self, kind: Kind, is_short: bool) {
        let mut kinds = self.of_kinds();
        let outage = kinds.entry(kind.name()).or_default();
        if outage.is_over && !is_short {
            outage.since = None;
        }
        outage.is_over = false;
        outage.since.get_or_insert_with(Instant::now);
    }

    /// How long each kind could not be read, up to now; zero if it can.
    #[must_use]
    pub fn durations(&self) -> BTreeMap<&'static str, Duration> {
        let lasting =
            |outage: &Outage| outage.since.filter(|_| !outage.is_over).map_or(Duration::ZERO, |at| at.elapsed());
        self.of_kinds().iter().map(|(kind, outage)| (*kind, lasting(outage))).collect()
    }

    fn of_kinds(&self) -> MutexGuard<'_, BTreeMap<&'static str, Outage>> {
        // No holder of the lock can leave a partial change behind.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn outage_lasts_from_its_first_failure_to_an_answer_that_holds() {
        let outages = Outages::default();
        let after = async |seconds| {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            outages.durations()["Service"].as_secs()
        };
        outages.add(Kind::Service);
        assert_eq!(after(5).await, 0);
        outages.failed(Kind::Service, false);
        assert_eq!(after(5).await, 5);
        outages.failed(Kind::Service, false);
        assert_eq!(after(5).await, 10);
        // A watch that is opened and ends at once.
        outages.recovered(Kind::Service);
        outages.failed(Kind::Service, true);
        assert_eq!(after(5).await, 15);
        outages.recovered(Kind::Service);
        assert_eq!(after(5).await, 0);
        outages.failed(Kind::Service, false);
        assert_eq!(after(5).await, 5);
    }
}
