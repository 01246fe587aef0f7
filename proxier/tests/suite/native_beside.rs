//! The native writer beside programs that write their own rules all the time, as Docker, a network plugin and firewalld do.
//!
//! Needs root, iptables-nft and nft. `BESIDE_SECONDS` is the duration (default 10).

use std::collections::{BTreeSet, VecDeque};
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use netfilter::IpFamily;
use netfilter::testing::FakeHost;
use proxier::backend::Backend;
use proxier::iptables::Iptables;
use proxier::model::Scope;
use proxier::testing::objects;
use proxier::track::{Change, Kind, ObjectKey, Tracker, Translator, key_of};
use serde_json::Value;

use crate::common::real::{FLAVOURS, Real};

const SERVICES: u32 = 40;
/// Ours: changes per second at most.
const RATE: u32 = 100;

fn runs(mut command: Command, input: &str) {
    let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it can be run");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{command:?}: {}\n{input}", String::from_utf8_lossy(&output.stderr));
}

/// Like Docker: single rules of its own chain come and go. Returns the number of changes and the rules that are there.
fn docker(real: &Real, stop: &AtomicBool) -> (usize, Vec<String>) {
    let run = |line: &str| {
        let mut command = real.program("");
        command.args(line.split(' '));
        runs(command, "");
    };
    ["-t nat -N DOCKER", "-t nat -A OUTPUT -j DOCKER"].into_iter().for_each(run);
    let (mut there, mut changes) = (VecDeque::new(), 0);
    while !stop.load(Ordering::Relaxed) {
        let rule = format!("DOCKER -d 172.17.{}.{}/32 -j RETURN", changes / 250 % 250, changes % 250);
        run(&format!("-t nat -A {rule}"));
        there.push_back(rule);
        if there.len() > 20 {
            run(&format!("-t nat -D {}", there.pop_front().expect("twenty")));
        }
        changes += 1;
    }
    (changes, there.into_iter().map(|rule| format!("-A {rule}")).collect())
}

/// Like a network plugin: all rules of its own chain anew.
fn plugin(real: &Real, stop: &AtomicBool) -> (usize, Vec<String>) {
    let (mut rules, mut changes) = (Vec::new(), 0);
    while !stop.load(Ordering::Relaxed) {
        let rule = |n| format!("-A CNI-HOSTPORT -p tcp -m tcp --dport {} -j RETURN", 1000 + (changes + n) % 9000);
        rules = (0..10).map(rule).collect();
        let mut command = real.program("-restore");
        command.args(["-w", "--noflush"]);
        runs(command, &format!("*nat\n:CNI-HOSTPORT - [0:0]\n{}\nCOMMIT\n", rules.join("\n")));
        changes += 1;
    }
    (changes, rules)
}

/// Like firewalld: a table of its own anew. Returns the port that the last one has.
fn firewall(real: &Real, stop: &AtomicBool) -> (usize, Vec<String>) {
    let mut changes = 0;
    while !stop.load(Ordering::Relaxed) {
        changes += 1;
        real.enter();
        let mut command = Command::new("nft");
        command.args(["-f", "-"]);
        let chain = "type filter hook input priority filter; policy accept;";
        let text =
            format!("table inet firewalld\ndelete table inet firewalld\ntable inet firewalld {{ chain in {{ {chain} ");
        runs(command, &format!("{text} tcp dport {} accept\n }}\n}}\n", 1000 + changes % 9000));
    }
    (changes, vec![format!("tcp dport {} accept", 1000 + changes % 9000)])
}

/// A proxy with the objects that it knows.
struct Ours {
    backend: Iptables,
    tracker: Tracker,
    translator: Translator,
}

impl Ours {
    fn on(real: &Real) -> Self {
        let backend = Iptables::new(IpFamily::V4, objects::config(), real.tools(), Box::new(FakeHost::default()));
        Self { backend, tracker: Tracker::default(), translator: Translator::new(objects::NODE, false) }
    }

    fn apply(&mut self, kind: Kind, object: Value) {
        let changes = self.translator.applied(objects::decoded(kind, object)).expect("a good object").changes;
        self.take(changes);
    }

    fn delete(&mut self, key: &ObjectKey) {
        self.take(Translator::deleted(key).changes);
    }

