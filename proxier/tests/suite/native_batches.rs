//! iptables rules written over netlink in batches of any size: large ones, limited ones, refused ones.
//!
//! Needs root and iptables-nft. `NATIVE_SERVICES` is the size of the large start (default 300; each has ten endpoints).

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use netfilter::iptables::{Chain, Comment, Match, Negatable, Rule, Suffix, Table, Target};
use netfilter::kernel::iptables_nft::{DecodedRule, NftRules};
use netfilter::kernel::nftables::NftError;
use netfilter::kernel::{IptablesTool, NativeIptables, RestoreError};
use netfilter::testing::FakeHost;
use netfilter::{IpFamily, Restore};
use proxier::backend::Backend;
use proxier::iptables::Iptables;
use proxier::model::Scope;
use proxier::testing::objects;
use proxier::track::{Kind, Tracker, Translation, Translator, key_of};

use crate::common::real::{FLAVOURS, Real};

const LONG: Chain = Chain::new("KUBE-SERVICES");
const NEXT: Chain = Chain::new("KUBE-NODEPORTS");
/// Marks the process that runs in a user namespace.
const IN_USER_NAMESPACE: &str = "NATIVE_IN_USER_NAMESPACE";

/// The rule for one of many addresses, as long as those of Services.
fn rule(number: u32, target: Target) -> Rule {
    let address = IpNet::from(std::net::IpAddr::from(std::net::Ipv4Addr::from_bits(0x0a00_0000 + number)));
    let comment =
        Comment { prefix: "", subject: format!("ns/svc-{number}").into(), suffix: Suffix::Text(" cluster IP") };
    Rule {
        protocol: Some("tcp"),
        destination: Some(Negatable::new(address)),
        matches: vec![Match::Comment(comment), Match::DestinationPort("tcp", 80)],
        target: Some(target),
        ..Rule::default()
    }
}

fn rules(numbers: impl IntoIterator<Item = u32>) -> Vec<Rule> {
    numbers.into_iter().map(|number| rule(number, Target::Return)).collect()
}

fn write(tool: &mut dyn IptablesTool, rules: &[Rule]) -> Result<(), RestoreError> {
    let mut restore = Restore::default();
    restore.chain(Table::Nat, LONG, rules, None);
    tool.restore(&restore)
}

/// The rules of the long chain, in the calling thread's namespace.
fn read() -> Vec<String> {
    read_between_writes().expect("no other program writes")
}

/// As [`read`]; `None` if the chain is changed during every attempt.
fn read_between_writes() -> Option<Vec<String>> {
    let rules = match NftRules::new(IpFamily::V4).chain("nat", LONG.as_str()) {
        Err(NftError::Interrupted) => return None,
        rules => rules.expect("readable"),
    };
    let text = |rule: &DecodedRule| match rule {
        DecodedRule::Known(rule) => rule.to_string(),
        DecodedRule::Unknown(unknown) => format!("{unknown:?}"),
    };
    Some(rules.iter().map(|read| text(&read.rule)).collect())
}

fn texts(rules: &[Rule]) -> Vec<String> {
    rules.iter().map(ToString::to_string).collect()
}

#[test]
fn chain_of_ten_thousand_rules_is_written_and_rewritten_in_one_batch() {
    let real = Real::new(FLAVOURS[2]);
    let mut tool = real.tools();
    for numbers in [0..10_000, 20_000..30_000] {
        let (rules, before) = (rules(numbers), tool.generation().expect("a number"));
        write(tool.as_mut(), &rules).expect("it is taken");
        assert_eq!(tool.generation(), Some(before + 1));
        assert_eq!(read(), texts(&rules));
    }
}

/// Runs `check` again and again on a thread in the namespace while `body` runs; returns how often it could check.
fn beside(real: &Real, mut check: impl FnMut() -> bool + Send, body: impl FnOnce()) -> usize {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let checks = scope.spawn(|| {
            real.enter();
            let mut count = 0;
            while !stop.load(Ordering::Relaxed) {
                count += usize::from(check());
            }
            count
        });
        body();
        stop.store(true, Ordering::Relaxed);
        checks.join().expect("all checks hold")
    })
}

