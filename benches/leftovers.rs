//! Cost of removing the state of an inactive mode, and how long a sync waits for it.
//!
//! Run it by hand as root: `XTABLES_LOCKFILE=/tmp/lock cargo bench --bench leftovers [-- SERVICES...]`; the separate
//! lock file is for
//! machines on which other iptables programs run. Each number of Services, by default 1,000 and 7,000, is loaded as
//! iptables
//! mode's chains, 11 for a Service with 10 endpoints, in its own network namespace and in each flavour. Then
//! `--cleanup` removes
//! them while another thread requests priority for a sync twice a second: its longest wait is the cost for a sync.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use netfilter::IpFamily;
use netfilter::kernel::{Flavour, WriterPriority, cpu_time};
use nix::sched::{CloneFlags, unshare};
use proxier::leftovers::{self, ActiveMode};

const ENDPOINTS: usize = 10;
/// Services per transaction: iptables-nft-restore is quadratic in the chains of one.
const BATCH: usize = 45;
const SYNC_INTERVAL: Duration = Duration::from_millis(500);

/// All chains, each defined before it is used.
fn tables(services: usize) -> String {
    let mut text = String::from("*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-MARK-MASQ - [0:0]\nCOMMIT\n");
    let all: Vec<usize> = (0..services).collect();
    for batch in all.chunks(BATCH) {
        let (mut chains, mut rules) = (String::new(), String::new());
        for service in batch {
            let _ = writeln!(chains, ":KUBE-SVC-{service:016} - [0:0]");
            for endpoint in 0..ENDPOINTS {
                let (id, ip) = (service * ENDPOINTS + endpoint, format!("10.1.{endpoint}.{}", service % 256));
                let comment = format!("-m comment --comment \"ns/svc-{service}:http\"");
                let _ = writeln!(chains, ":KUBE-SEP-{id:016} - [0:0]");
                let _ = writeln!(rules, "-A KUBE-SVC-{service:016} {comment} -j KUBE-SEP-{id:016}");
                let _ = writeln!(rules, "-A KUBE-SEP-{id:016} -s {ip}/32 {comment} -j KUBE-MARK-MASQ");
                let to = format!("-p tcp {comment} -m tcp -j DNAT --to-destination {ip}:8080");
                let _ = writeln!(rules, "-A KUBE-SEP-{id:016} {to}");
            }
        }
        let _ = write!(text, "*nat\n{chains}{rules}COMMIT\n");
    }
    text.push_str("*nat\n");
    for service in 0..services {
        let ip = format!("10.96.{}.{}", service / 256, service % 256);
        let _ = writeln!(text, "-A KUBE-SERVICES -d {ip}/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-{service:016}");
    }
    for chain in ["PREROUTING", "OUTPUT"] {
        let comment = "-m comment --comment \"kubernetes service portals\"";
        let _ = writeln!(text, "-A {chain} {comment} -j KUBE-SERVICES");
    }
    text + "COMMIT\n"
}

fn restore(flavour: &str, text: &str) {
    let mut command = Command::new(format!("iptables-{flavour}-restore"));
    let mut child = command.arg("--noflush").stdin(Stdio::piped()).spawn().expect("the tool can be run");
    child.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("it reads");
    assert!(child.wait().expect("it ends").success(), "{flavour}: the chains cannot be made");
}

/// The longest wait of a foreground writer until `ended`.
fn longest_wait(priority: &WriterPriority, ended: &AtomicBool) -> Duration {
    let mut longest = Duration::ZERO;
    while !ended.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let guard = priority.write();
        longest = longest.max(begun.elapsed());
        drop(guard);
        std::thread::sleep(SYNC_INTERVAL);
    }
    longest
}

fn measure(flavour: &str, services: usize) {
    unshare(CloneFlags::CLONE_NEWNET).expect("cannot make a network namespace: run as root");
    let text = tables(services);
    if flavour == "legacy" {
        // The legacy tool reads and replaces the whole table for each transaction.
        let lines = |start: char| text.lines().filter(move |line| line.starts_with(start));
        let all: Vec<&str> = lines(':').chain(lines('-')).collect();
        restore(flavour, &format!("*nat\n{}\nCOMMIT\n", all.join("\n")));
    } else {
        restore(flavour, &text);
    }
    // Legacy tables are left by a move to the nf_tables flavour, those of nf_tables by a move to legacy.
    let running = ActiveMode::Iptables(Some(if flavour == "legacy" { Flavour::Nft } else { Flavour::Legacy }));
    let (priority, ended) = (WriterPriority::default(), AtomicBool::new(false));
    let (begun, cpu) = (Instant::now(), cpu_time());
    let waited = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| longest_wait(&priority, &ended));
        let removed = leftovers::remove(IpFamily::V4, Some(running), false, &priority);
        ended.store(true, Ordering::Relaxed);
        removed.expect("everything can be removed");
        waiting.join().expect("no panic")
    });
    let (took, cpu, chains) = (begun.elapsed(), cpu_time() - cpu, services * (ENDPOINTS + 1));
    println!(
        "{flavour:<7} {chains:>7} chains: removed in {took:.2?}, CPU {cpu:.2?}, longest wait of a sync {waited:.1?}"
    );
}

fn main() {
    let given: Vec<usize> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let all = if given.is_empty() { vec![1000, 7000] } else { given };
    for services in all {
        for flavour in ["nft", "legacy"] {
            std::thread::spawn(move || measure(flavour, services)).join().expect("no panic");
        }
    }
}
