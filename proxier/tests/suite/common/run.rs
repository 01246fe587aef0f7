//! Runs a proxy step by step on a kernel, without threads and clocks.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use netfilter::IpFamily;
use netfilter::iptables::{Chain, Rule, Table};
use netfilter::kernel::{Host, IptablesTool, RestoreError, ToolError};
use netfilter::{Restore, SavedTable};
use proxier::backend::Backend;
use proxier::iptables::Iptables;
use proxier::model::Scope;
use proxier::testing::objects::{config, decoded};
use proxier::track::{Change, Kind, ObjectKey, Tracker, Translation, Translator, key_of};
use serde_json::{Value, json};

use super::cluster::{Operation, name};

/// A kernel and the tools to reach it.
pub trait Kernel: Clone {
    fn tool(&self) -> Box<dyn IptablesTool>;
    fn host(&self) -> Box<dyn Host>;
    /// The mode under test, with a tool to reach this kernel.
    fn mode(&self, tool: Box<dyn IptablesTool>) -> Box<dyn Backend> {
        Box::new(Iptables::new(IpFamily::V4, config(), tool, self.host()))
    }
    /// A kernel without rules that is otherwise like this one.
    fn fresh(&self) -> Self;
    /// Empties a chain of ours, the nth; whether there is anything to empty.
    fn damage(&self, nth: usize) -> bool;
    /// From now on lines with this text in them are refused.
    fn refuse(&self, text: Option<&str>, naming_the_line: bool);
    /// All that it holds.
    fn text(&self) -> String;
    /// Whether a sync that fails leaves everything as it was.
    fn is_atomic(&self) -> bool {
        true
    }
}

/// The scope of a sync and the rules that it wrote.
#[derive(Debug)]
pub struct Written {
    /// The Service ports it was to look at, as they are printed; `None`: everything.
    pub scope: Option<Vec<String>>,
    /// The transactions.
    pub transactions: Vec<String>,
}

/// The texts of the transactions on their way to a kernel.
#[derive(Clone, Debug, Default)]
struct Spy(Arc<Mutex<Vec<String>>>);

#[derive(Debug)]
struct Spied {
    tool: Box<dyn IptablesTool>,
    spy: Spy,
}

impl IptablesTool for Spied {
    fn save(&mut self, table: Table) -> Result<SavedTable, ToolError> {
        self.tool.save(table)
    }

    fn restore(&mut self, restore: &Restore) -> Result<(), RestoreError> {
        self.spy.0.lock().expect("no thread panicked with it").push(restore.to_string());
        self.tool.restore(restore)
    }

    fn has_rule(&mut self, table: Table, builtin: &str, rule: &Rule) -> Result<bool, ToolError> {
        self.tool.has_rule(table, builtin, rule)
    }

    fn references(&mut self, table: Table, ours: &dyn Fn(&Chain) -> bool) -> Result<HashMap<Chain, String>, ToolError> {
        self.tool.references(table, ours)
    }

    fn has_chain(&mut self, table: Table, chain: Chain) -> Result<bool, ToolError> {
        self.tool.has_chain(table, chain)
    }

    fn generation(&mut self) -> Option<u32> {
        self.tool.generation()
    }

    fn edits_rules(&self) -> bool {
        self.tool.edits_rules()
    }

    fn batch(&self) -> usize {
        self.tool.batch()
    }

    fn random_fully(&self) -> bool {
        self.tool.random_fully()
    }
}

/// One proxy of IPv4 on one kernel.
pub struct Run<K> {
    pub kernel: K,
    objects: BTreeMap<ObjectKey, Value>,
    translator: Translator,
    tracker: Tracker,
    backend: Box<dyn Backend>,
    spy: Spy,
    now: Instant,
}

impl<K: Kernel> Run<K> {
    /// A proxy that knows of no objects and has not synced yet.
    pub fn new(kernel: K) -> Self {
        let spy = Spy::default();
        let mut run = Self {
            backend: backend(&kernel, &spy),
            kernel,
            objects: BTreeMap::new(),
            translator: Translator::new(super::cluster::NODE, false),
            tracker: Tracker::default(),
            spy,
            now: Instant::now(),
        };
        run.begin();
        run
    }

    /// Another proxy that meets the objects of this one on a kernel without rules, and its first sync.
    pub fn afresh(&self) -> Self {
        let mut other = Self::new(self.kernel.fresh());
        other.objects.clone_from(&self.objects);
        other.begin();
        other
    }

    /// A new process: it knows nothing but what it lists now.
    fn begin(&mut self) {
        self.backend = backend(&self.kernel, &self.spy);
        self.tracker = Tracker::default();
        self.tracker.request_full_sync();
        for kind in Kind::ALL {
            self.list(kind, 0, false);
        }
    }