#[test]
fn rules_that_stay_are_never_absent_while_a_chain_is_rewritten_in_many_batches() {
    let real = Real::new(FLAVOURS[2]);
    let mut tool = real.native(|tool| tool.with_largest_batch(8192));
    let stays = texts(&rules([7, 1007, 1999]));
    let before = tool.generation().expect("a number");
    write(tool.as_mut(), &rules(0..2000)).expect("it is taken");
    assert!(tool.generation().expect("a number") > before + 50, "many batches");
    let all_stay = || {
        let Some(now) = read_between_writes() else { return false };
        let now: BTreeSet<String> = now.into_iter().collect();
        assert!(stays.iter().all(|rule| now.contains(rule)), "of {} rules", now.len());
        true
    };
    let checks = beside(&real, all_stay, || {
        for step in [1, 3, 1, 4] {
            // In another order, so that they cannot all stay in their places.
            let mut wanted =
                rules((0..2000).filter(|number| number % 10 == 7 || number % step == 0 || *number == 1999));
            write(tool.as_mut(), &wanted).expect("it is taken");
            assert_eq!(read(), texts(&wanted));
            wanted.rotate_left(700);
            write(tool.as_mut(), &wanted).expect("it is taken");
            assert_eq!(read(), texts(&wanted));
        }
    });
    assert!(checks > 3, "only {checks} checks");
}

#[test]
fn insertions_and_deletions_come_last_and_once_in_many_batches() {
    let real = Real::new(FLAVOURS[2]);
    let mut tool = real.native(|tool| tool.with_largest_batch(4096));
    let jump =
        |to| Rule { matches: vec![Match::DestinationIsLocal], target: Some(Target::Jump(to)), ..Rule::default() };
    let stale: Vec<Chain> = (0..10).map(|n| Chain::parse(&format!("KUBE-SVC-{n:016}")).expect("a name")).collect();
    let mut restore = Restore::default();
    restore.chain(Table::Nat, LONG, &[rules(0..50), vec![jump(NEXT)]].concat(), None);
    restore.chain(Table::Nat, NEXT, &stale.iter().map(|chain| jump(*chain)).collect::<Vec<_>>(), None);
    stale.iter().for_each(|chain| restore.chain(Table::Nat, *chain, &rules(0..9), None));
    restore.insert(Table::Nat, "OUTPUT", &jump(LONG));
    tool.restore(&restore).expect("all that is jumped to exists");

    let mut restore = Restore::default();
    restore.chain(Table::Nat, NEXT, &rules(0..50), None);
    restore.chain(Table::Nat, LONG, &rules(0..50), None);
    restore.remove(Table::Nat, "OUTPUT", &jump(LONG));
    restore.insert(Table::Nat, "OUTPUT", &jump(NEXT));
    stale.iter().for_each(|chain| restore.delete(Table::Nat, *chain));
    tool.restore(&restore).expect("nothing jumps to them any more");
    let saved = tool.save(Table::Nat).expect("readable");
    assert_eq!(saved.builtin, [format!("-A OUTPUT{}", jump(NEXT))]);
    assert_eq!(saved.chains.len(), 2, "{:?}", saved.chains);

    // A part that can be no smaller: the chains to delete.
    let mut restore = Restore::default();
    (0..200).for_each(|n| restore.delete(Table::Nat, Chain::parse(&format!("KUBE-SVC-{n:016}")).expect("a name")));
    let error = tool.restore(&restore).expect_err("too big").to_string();
    assert!(error.contains("exceeds the limit of 4096"), "{error}");
}

#[test]
fn each_of_six_hundred_refused_rules_is_named_by_its_line() {
    let real = Real::new(FLAVOURS[2]);
    let mut tool = real.tools();
    // The kernel refuses to jump to a chain that does not exist.
    let bad: Vec<Rule> = (0..600).map(|number| rule(number, Target::Jump(NEXT))).collect();
    let error = write(tool.as_mut(), &[rules(1000..1500), bad].concat()).expect_err("there is no such chain");
    assert_eq!(error.lines, (503..1103).collect::<Vec<_>>(), "{error}");
    assert!(error.message.contains("KUBE-NODEPORTS") && error.message.contains("and 597 more"), "{error}");
    assert_eq!(read(), [] as [String; 0]);
}

#[test]
fn rules_are_written_in_a_user_namespace_that_limits_the_buffers_of_sockets() {
    if std::env::var_os(IN_USER_NAMESPACE).is_some() {
        return in_user_namespace();
    }
    let test = "native_batches::rules_are_written_in_a_user_namespace_that_limits_the_buffers_of_sockets";
    let program = std::env::current_exe().expect("this program");
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--net"]).arg(program).args(["--exact", test, "--nocapture"]);
    let output = command.env(IN_USER_NAMESPACE, "1").output().expect("unshare can be run");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("in many batches"), "{text}\n{errors}");
}

