//! Cost of IPVS mode with many Services of ten endpoints each: time, netlink messages and bytes, memory.
//!
//! Run it with `make bench-ipvs` as root in a kernel that has IPVS. `SERVICES=1000,10000` selects other sizes. Prints a
//! line
//! for each kind of sync.

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::time::{Duration, Instant};

use netfilter::IpFamily;
use netfilter::kernel::{
    SystemHost, SystemIpSets, SystemIptables, SystemIpvs, SystemLinks, cpu_time, detect_flavour, memory, traffic,
};
use nix::sched::{CloneFlags, unshare};
use proxier::backend::Backend;
use proxier::ipvs::{self, Ipvs};
use proxier::model::IpvsConfig;
use proxier::testing::objects;
use proxier::track::{Change, Kind, Tracker, Translator};
use proxier::xtables::FLAVOUR_HINTS;
use serde_json::Value;

const ENDPOINTS: u32 = 10;

fn name(service: u32) -> String {
    format!("svc-{service:05}")
}

fn address(base: [u8; 4], number: u32) -> IpAddr {
    Ipv4Addr::from_bits(Ipv4Addr::from(base).to_bits() + number).into()
}

fn service(number: u32) -> Value {
    objects::service("scale", &name(number), address([10, 96, 0, 1], number))
}

/// A Service's slice with this many endpoints.
fn slice(number: u32, endpoints: u32) -> Value {
    let endpoint = |index| address([10, 128, 0, 1], number * (ENDPOINTS + 1) + index);
    let endpoints: Vec<IpAddr> = (0..endpoints).map(endpoint).collect();
    objects::slice("scale", &name(number), &name(number), &endpoints)
}

/// An IPv4 proxy.
struct Proxy {
    translator: Translator,
    tracker: Tracker,
    mode: Box<dyn Backend>,
}

impl Proxy {
    fn new(services: u32) -> Self {
        let mut tracker = Tracker::default();
        tracker.request_full_sync();
        let mut proxy = Self { translator: Translator::new(objects::NODE, false), tracker, mode: mode() };
        for number in 0..services {
            proxy.apply(Kind::Service, service(number));
            proxy.apply(Kind::EndpointSlice, slice(number, ENDPOINTS));
        }
        proxy
    }

    fn apply(&mut self, kind: Kind, object: Value) {
        let translated = self.translator.applied(objects::decoded(kind, object)).expect("a valid object");
        self.track(translated.changes);
    }

    fn track(&mut self, changes: impl IntoIterator<Item = (IpFamily, Change)>) {
        for (_, change) in changes.into_iter().filter(|(family, _)| *family == IpFamily::V4) {
            self.tracker.apply(change);
        }
    }

    fn sync(&mut self) {
        let scope = self.tracker.take_scope();
        let node_ip = "192.168.50.2".parse().expect("an address");
        let stats = self.mode.sync(&self.tracker.snapshot(node_ip), &scope, Instant::now()).expect("synced");
        assert!(stats.rejected.is_empty(), "{}", stats.rejected[0].reason);
    }
}

fn mode() -> Box<dyn Backend> {
    let kernel = ipvs::Kernel {
        tool: Box::new(
            SystemIptables::find(IpFamily::V4, &detect_flavour(&FLAVOUR_HINTS)).expect("iptables works here"),
        ),
        table: Box::new(SystemIpvs::load().expect("the kernel supports it")),
        sets: Box::new(SystemIpSets::open().expect("the kernel supports it")),
        links: Box::new(SystemLinks::open().expect("the kernel supports it")),
        host: Box::new(SystemHost),
    };
    Box::new(Ipvs::new(IpFamily::V4, objects::config(), IpvsConfig::default(), kernel).expect("a scheduler"))
}

/// A line of `/proc/self/status`, in KiB.
fn memory_kib(line: &str) -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").expect("a status");
    let value = status.lines().find_map(|l| l.strip_prefix(line)).expect("the line");
    value.trim_matches([':', '\t', ' ', 'k', 'B']).parse().expect("a number")
}

fn kib(bytes: usize) -> f64 {
    f64::from(u32::try_from(bytes).unwrap_or(u32::MAX)) / 1024.0
}

fn measure(services: u32, what: &str, run: impl FnOnce()) {
    let (before, cpu, start) = (traffic(), cpu_time(), Instant::now());
    run();
    let (took, cpu, cost) = (start.elapsed(), cpu_time() - cpu, traffic().since(before));
    let millis = |time: Duration| time.as_secs_f64() * 1000.0;
    println!(
        "| {services} | {what} | {:.1} ms | {:.1} ms | {} in {} | {:.1} KiB | {:.1} KiB |",
        millis(took),
        millis(cpu),
        cost.requests,
        cost.datagrams,
        kib(cost.bytes),
        kib(cost.answer_bytes),
    );
}

fn run(services: u32) {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace: run it as root");
    // Without a local address the kernel accepts no real server.
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("ip can be run");
    assert!(up.success(), "{up}");
    let mut proxy = Proxy::new(services);
    measure(services, "everything, into an empty kernel", || proxy.sync());
    memory::release();
    let resident = f64::from(memory_kib("VmRSS")) / 1024.0;
    for (what, endpoints) in [("an endpoint more", ENDPOINTS + 1), ("an endpoint less", ENDPOINTS)] {
        proxy.apply(Kind::EndpointSlice, slice(7, endpoints));
        measure(services, what, || proxy.sync());
    }
    proxy.apply(Kind::Service, service(services));
    proxy.apply(Kind::EndpointSlice, slice(services, ENDPOINTS));
    measure(services, "a Service more", || proxy.sync());
    measure(services, "a drift check", || {
        assert_eq!(proxy.mode.check_drift(Instant::now()).expect("an answer"), None);
    });
    proxy.tracker.request_full_sync();
    measure(services, "everything, where nothing differs", || proxy.sync());
    memory::release();
    let peak = f64::from(memory_kib("VmHWM")) / 1024.0;
    println!("| {services} | resident, with objects and state | {resident:.1} MiB, at most {peak:.1} MiB | | | | |");
}

fn main() {
    // `cargo test --benches` passes no `--bench`.
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("ipvs_mode: run it with make bench-ipvs");
        return;
    }
    memory::share();
    println!(
        "| Services x 10 | what | time | CPU | requests in datagrams | sent | received |\n|---|---|---|---|---|---|---|"
    );
    let sizes = std::env::var("SERVICES").unwrap_or_else(|_| "100,1000,10000".to_owned());
    for services in sizes.split(',').filter_map(|text| text.parse().ok()) {
        // Each size has its own namespace, though not its own process.
        std::thread::scope(|scope| scope.spawn(|| run(services)).join().expect("it can be measured"));
    }
}
