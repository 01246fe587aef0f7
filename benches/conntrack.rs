//! Cost of a clean-up with 500,000 entries in the conntrack table.
//!
//! Run it by hand as root: `cargo bench --bench conntrack`. The entries come from real packets in a namespace. Prints
//! times and memory;
//! more than 50 MB fails.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Instant;

use netfilter::IpFamily;
use netfilter::conntrack::UDP;
use netfilter::kernel::{ConntrackTable, Deletions, SystemConntrack, cpu_time};
use nix::sched::{CloneFlags, unshare};
use proxier::conntrack::StaleFlows;
use proxier::model::Scope;
use proxier::testing::objects;
use proxier::track::{Kind, Tracker, Translator};

/// Flows through the Service to an endpoint that no longer exists.
const STALE: u32 = 50_000;
/// Other UDP flows.
const OTHER: u32 = 300_000;
/// TCP flows.
const TCP: u32 = 150_000;

const LIMIT_KIB: u64 = 50 * 1024;
const CONNTRACK_MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";

/// The limit of the whole machine, raised until dropped.
struct RaisedConntrackLimit(String);

impl RaisedConntrackLimit {
    fn new() -> Self {
        let before = std::fs::read_to_string(CONNTRACK_MAX).expect("conntrack");
        std::fs::write(CONNTRACK_MAX, "1048576")
            .expect("cannot raise nf_conntrack_max: run as root in the first namespace");
        Self(before)
    }
}

impl Drop for RaisedConntrackLimit {
    fn drop(&mut self) {
        let _ = std::fs::write(CONNTRACK_MAX, &self.0);
    }
}

fn run(line: &str) {
    let mut words = line.split_whitespace();
    let status = Command::new(words.next().expect("a command")).args(words).status();
    assert!(status.unwrap_or_else(|e| panic!("{line}: {e}")).success(), "{line}");
}

fn loopback(number: u32, port: u16) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::from_bits(Ipv4Addr::new(127, 1, 0, 0).to_bits() + number).into(), port)
}

fn fill() {
    run("ip link set lo up");
    run("ip addr add 10.96.0.10/32 dev lo");
    run("ip addr add 10.0.0.5/32 dev lo");
    run("iptables-nft -t nat -A OUTPUT -p udp -d 10.96.0.10 --dport 80 -j DNAT --to-destination 10.0.0.5:8080");
    for name in ["udp_timeout", "udp_timeout_stream", "tcp_timeout_time_wait", "tcp_timeout_close"] {
        std::fs::write(format!("/proc/sys/net/netfilter/nf_conntrack_{name}"), "3600").expect("a timeout");
    }
    let sinks = ["0.0.0.0:9999", "10.0.0.5:8080"].map(|address| UdpSocket::bind(address).expect("a sink"));
    let client = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    for number in 0..OTHER {
        client.send_to(b"x", loopback(number, 9999)).expect("sent");
    }
    drop(client);
    for port in 0..u16::try_from(STALE).expect("fewer than ports") {
        let client = UdpSocket::bind(("10.0.0.5", 10_000 + port)).expect("a socket");
        client.send_to(b"x", "10.96.0.10:80").expect("sent");
    }
    let listener = TcpListener::bind("0.0.0.0:9998").expect("a listener");
    for number in 0..TCP {
        let client = TcpStream::connect(loopback(number, 9998)).expect("a connection");
        drop((client, listener.accept().expect("the same connection")));
    }
    drop(sinks);
    let count = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").expect("a count");
    println!("{} entries: {STALE} stale, {OTHER} other UDP, {TCP} TCP", count.trim());
    assert!(count.trim().parse::<u32>().expect("a number") >= STALE + OTHER + TCP);
}

/// A cluster with one UDP Service, whose endpoint was replaced.
fn stale() -> StaleFlows {
    let (mut tracker, mut translator) = (Tracker::default(), Translator::new(objects::NODE, false));
    let mut service = objects::service("ns", "dns", IpAddr::from([10, 96, 0, 10]));
    service["spec"]["ports"][0]["protocol"] = "UDP".into();
    let mut slice = objects::slice("ns", "dns", "dns-1", &[IpAddr::from([10, 0, 0, 6])]);
    slice["ports"][0]["protocol"] = "UDP".into();
    for (kind, object) in [(Kind::Service, service), (Kind::EndpointSlice, slice)] {
        for (family, change) in translator.applied(objects::decoded(kind, object)).expect("a good object").changes {
            if family == IpFamily::V4 {
                tracker.apply(change);
            }
        }
    }
    StaleFlows::of(&tracker.snapshot(IpFamily::V4.localhost()), &Scope::Full, &BTreeSet::new())
}

/// A line of `/proc/self/status`, in KiB.
fn memory_kib(line: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("a status");
    let value = status.lines().find_map(|l| l.strip_prefix(line)).expect("the line");
    value.trim_matches([':', '\t', ' ', 'k', 'B']).parse().expect("a number")
}

fn measure(what: &str, unwanted: impl Fn(&netfilter::Flow) -> bool) -> Deletions {
    // Resets the peak.
    std::fs::write("/proc/self/clear_refs", "5").expect("a peak of its own");
    let (memory, cpu, start, mut seen) = (memory_kib("VmRSS"), cpu_time(), Instant::now(), 0);
    let mut count = |flow: &netfilter::Flow| {
        seen += 1;
        unwanted(flow)
    };
    let deleted = SystemConntrack.delete(IpFamily::V4, UDP, &mut count).expect("a table");
    let (took, cpu) = (start.elapsed().as_millis(), (cpu_time() - cpu).as_millis());
    let (peak, flows) = (memory_kib("VmHWM"), deleted.flows);
    let more = peak.saturating_sub(memory);
    println!("{what}: {took} ms ({cpu} ms CPU), {seen} flows seen, {flows} deleted, peak {peak} KiB (+{more})");
    assert!(peak < LIMIT_KIB && deleted.failed == 0, "{deleted:?}");
    deleted
}

fn main() {
    // It raises nf_conntrack_max of the whole machine for a while: only on request. `cargo test` passes no `--bench`.
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("conntrack: run it with cargo bench --bench conntrack");
        return;
    }
    let _raised = RaisedConntrackLimit::new();
    let measured = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("cannot make a network namespace: run as root");
        fill();
        let stale = stale();
        measure("nothing is stale       ", |_| false);
        assert!(measure("one flow in ten goes   ", |flow| stale.is_stale(flow)).flows >= STALE as usize);
        measure("nothing is left to do  ", |flow| stale.is_stale(flow));
        measure("all UDP flows go       ", |_| true);
        measure("only TCP flows are left", |_| true);
    });
    measured.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}
