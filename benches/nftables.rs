//! Cost of nftables mode in the real kernel, with up to 40,000 Services of ten endpoints each.
//!
//! Run it by hand as root: `cargo bench -p proxier --bench nftables`. `SERVICES=100,10000` selects other sizes,
//! `COLD=1` the
//! cold start only. Prints the times from objects to the committed table and from a decoded change to its commit (a
//! replaced
//! endpoint, another number of endpoints, a new Service), and what `nft -f` needs for the same text.

use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use netfilter::IpFamily;
use netfilter::kernel::{SystemNftables, cpu_time};
use netfilter::testing::{FakeHost, FakeNftables};
use nix::sched::{CloneFlags, unshare};
use proxier::backend::Backend;
use proxier::nftables::Nftables;
use proxier::testing::objects;
use proxier::track::{Kind, Tracker, Translator};
use serde_json::Value;

const ENDPOINTS: u32 = 10;
const CHANGES: u32 = 300;

fn address(number: u32) -> IpAddr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 0).to_bits() + number).into()
}

fn service(number: u32) -> Value {
    objects::service("scale", &format!("svc-{number:05}"), address(10_000_000 + number))
}

/// A Service's slice; `version` changes the last endpoint.
fn slice(number: u32, version: u32) -> Value {
    slice_of(number, version, ENDPOINTS)
}

/// The same with this many endpoints.
fn slice_of(number: u32, version: u32, count: u32) -> Value {
    let mut endpoints: Vec<_> = (0..count).map(|index| address(number * ENDPOINTS + index)).collect();
    endpoints[9] = address(version * 2_000_000 + number * ENDPOINTS + 9);
    let service = format!("svc-{number:05}");
    objects::slice("scale", &service, &format!("{service}-x7k2p"), &endpoints)
}

struct Cluster {
    translator: Translator,
    tracker: Tracker,
    backend: Box<dyn Backend>,
}

impl Cluster {
    fn new(kernel: Box<dyn netfilter::kernel::NftTables>, services: u32) -> Self {
        let backend = Nftables::new(IpFamily::V4, objects::config(), kernel, Box::new(FakeHost::default()));
        let mut cluster = Self {
            translator: Translator::new(objects::NODE, false),
            tracker: Tracker::default(),
            backend: Box::new(backend),
        };
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

    /// The time of changes from decoded object to commit, p50 / p99.
    fn changes(&mut self, objects: impl Fn(u32) -> Vec<(Kind, Value)>) -> String {
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
        let at = |share: usize| times[times.len() * share / 100];
        format!("{:.2?} / {:.2?}", at(50), at(99))
    }

    fn sync(&mut self) -> Duration {
        let started = Instant::now();
        let scope = self.tracker.take_scope();
        let stats = self.backend.sync(&self.tracker.snapshot(IpFamily::V4.localhost()), &scope, started);
        assert!(stats.expect("the kernel takes it").rejected.is_empty());
        started.elapsed()
    }
}

fn resident() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned();
    format!("{} (peak {})", line("VmRSS:"), line("VmHWM:"))
}

fn measure(services: u32) {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace: run as root");
    let before = cpu_time();
    let mut cluster = Cluster::new(Box::new(SystemNftables::default()), services);
    let loaded = cpu_time() - before;
    let cold = cluster.sync();
    let cold_cpu = cpu_time() - before - loaded;
    netfilter::kernel::memory::release();
    let resident = resident();
    if std::env::var_os("COLD").is_some() {
        println!("| {services} | {cold:.2?} ({cold_cpu:.2?} CPU) | {resident} |");
        return;
    }
    let replaced =
        cluster.changes(|change| vec![(Kind::EndpointSlice, slice(change * 7919 % services, 1 + change % 2))]);
    // One endpoint more, and one less again.
    let counted = cluster.changes(|change| {
        let (number, count) = (change / 2 * 7919 % services, ENDPOINTS + 1 - change % 2);
        vec![(Kind::EndpointSlice, slice_of(number, 0, count))]
    });
    let new = cluster.changes(|change| {
        let number = services + change;
        vec![(Kind::Service, service(number)), (Kind::EndpointSlice, slice(number, 0))]
    });
    // A restart that finds a correct table.
    let mut again = Cluster::new(Box::new(SystemNftables::default()), services + CHANGES);
    let before = cpu_time();
    let warm = again.sync();
    let warm_cpu = cpu_time() - before;
    println!(
        "| {services} | {cold:.2?} ({cold_cpu:.2?} CPU) | {resident} | {replaced} | {counted} | {new} | {warm:.2?} ({warm_cpu:.2?} CPU) | {} |",
        by_nft(services)
    );
}

/// The time of `nft -f` for the same table.
fn by_nft(services: u32) -> String {
    if services > 10_000 {
        return "-".to_owned();
    }
    let fake = FakeNftables::default();
    Cluster::new(Box::new(fake.clone()), services).sync();
    let path = std::env::temp_dir().join(format!("nftables-bench-{}.nft", std::process::id()));
    std::fs::write(&path, fake.text()).expect("a file");
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
    let started = Instant::now();
    let status = Command::new("nft").arg("-f").arg(&path).stdin(Stdio::null()).status().expect("nft");
    let took = started.elapsed();
    let _ = std::fs::remove_file(&path);
    assert!(status.success());
    format!("{took:.2?}")
}

fn main() {
    // As the program does: a heap of the thread's own is not returned to the kernel in full.
    netfilter::kernel::memory::share();
    let sizes = std::env::var("SERVICES").unwrap_or_else(|_| "100,1000,10000,40000".to_owned());
    println!(
        "| Services x {ENDPOINTS} | cold start | resident | an endpoint for another p50 / p99 | one more or less | a Service more | restart | nft -f |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for size in sizes.split(',').map(|size| size.parse().expect("a number")) {
        // On its own thread, which leaves the namespace. Sizes share one process, so measure memory with one size at a time.
        std::thread::spawn(move || measure(size)).join().expect("no panic");
    }
}
