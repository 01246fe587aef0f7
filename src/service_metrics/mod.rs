//! `--service-metrics`: connections of Service ports and endpoints, and refused packets, from the kernel's own counters.
//!
//! A thread of its own reads the kernel when a scrape wants it, because a read may take long or hang; the scrape waits
//! for it with a deadline and else shows the values of the read before. Syncs are not involved: the reader knows the
//! kernel only, and names are in it.

mod admission;
mod refusals;
mod selected;
mod start;
mod totals;

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use netfilter::IpFamily;
use proxier::traffic::CountedTraffic;
use tracing::warn;

use self::refusals::RefusalTotals;
pub use self::selected::SelectedServices;
pub use self::start::start;
use self::totals::FamilyTotals;
pub use self::totals::TrafficSelection;
use crate::metrics::FamilyTraffic;

/// How long a scrape waits for the kernel.
const SCRAPE_DEADLINE: Duration = Duration::from_millis(250);

/// Reads what the kernel has counted for a family: all of it, or an error.
pub type ReadCounts = Box<dyn FnMut(IpFamily) -> io::Result<CountedTraffic> + Send>;

/// The totals, and the thread that reads for them.
#[derive(Clone)]
pub struct ServiceTraffic(Arc<Shared>);

struct Shared {
    state: Mutex<TrafficState>,
    wanted: Condvar,
    finished: Condvar,
}

struct TrafficState {
    /// The number of the last scrape, and of the last scrape that a finished read had begun after.
    scrapes: u64,
    answered: u64,
    has_volume: bool,
    families: Vec<(IpFamily, FamilyState)>,
}

#[derive(Default)]
struct FamilyState {
    totals: FamilyTotals,
    refusals: RefusalTotals,
    failures: u64,
    /// The failure that is logged already.
    failure: String,
    read_at: Option<f64>,
}

impl ServiceTraffic {
    /// Starts the thread. It reads in the network namespace of the process, and ends with it.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(families: &[IpFamily], selection: TrafficSelection, read: ReadCounts) -> io::Result<Self> {
        let families = families.iter().map(|family| (*family, FamilyState::default())).collect();
        let shared = Arc::new(Shared {
            state: Mutex::new(TrafficState { scrapes: 0, answered: 0, has_volume: selection.ipvs, families }),
            wanted: Condvar::new(),
            finished: Condvar::new(),
        });
        let (of_thread, thread) = (shared.clone(), std::thread::Builder::new().name("service-metrics".to_owned()));
        thread.spawn(move || of_thread.serve(&selection, read))?;
        Ok(Self(shared))
    }

    /// The totals of a read that begins now, or of the last one that ended if it takes too long.
    #[must_use]
    pub fn read(&self) -> Vec<(IpFamily, FamilyTraffic)> {
        let mut state = self.0.lock();
        state.scrapes += 1;
        let scrape = state.scrapes;
        self.0.wanted.notify_one();
        let waited = self.0.finished.wait_timeout_while(state, SCRAPE_DEADLINE, |state| state.answered < scrape);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.families.iter().map(|(family, of_family)| (*family, of_family.shown(state.has_volume))).collect()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, TrafficState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the kernel whenever a scrape wants it. Without scrapes nothing is read.
    fn serve(&self, selection: &TrafficSelection, mut read: ReadCounts) {
        loop {
            let wanted = self.wanted.wait_while(self.lock(), |state| state.answered == state.scrapes);
            let state = wanted.unwrap_or_else(PoisonError::into_inner);
            let (scrape, families) = (state.scrapes, state.families.iter().map(|(family, _)| *family));
            let families: Vec<IpFamily> = families.collect();
            drop(state);
            let reads: Vec<io::Result<CountedTraffic>> = families.into_iter().map(&mut read).collect();
            let mut state = self.lock();
            for ((family, of_family), read) in state.families.iter_mut().zip(reads) {
                of_family.finish(*family, selection, read);
            }
            state.answered = scrape;
            drop(state);
            self.finished.notify_all();
            netfilter::kernel::memory::release();
        }
    }
}

impl FamilyState {
    /// Adds a read, or counts its failure.
    fn finish(&mut self, family: IpFamily, selection: &TrafficSelection, read: io::Result<CountedTraffic>) {
        match read {
            Ok(counted) => {
                let now = Instant::now();
                self.totals.add(selection, counted.connections, now);
                self.refusals.add(selection, counted.refused, now);
                self.failure.clear();
                self.read_at = Some(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());
            }
            Err(error) => {
                self.failures += 1;
                let failure = error.to_string();
                if failure != self.failure {
                    warn!("{family}: Failed to read the connections of Services, the last values are shown: {failure}");
                    self.failure = failure;
                }
            }
        }
    }

    fn shown(&self, has_volume: bool) -> FamilyTraffic {
        let mut traffic =
            FamilyTraffic { has_volume, failures: self.failures, read_at: self.read_at, ..self.totals.shown() };
        self.refusals.show(&mut traffic);
        traffic
    }
}

#[cfg(test)]
#[path = "reader_tests.rs"]
mod tests;