    /// Runs one operation; returns what a sync wrote.
    pub fn apply(&mut self, operation: Operation) -> Option<Written> {
        match operation {
            Operation::Apply(kind, object) => {
                self.objects.insert(key_of(kind, &object), object.clone());
                self.see(kind, object);
            }
            Operation::Delete(kind, number) => {
                if let Some(key) = self.key(kind, number) {
                    self.objects.remove(&key);
                    self.tell(Translator::deleted(&key));
                }
            }
            Operation::Garble(kind, number) => {
                if let Some(key) = self.key(kind, number) {
                    self.see_garbled(&key);
                }
            }
            Operation::Relist(kind, gone, garbled, broken) => {
                let keys: Vec<ObjectKey> = self.objects.keys().filter(|key| key.kind == kind).cloned().collect();
                for (bit, key) in keys.iter().enumerate() {
                    if gone >> bit & 1 == 1 {
                        self.objects.remove(key);
                    }
                }
                self.list(kind, garbled, broken);
            }
            Operation::Sync => return self.sync(),
            Operation::Restart => {
                self.begin();
                return self.sync();
            }
            Operation::Damage(nth) => return self.damage(nth),
            Operation::Failure => self.fail(),
            Operation::Refuse(what) => {
                let pod = what.map(|(pod, _)| format!("--to-destination 10.0.0.{pod}:"));
                self.kernel.refuse(pod.as_deref(), what.is_some_and(|(_, by_line)| by_line));
            }
        }
        None
    }

    /// Makes the kernel hold what is known, as a `Proxier` would; `None` if there is nothing to do.
    pub fn sync(&mut self) -> Option<Written> {
        let scope = self.tracker.take_scope();
        if matches!(&scope, Scope::Changed(pending) if pending.is_empty()) {
            return None;
        }
        self.now += Duration::from_secs(1);
        self.spy.0.lock().expect("no thread panicked with it").clear();
        let snapshot = self.tracker.snapshot(IpFamily::V4.localhost());
        let stats = self.backend.sync(&snapshot, &scope, self.now).expect("the kernel takes it");
        self.tracker.request_sync_of(stats.rejected.into_iter().map(|rejected| rejected.port));
        let transactions = self.spy.0.lock().expect("no thread panicked with it").clone();
        let scope = match scope {
            Scope::Changed(ports) => Some(ports.iter().map(ToString::to_string).collect()),
            Scope::Full => None,
        };
        Some(Written { scope, transactions })
    }

    /// A sync that fails as a whole: everything stays as it was, where all that it writes is written at once.
    fn fail(&mut self) {
        let before = self.kernel.text();
        self.kernel.refuse(Some(""), true);
        let scope = self.tracker.take_scope();
        let snapshot = self.tracker.snapshot(IpFamily::V4.localhost());
        let result = self.backend.sync(&snapshot, &scope, self.now);
        self.kernel.refuse(None, false);
        if self.kernel.is_atomic() {
            assert_eq!(self.kernel.text(), before, "what failed has changed something");
        }
        match result {
            // Nothing had to be written.
            Ok(stats) => self.tracker.request_sync_of(stats.rejected.into_iter().map(|rejected| rejected.port)),
            Err(_) => self.tracker.request_full_sync(),
        }
    }

    /// Empties a chain after a sync; the next check detects it, and the sync after that repairs it.
    fn damage(&mut self, nth: usize) -> Option<Written> {
        self.sync();
        if !self.kernel.damage(nth) {
            return None;
        }
        // Checks may be as rare as one in an hour.
        self.now += Duration::from_secs(10_000);
        let damage = self.backend.check_drift(self.now).expect("the tables can be read");
        assert!(damage.is_some(), "drift was not detected");
        self.tracker.request_full_sync();
        self.sync()
    }

    fn key(&self, kind: Kind, number: usize) -> Option<ObjectKey> {
        let (namespace, name) = name(kind, number);
        let known = |key: &&ObjectKey| key.kind == kind && *key.name.namespace == *namespace && *key.name.name == *name;
        self.objects.keys().find(known).cloned()
    }

    fn list(&mut self, kind: Kind, garbled: u8, broken: bool) {
        let objects: Vec<(ObjectKey, Value)> =
            self.objects.iter().filter(|(key, _)| key.kind == kind).map(|(k, v)| (k.clone(), v.clone())).collect();
        if broken {
            self.tell(Translation::everywhere(&Change::Listing(kind)));
            for (_, object) in objects.iter().take(objects.len() / 2) {
                self.see(kind, object.clone());
            }
        }
        self.tell(Translation::everywhere(&Change::Listing(kind)));
        for (bit, (key, object)) in objects.into_iter().enumerate() {
            if garbled >> bit & 1 == 1 { self.see_garbled(&key) } else { self.see(kind, object) }
        }
        self.tell(Translation::everywhere(&Change::Listed(kind)));
    }

    fn see(&mut self, kind: Kind, object: Value) {
        let key = key_of(kind, &object);
        let change = self.translator.applied(decoded(kind, object));
        self.tell(change.unwrap_or_else(|_| Translation::everywhere(&Change::Kept(key))));
    }

    /// The object is there, but as nonsense.
    fn see_garbled(&mut self, key: &ObjectKey) {
        let metadata = json!({ "namespace": &*key.name.namespace, "name": &*key.name.name, "labels": 7 });
        let nonsense = json!({ "metadata": metadata, "spec": "?", "endpoints": "?" });
        assert!(self.translator.applied(decoded(key.kind, nonsense.clone())).is_err(), "that was to be nonsense");
        self.see(key.kind, nonsense);
    }

    fn tell(&mut self, translated: Translation) {
        for (_, change) in translated.changes.into_iter().filter(|(family, _)| *family == IpFamily::V4) {
            self.tracker.apply(change);
        }
    }
}

fn backend<K: Kernel>(kernel: &K, spy: &Spy) -> Box<dyn Backend> {
    kernel.mode(Box::new(Spied { tool: kernel.tool(), spy: spy.clone() }))
}
