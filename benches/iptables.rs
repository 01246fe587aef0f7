//! Cost of iptables mode in the real kernel, written over netlink, and of the least that the kernel does for a change.
//!
//! Run it by hand as root: `cargo bench -p proxier --bench iptables`. `SERVICES=100,10000` selects other sizes.

#[path = "kernel_batches.rs"]
mod kernel_batches;
#[path = "kernel_cluster.rs"]
mod kernel_cluster;

use std::time::Duration;

use netfilter::IpFamily;
use netfilter::kernel::{NativeIptables, Traffic, cpu_time, memory, traffic};
use netfilter::testing::FakeHost;
use nix::sched::{CloneFlags, unshare};
use proxier::iptables::Iptables;
use proxier::testing::objects;
use proxier::track::Kind;
use serde_json::Value;

use self::kernel_cluster::{CHANGES, Cluster, ENDPOINTS, quantiles, resident, service, slice, slice_of};

fn cluster(services: u32) -> Cluster {
    let tool = Box::new(NativeIptables::new(IpFamily::V4));
    let mode = Iptables::new(IpFamily::V4, objects::config(), tool, Box::new(FakeHost::default()));
    Cluster::new(Box::new(mode), services)
}

/// The time, the CPU time, the requests and the bytes of a change.
fn row(what: &str, cluster: &mut Cluster, objects: impl Fn(u32) -> Vec<(Kind, Value)>) {
    let (cpu, before) = (cpu_time(), traffic());
    let times = cluster.times(objects);
    let cpu = (cpu_time() - cpu) / CHANGES;
    let count = CHANGES as usize;
    let Traffic { requests, datagrams, bytes, answers, answer_bytes } = traffic().since(before);
    println!(
        "|  | {what} | {} | {cpu:.2?} | {} in {}, {} B | {} in {} |",
        quantiles(&times),
        requests / count,
        datagrams / count,
        bytes / count,
        answer_bytes / count,
        answers / count
    );
}

fn measure(services: u32) {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace: run as root");
    let mut cluster = cluster(services);
    let (cpu, cold) = (cpu_time(), cluster.sync());
    println!("| {services} | everything | {cold:.2?} | {:.2?} | | |", cpu_time() - cpu);
    memory::release();
    println!("|  | resident | {} | | | |", resident());
    row("an endpoint for another", &mut cluster, |change| {
        vec![(Kind::EndpointSlice, slice(change * 7919 % services, 1 + change % 2))]
    });
    row("an endpoint more or less", &mut cluster, |change| {
        let (number, count) = (change / 2 * 7919 % services, ENDPOINTS + 1 - change % 2);
        vec![(Kind::EndpointSlice, slice_of(number, 0, count))]
    });
    row("a Service more", &mut cluster, |change| {
        let number = services + change;
        vec![(Kind::Service, service(number)), (Kind::EndpointSlice, slice(number, 0))]
    });
    for (what, cpu, times) in kernel_batches::measure() {
        println!("|  | kernel: {what} | {} | {:.2?} | | |", quantiles(&times), cpu[cpu.len() / 2]);
    }
    let mut again = self::cluster(services + CHANGES);
    let (cpu, before, warm) = (cpu_time(), traffic(), again.sync());
    let Traffic { requests, answer_bytes, .. } = traffic().since(before);
    let cpu = cpu_time() - cpu;
    println!("|  | a restart | {warm:.2?} | {cpu:.2?} | {requests} | {answer_bytes} |");
}

fn main() {
    // As the program does: a heap of the thread's own is not returned to the kernel in full.
    memory::share();
    let sizes = std::env::var("SERVICES").unwrap_or_else(|_| "100,1000,10000".to_owned());
    println!(
        "| Services x {ENDPOINTS} | what | time, p50 / p99 | CPU | requests in datagrams, bytes | bytes in answers |"
    );
    println!("|---|---|---|---|---|---|");
    for size in sizes.split(',').map(|size| size.parse().expect("a number")) {
        std::thread::spawn(move || measure(size)).join().expect("no panic");
        // The kernel destroys the namespace later, and would disturb the next.
        std::thread::sleep(Duration::from_secs(2));
    }
}
