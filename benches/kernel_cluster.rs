//! A cluster of Services with ten endpoints each, and one family's proxy of it, for benches in the real kernel.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use netfilter::IpFamily;
use proxier::backend::Backend;
use proxier::testing::objects;
use proxier::track::{Kind, Tracker, Translator};
use serde_json::Value;

/// The number of endpoints of each Service.
pub const ENDPOINTS: u32 = 10;
/// The number of changes of each kind.
pub const CHANGES: u32 = 300;

fn address(number: u32) -> IpAddr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 0).to_bits() + number).into()
}

/// A Service.
pub fn service(number: u32) -> Value {
    objects::service("scale", &format!("svc-{number:05}"), address(10_000_000 + number))
}

/// A Service's slice; `version` changes the last endpoint.
pub fn slice(number: u32, version: u32) -> Value {
    slice_of(number, version, ENDPOINTS)
}

/// The same with this many endpoints.
pub fn slice_of(number: u32, version: u32, count: u32) -> Value {
    let mut endpoints: Vec<_> = (0..count).map(|index| address(number * ENDPOINTS + index)).collect();
    endpoints[9] = address(version * 2_000_000 + number * ENDPOINTS + 9);
    let service = format!("svc-{number:05}");
    objects::slice("scale", &service, &format!("{service}-x7k2p"), &endpoints)
}

/// The objects, and the mode that programs them.
pub struct Cluster {
    translator: Translator,
    tracker: Tracker,
    backend: Box<dyn Backend>,
}

impl Cluster {
    /// A mode with this many Services, before its first sync.
    pub fn new(backend: Box<dyn Backend>, services: u32) -> Self {
        let mut cluster =
            Self { translator: Translator::new(objects::NODE, false), tracker: Tracker::default(), backend };
        cluster.tracker.request_full_sync();
        for number in 0..services {
            cluster.take(Kind::Service, service(number));
            cluster.take(Kind::EndpointSlice, slice(number, 0));
        }
        cluster
    }

    fn take(&mut self, kind: Kind, object: Value) {
        for (family, change) in self.translator.applied(objects::decoded(kind, object)).expect("a good object").changes
        {
            if family == IpFamily::V4 {
                self.tracker.apply(change);
            }
        }
    }

    /// The time of changes from decoded object to commit, sorted.
    pub fn times(&mut self, objects: impl Fn(u32) -> Vec<(Kind, Value)>) -> Vec<Duration> {
        let mut times: Vec<Duration> = (0..CHANGES)
            .map(|change| {
                let objects = objects(change);
                let started = Instant::now();
                objects.into_iter().for_each(|(kind, object)| self.take(kind, object));
                self.sync();
                started.elapsed()
            })
            .collect();
        times.sort();
        times
    }

    /// Programs what has changed. Returns how long it took.
    pub fn sync(&mut self) -> Duration {
        let started = Instant::now();
        let scope = self.tracker.take_scope();
        let stats = self.backend.sync(&self.tracker.snapshot(IpFamily::V4.localhost()), &scope, started);
        assert!(stats.expect("the kernel takes it").rejected.is_empty());
        started.elapsed()
    }
}

/// p50 / p99 of sorted times.
pub fn quantiles(times: &[Duration]) -> String {
    let at = |share: usize| times[times.len() * share / 100];
    format!("{:.2?} / {:.2?}", at(50), at(99))
}

/// The memory of this process.
pub fn resident() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned();
    format!("{} (peak {})", line("VmRSS:"), line("VmHWM:"))
}
