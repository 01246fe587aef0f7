//! Stale chains that a foreign rule refers to: they are emptied, and everything else is programmed.

use std::time::{Duration, Instant};

use netfilter::IpFamily;
use netfilter::iptables::Table;
use netfilter::kernel::IptablesTool;
use netfilter::testing::{FakeHost, FakeIptables};
use proxier::backend::{Backend, SyncStats};
use proxier::iptables::{self, Iptables};
use proxier::model::Scope;
use proxier::testing::objects;
use proxier::track::{Kind, Tracker, Translator};

use crate::common::real::{FLAVOURS, Real};

struct Node {
    backend: Iptables,
    tracker: Tracker,
    now: Instant,
}

impl Node {
    fn on(tool: Box<dyn IptablesTool>) -> Self {
        let backend = Iptables::new(IpFamily::V4, objects::config(), tool, Box::new(FakeHost::default()));
        Self { backend, tracker: Tracker::default(), now: Instant::now() }
    }

    fn service(&mut self, name: &str, ip: u32, endpoints: &[u32]) {
        let endpoints: Vec<_> = endpoints.iter().copied().map(objects::address).collect();
        let mut translator = Translator::new(objects::NODE, false);
        let all = [
            (Kind::Service, objects::service("ns", name, objects::address(ip))),
            (Kind::EndpointSlice, objects::slice("ns", name, name, &endpoints)),
        ];
        for (kind, object) in all {
            for (family, change) in translator.applied(objects::decoded(kind, object)).expect("a good object").changes {
                if family == IpFamily::V4 {
                    self.tracker.apply(change);
                }
            }
        }
    }

    fn sync(&mut self, full: bool) -> SyncStats {
        let scope = self.tracker.take_scope();
        let scope = if full { Scope::Full } else { scope };
        let snapshot = self.tracker.snapshot(objects::address(1));
        self.backend.sync(&snapshot, &scope, self.now).expect("a sync")
    }

    fn check(&mut self) {
        self.now += Duration::from_secs(10_000);
        self.backend.check_drift(self.now).expect("a check");
    }
}

/// What a test does with a kernel, the fake one or the real one.
trait Tables {
    fn lines(&self) -> Vec<String>;
    fn write(&self, line: &str);
}

impl Tables for FakeIptables {
    fn lines(&self) -> Vec<String> {
        let text = self.save_text(Table::Nat);
        text.lines().map(|line| line.split(" - [").next().unwrap_or(line).to_owned()).collect()
    }

    fn write(&self, line: &str) {
        self.apply(&format!("*nat\n{line}\nCOMMIT\n")).expect("a good line");
    }
}

impl Tables for Real {
    fn lines(&self) -> Vec<String> {
        self.saved().lines().map(str::to_owned).collect()
    }

    fn write(&self, line: &str) {
        let words = line.replace(" - [0:0]", "").replace(':', "-N ");
        let output = self.program("").args(["-t", "nat"]).args(words.split(' ')).output().expect("it can be run");
        assert!(output.status.success(), "{words}: {output:?}");
    }
}

/// The chain of the endpoint with that address.
fn chain_of(tables: &dyn Tables, endpoint: u32) -> String {
    let to = format!("--to-destination {}:", objects::address(endpoint));
    let line = tables.lines().into_iter().find(|line| line.contains(&to)).expect("an endpoint's chain");
    line.split(' ').nth(1).expect("a chain").to_owned()
}

fn exercise(tables: &dyn Tables, tool: &dyn Fn() -> Box<dyn IptablesTool>) {
    let mut node = Node::on(tool());
    node.service("pinned", 101, &[11, 12]);
    node.service("other", 102, &[13]);
    node.sync(true);
    let chain = chain_of(tables, 11);
    tables.write(":MINE - [0:0]");
    tables.write(&format!("-A MINE -j {chain}"));
    let rules_of = |chain: &str| {
        let lines = tables.lines();
        let rules = lines.iter().filter(|line| line.starts_with(&format!("-A {chain} "))).count();
        lines.contains(&format!(":{chain}")).then_some(rules)
    };

    // The endpoint goes: its chain is emptied, and the same sync does all else.
    node.service("pinned", 101, &[12]);
    node.service("other", 102, &[14]);
    node.sync(false);
    assert_eq!(rules_of(&chain), Some(0));
    assert_ne!(chain_of(tables, 14), chain);
    // And the next sync is a small one again.
    node.service("other", 102, &[15]);
    assert!(!node.sync(false).full);
    chain_of(tables, 15);

    // After a restart, with the Service gone.
    let mut node = Node::on(tool());
    node.service("other", 102, &[16]);
    node.sync(true);
    assert_eq!(rules_of(&chain), Some(0));
    chain_of(tables, 16);

    // The endpoint comes back, goes again, and the foreign rule goes at last.
    node.service("pinned", 101, &[11]);
    node.sync(false);
    assert_eq!(rules_of(&chain), Some(2));
    node.service("pinned", 101, &[]);
    node.sync(false);
    assert_eq!(rules_of(&chain), Some(0));
    tables.write(&format!("-D MINE -j {chain}"));
    node.check();
    node.check();
    assert_eq!(rules_of(&chain), None, "it is deleted once nothing refers to it");
    chain_of(tables, 16);
}

#[test]
fn a_referenced_chain_is_emptied_and_all_else_is_programmed() {
    for batch in [2, usize::MAX] {
        let fake = FakeIptables::default();
        fake.set_batch(batch);
        exercise(&fake, &|| Box::new(fake.clone()));
    }
}

#[test]
fn a_referenced_chain_is_emptied_in_the_kernel_in_both_flavours() {
    for flavour in FLAVOURS {
        let real = Real::new(flavour);
        exercise(&real, &|| real.tools());
    }
}

#[test]
fn removal_leaves_a_referenced_chain_empty_and_names_the_rule() {
    for flavour in FLAVOURS {
        let real = Real::new(flavour);
        let mut node = Node::on(real.tools());
        node.service("pinned", 101, &[11, 12]);
        node.sync(true);
        let chain = chain_of(&real, 11);
        real.write(":MINE - [0:0]");
        real.write(&format!("-A MINE -j {chain}"));
        for _ in 0..2 {
            let errors =
                iptables::mode_chains().remove(real.tools().as_mut(), &Table::ALL, None).expect_err("one stays");
            let [error] = &errors[..] else { panic!("{errors:?}") };
            assert!(error.0.contains(&chain) && error.0.contains(&format!("-A MINE -j {chain}")), "{error}");
            let ours = real.lines().into_iter().filter(|line| line.contains("KUBE-S")).collect::<Vec<_>>();
            assert_eq!(ours, [format!(":{chain}"), format!("-A MINE -j {chain}")]);
        }
    }
}
