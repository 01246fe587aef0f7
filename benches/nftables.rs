//! Cost of nftables mode in the real kernel, with up to 40,000 Services of ten endpoints each.
//!
//! Run it by hand as root: `cargo bench -p proxier --bench nftables`. `SERVICES=100,10000` selects other sizes,
//! `COLD=1` the
//! cold start only. Prints the times from objects to the committed table and from a decoded change to its commit (a
//! replaced
//! endpoint, another number of endpoints, a new Service), and what `nft -f` needs for the same text.

#[path = "kernel_cluster.rs"]
mod kernel_cluster;

use std::process::{Command, Stdio};
use std::time::Instant;

use netfilter::IpFamily;
use netfilter::kernel::{NftTables, SystemNftables, cpu_time};
use netfilter::testing::{FakeHost, FakeNftables};
use nix::sched::{CloneFlags, unshare};
use proxier::nftables::Nftables;
use proxier::testing::objects;
use proxier::track::Kind;

use self::kernel_cluster::{CHANGES, Cluster, ENDPOINTS, quantiles, resident, service, slice, slice_of};

fn cluster(kernel: Box<dyn NftTables>, services: u32) -> Cluster {
    let mode = Nftables::new(IpFamily::V4, objects::config(), kernel, Box::new(FakeHost::default()));
    Cluster::new(Box::new(mode), services)
}

fn measure(services: u32) {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace: run as root");
    let before = cpu_time();
    let mut cluster = cluster(Box::new(SystemNftables::default()), services);
    let loaded = cpu_time() - before;
    let cold = cluster.sync();
    let cold_cpu = cpu_time() - before - loaded;
    netfilter::kernel::memory::release();
    let resident = resident();
    if std::env::var_os("COLD").is_some() {
        println!("| {services} | {cold:.2?} ({cold_cpu:.2?} CPU) | {resident} |");
        return;
    }
    let replaced = cluster.times(|change| vec![(Kind::EndpointSlice, slice(change * 7919 % services, 1 + change % 2))]);
    // One endpoint more, and one less again.
    let counted = cluster.times(|change| {
        let (number, count) = (change / 2 * 7919 % services, ENDPOINTS + 1 - change % 2);
        vec![(Kind::EndpointSlice, slice_of(number, 0, count))]
    });
    let new = cluster.times(|change| {
        let number = services + change;
        vec![(Kind::Service, service(number)), (Kind::EndpointSlice, slice(number, 0))]
    });
    // A restart that finds a correct table.
    let mut again = self::cluster(Box::new(SystemNftables::default()), services + CHANGES);
    let before = cpu_time();
    let warm = again.sync();
    let warm_cpu = cpu_time() - before;
    println!(
        "| {services} | {cold:.2?} ({cold_cpu:.2?} CPU) | {resident} | {} | {} | {} | {warm:.2?} ({warm_cpu:.2?} CPU) | {} |",
        quantiles(&replaced),
        quantiles(&counted),
        quantiles(&new),
        by_nft(services)
    );
}

/// The time of `nft -f` for the same table.
fn by_nft(services: u32) -> String {
    if services > 10_000 {
        return "-".to_owned();
    }
    let fake = FakeNftables::default();
    cluster(Box::new(fake.clone()), services).sync();
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
