//! The fake kernel for runs and checks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use netfilter::iptables::Table;
use netfilter::kernel::{Host, IptablesTool};
use netfilter::testing::{FakeHost, FakeIptables};

use crate::common::run::Kernel;

/// Every chain's rules.
pub type Tables = BTreeMap<(Table, String), Vec<String>>;

/// One fake kernel; clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Fake {
    iptables: FakeIptables,
    host: FakeHost,
    refuses: Arc<AtomicBool>,
}

impl Fake {
    /// One whose tool changes chains rule by rule.
    pub fn editing() -> Self {
        let fake = Self::default();
        fake.iptables.edit_rules();
        fake
    }

    pub fn tables(&self) -> Tables {
        let of = |table| self.iptables.chains(table).into_iter().map(move |(chain, rules)| ((table, chain), rules));
        Table::ALL.into_iter().flat_map(of).collect()
    }

    /// Whether it currently refuses something.
    pub fn refuses(&self) -> bool {
        self.refuses.load(Ordering::Relaxed)
    }
}

impl Kernel for Fake {
    fn tool(&self) -> Box<dyn IptablesTool> {
        Box::new(self.iptables.clone())
    }

    fn host(&self) -> Box<dyn Host> {
        Box::new(self.host.clone())
    }

    fn fresh(&self) -> Self {
        Self::default()
    }

    fn damage(&self, nth: usize) -> bool {
        let ours: Vec<_> =
            self.tables().into_iter().filter(|((_, chain), r)| chain.starts_with("KUBE-") && !r.is_empty()).collect();
        let Some(((table, chain), _)) = ours.get(nth % ours.len().max(1)) else { return false };
        self.iptables.apply(&format!("*{}\n:{chain} - [0:0]\nCOMMIT\n", table.name())).expect("a chain can be emptied");
        true
    }

    fn refuse(&self, text: Option<&str>, naming_the_line: bool) {
        self.refuses.store(text.is_some(), Ordering::Relaxed);
        self.iptables.refuse(text, naming_the_line);
    }

    fn text(&self) -> String {
        self.iptables.to_string()
    }
}