    fn take(&mut self, changes: Vec<(IpFamily, Change)>) {
        for (_, change) in changes.into_iter().filter(|(family, _)| *family == IpFamily::V4) {
            self.tracker.apply(change);
        }
    }

    /// The Service in one of its states: absent, or with other endpoints.
    fn change(&mut self, number: u32, state: u32) {
        let name = format!("svc-{number}");
        let service = objects::service("ns", &name, objects::address(number));
        if state.is_multiple_of(5) {
            return self.delete(&key_of(Kind::Service, &service));
        }
        let endpoints: Vec<_> = (0..1 + state % 4).map(|n| objects::address(1000 + 10 * state + n)).collect();
        self.apply(Kind::Service, service);
        self.apply(Kind::EndpointSlice, objects::slice("ns", &name, &name, &endpoints));
    }

    fn sync(&mut self, scope: Option<Scope>) {
        let scope = scope.unwrap_or_else(|| self.tracker.take_scope());
        let snapshot = self.tracker.snapshot(IpFamily::V4.localhost());
        let stats = self.backend.sync(&snapshot, &scope, Instant::now()).expect("a sync, whatever others write");
        assert_eq!(stats.rejected.len(), 0, "{:?}", stats.rejected);
    }
}

fn is_ours(line: &str) -> bool {
    line.starts_with(":KUBE-") || line.contains(" KUBE-")
}

fn ours(real: &Real) -> BTreeSet<String> {
    real.saved().lines().filter(|line| is_ours(line)).map(str::to_owned).collect()
}

#[test]
fn no_program_loses_a_rule_when_all_write_at_once() {
    let seconds = std::env::var("BESIDE_SECONDS").map_or(10, |text| text.parse().expect("a number"));
    let real = Real::new(FLAVOURS[2]);
    let stop = AtomicBool::new(false);
    let last = |number: u32| number.wrapping_mul(7) % 50 + number;
    let (mut syncs, mut fulls) = (0_u32, 0_u32);
    let others = std::thread::scope(|scope| {
        let writers = [docker, plugin, firewall].map(|writer| {
            let (real, stop) = (&real, &stop);
            scope.spawn(move || writer(real, stop))
        });
        let mut proxy = Ours::on(&real);
        proxy.sync(Some(Scope::Full));
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(seconds) {
            proxy.change(syncs % SERVICES, syncs / 3);
            // Full syncs read all tables while others write.
            let is_full = syncs.is_multiple_of(50);
            fulls += u32::from(is_full);
            proxy.sync(is_full.then_some(Scope::Full));
            syncs += 1;
            std::thread::sleep(
                (start + syncs * Duration::from_secs(1) / RATE).saturating_duration_since(Instant::now()),
            );
        }
        (0..SERVICES).for_each(|number| proxy.change(number, last(number)));
        proxy.sync(None);
        stop.store(true, Ordering::Relaxed);
        writers.map(|writer| writer.join().expect("all of its commands succeed"))
    });
    let counts: Vec<usize> = others.iter().map(|(count, _)| *count).collect();
    println!("{syncs} syncs of ours, {fulls} of them full, beside {counts:?} changes of others in {seconds} s");
    assert!(syncs > 20 && counts.iter().all(|count| *count > 20), "{syncs} {counts:?}");

    let alone = Real::new(FLAVOURS[2]);
    let mut fresh = Ours::on(&alone);
    (0..SERVICES).for_each(|number| fresh.change(number, last(number)));
    fresh.sync(Some(Scope::Full));
    assert_eq!(ours(&real), ours(&alone));
    let saved = real.saved();
    for (chain, (_, expected)) in ["DOCKER", "CNI-HOSTPORT"].into_iter().zip(&others) {
        let of_chain = format!("-A {chain} ");
        let present: Vec<&str> = saved.lines().filter(|line| line.starts_with(&of_chain)).collect();
        assert_eq!(present, *expected, "{chain}");
    }
    real.enter();
    let table = Command::new("nft").args(["list", "table", "inet", "firewalld"]).output().expect("nft can be run");
    assert!(String::from_utf8_lossy(&table.stdout).contains(&others[2].1[0]), "{table:?}");
}
