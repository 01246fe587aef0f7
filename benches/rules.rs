//! Time of the pure part of iptables mode: tracking, rendering, planning, at three cluster sizes.
//!
//! Run it with `cargo bench --bench rules`. Services have ten endpoints each, and a recorder stands for the tools.
//! Prints criterion's
//! estimates, and the size of each restore input.

use std::collections::BTreeSet;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use netfilter::IpFamily;
use netfilter::testing::{FakeHost, Recorder, RecordingIptables};
use proxier::backend::Backend;
use proxier::iptables::Iptables;
use proxier::model::Scope;
use proxier::testing::objects;
use proxier::track::{Change, Kind, Tracker, Translator};
use serde_json::Value;

/// One more than 100: above 1,000 endpoints rules have fewer comments, and sizes could not be compared.
const SIZES: [u32; 3] = [101, 1_000, 10_000];
const ENDPOINTS: u32 = 10;
const NAMESPACE: &str = "scale";

fn name(service: u32) -> String {
    format!("svc-{service:05}")
}

/// Addresses of equal printed length: a million, the last tenth for cluster IPs.
fn address(number: u32) -> IpAddr {
    let octet = |n: u32| u8::try_from(100 + n % 100).expect("below 200");
    Ipv4Addr::new(10, octet(number / 10_000), octet(number / 100), octet(number)).into()
}

fn service(number: u32) -> Value {
    objects::service(NAMESPACE, &name(number), address(900_000 + number))
}

/// A Service's slice; `version` changes the last of its endpoints.
fn slice(number: u32, version: u32) -> Value {
    let mut endpoints: Vec<_> = (0..ENDPOINTS).map(|index| address(number * ENDPOINTS + index)).collect();
    endpoints[9] = address(version * 500_000 + number * ENDPOINTS + 9);
    objects::slice(NAMESPACE, &name(number), &format!("{}-x7k2p", name(number)), &endpoints)
}

/// The IPv4 changes that an API server's object translates to.
fn changes(translator: &mut Translator, kind: Kind, object: Value) -> Vec<Change> {
    let translated = translator.applied(objects::decoded(kind, object)).expect("a valid object");
    translated.changes.into_iter().filter(|(family, _)| *family == IpFamily::V4).map(|(_, change)| change).collect()
}

/// A family that has received this many Services.
struct Cluster {
    translator: Translator,
    tracker: Tracker,
    iptables: Iptables,
    recorder: Arc<Recorder>,
}

impl Cluster {
    fn of(services: u32) -> Self {
        let recorder = Arc::new(Recorder::default());
        let mut cluster = Self {
            translator: Translator::new(objects::NODE, false),
            tracker: Tracker::default(),
            iptables: iptables(&recorder),
            recorder,
        };
        for number in 0..services {
            cluster.take(Kind::Service, service(number));
            cluster.take(Kind::EndpointSlice, slice(number, 0));
        }
        let scope = cluster.tracker.take_scope();
        assert!(matches!(scope, Scope::Changed(ports) if ports.len() == services as usize));
        cluster
    }

    fn take(&mut self, kind: Kind, object: Value) {
        for change in changes(&mut self.translator, kind, object) {
            self.tracker.apply(change);
        }
    }

    /// Syncs. Returns the bytes written.
    fn sync(&mut self, scope: &Scope) -> usize {
        let snapshot = self.tracker.snapshot(address(990_000));
        self.iptables.sync(&snapshot, scope, Instant::now()).expect("the tools take everything");
        self.recorder.take().0
    }
}

fn iptables(recorder: &Arc<Recorder>) -> Iptables {
    let tools = RecordingIptables::new(usize::MAX, recorder.clone());
    Iptables::new(IpFamily::V4, objects::config(), Box::new(tools), Box::new(FakeHost::default()))
}

/// A slice as bytes: decoded, translated and compared with the tracker's.
fn track(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("track/slice-of-10");
    for size in SIZES {
        let mut cluster = Cluster::of(size);
        let texts = [slice(size / 2, 1), slice(size / 2, 0)].map(|slice| slice.to_string());
        let mut turn = 0;
        group.bench_function(size.to_string(), |bencher| {
            bencher.iter(|| {
                turn ^= 1;
                let object = serde_json::from_str(black_box(&texts[turn])).expect("JSON");
                cluster.take(Kind::EndpointSlice, object);
                black_box(cluster.tracker.take_scope())
            });
        });
    }
    group.finish();
}

/// The first sync: all rules, into an empty kernel.
fn first(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("sync/first");
    group.sample_size(10).measurement_time(Duration::from_secs(8));
    for size in SIZES {
        let mut cluster = Cluster::of(size);
        let bytes = cluster.sync(&Scope::Full);
        println!("sync/first/{size}: {bytes} bytes of restore input");
        let recorder = cluster.recorder.clone();
        let snapshot = cluster.tracker.snapshot(address(990_000));
        group.bench_function(size.to_string(), |bencher| {
            bencher.iter_batched(
                || iptables(&recorder),
                |mut iptables| {
                    iptables.sync(&snapshot, &Scope::Full, Instant::now()).expect("the tools take everything");
                    // Dropped outside of the measurement.
                    iptables
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

/// From a decoded slice with one replaced endpoint to the finished restore input.
fn one_endpoint(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("sync/one-endpoint");
    let mut sizes = BTreeSet::new();
    for size in SIZES {
        let mut cluster = Cluster::of(size);
        cluster.sync(&Scope::Full);
        let mut versions = [1, 0]
            .map(|version| changes(&mut cluster.translator, Kind::EndpointSlice, slice(size / 2, version)).remove(0));
        let mut change = |cluster: &mut Cluster| {
            versions.swap(0, 1);
            assert!(cluster.tracker.apply(black_box(versions[1].clone())), "it differs from the tracker's");
            let scope = cluster.tracker.take_scope();
            cluster.sync(&scope)
        };
        let bytes = change(&mut cluster);
        println!("sync/one-endpoint/{size}: {bytes} bytes of restore input");
        sizes.insert(bytes);
        group.bench_function(size.to_string(), |bencher| bencher.iter(|| change(&mut cluster)));
    }
    group.finish();
    println!("sync/one-endpoint: sizes of the restore input: {sizes:?}");
}

criterion_group!(benches, track, first, one_endpoint);
criterion_main!(benches);