fn in_user_namespace() {
    let limit = |name| std::fs::read_to_string(format!("/proc/sys/net/core/{name}")).expect("it is there");
    let limit = |name| 2 * limit(name).trim().parse::<u32>().expect("a number");
    let mut tool = NativeIptables::find(IpFamily::V4).expect("nf_tables works here");
    // A rule has some 300 bytes, and the kernel counts some 700 for an error.
    let count = limit("wmem_max") / 250;
    let (rules, before) = (rules(0..count), tool.generation().expect("a number"));
    write(&mut tool, &rules).expect("it is taken in parts");
    assert_eq!(read(), texts(&rules));
    let batches = tool.generation().expect("a number") - before;
    assert!(batches > 1, "{count} rules in {batches} batch");

    let errors = limit("rmem_max") / 400;
    let bad: Vec<Rule> = (0..errors).map(|number| rule(number, Target::Jump(NEXT))).collect();
    let error = write(&mut tool, &bad).expect_err("there is no such chain");
    assert!(
        error.lines.len() > 100 && error.message.contains("KUBE-NODEPORTS"),
        "{} lines: {error}",
        error.lines.len()
    );
    println!("{count} rules in many batches; {} of {errors} errors in the first", error.lines.len());
}

/// A proxy of many Services with ten endpoints each.
struct Proxy {
    tracker: Tracker,
    translator: Translator,
    backend: Iptables,
}

impl Proxy {
    fn new(tool: Box<dyn IptablesTool>, services: u32) -> Self {
        let mut proxy = Self {
            tracker: Tracker::default(),
            translator: Translator::new(objects::NODE, false),
            backend: Iptables::new(IpFamily::V4, objects::config(), tool, Box::new(FakeHost::default())),
        };
        (0..services).for_each(|number| proxy.add(number));
        proxy
    }

    fn add(&mut self, number: u32) {
        let name = format!("svc-{number}");
        let endpoints: Vec<_> = (0..10).map(|n| objects::address(100_000 + 10 * number + n)).collect();
        let slice = objects::slice("ns", &name, &name, &endpoints);
        let service = objects::service("ns", &name, objects::address(number));
        for (kind, object) in [(Kind::Service, service), (Kind::EndpointSlice, slice)] {
            let translated = self.translator.applied(objects::decoded(kind, object)).expect("a good object");
            self.apply(translated);
        }
    }

    fn delete(&mut self, number: u32) {
        let service = objects::service("ns", &format!("svc-{number}"), objects::address(number));
        self.apply(Translator::deleted(&key_of(Kind::Service, &service)));
    }

    fn apply(&mut self, translated: Translation) {
        for (_, change) in translated.changes.into_iter().filter(|(family, _)| *family == IpFamily::V4) {
            self.tracker.apply(change);
        }
    }

    /// Makes a sync of everything, or of what changed; returns its duration.
    fn sync(&mut self, is_full: bool) -> Duration {
        let changed = self.tracker.take_scope();
        let snapshot = self.tracker.snapshot(IpFamily::V4.localhost());
        let start = Instant::now();
        let scope = if is_full { Scope::Full } else { changed };
        let stats = self.backend.sync(&snapshot, &scope, start).expect("a sync");
        assert_eq!((stats.rejected.len(), stats.full), (0, is_full));
        start.elapsed()
    }

    /// The medians of the durations of syncs for a Service that goes and for one that comes.
    fn changes(&mut self, services: u32) -> [Duration; 2] {
        let mut durations = [Vec::new(), Vec::new()];
        for round in 0..15 {
            let number = round * 7919 % services;
            self.delete(number);
            durations[0].push(self.sync(false));
            self.add(number);
            durations[1].push(self.sync(false));
        }
        durations.map(|mut all| {
            all.sort_unstable();
            all[all.len() / 2]
        })
    }
}

#[test]
fn a_large_start_is_taken_changes_are_small_and_another_start_writes_nothing() {
    let services = std::env::var("NATIVE_SERVICES").map_or(300, |text| text.parse().expect("a number"));
    let real = Real::new(FLAVOURS[2]);
    let mut proxy = Proxy::new(real.tools(), services);
    let first = proxy.sync(true);
    let chains = real.tools().save(Table::Nat).expect("readable").chains;
    let own = chains.keys().filter(|chain| chain.as_str().starts_with("KUBE-S") && **chain != LONG).count();
    assert_eq!(own, 11 * services as usize);
    let [gone, new] = proxy.changes(services);
    println!(
        "{services} Services with ten endpoints: first start {first:?}; one less {gone:?}, one more {new:?} (p50)"
    );

    let generation = || real.tools().generation();
    let before = generation();
    let mut rewriting = Proxy::new(real.rewriting(), services);
    let second = rewriting.sync(true);
    assert_eq!(generation(), before, "nothing was written");
    let [gone, new] = rewriting.changes(services);
    println!("second start {second:?}; with chains compared as a whole: one less {gone:?}, one more {new:?} (p50)");
}
