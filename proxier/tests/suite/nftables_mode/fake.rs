//! A fake kernel for nftables mode, with its text without random parts.

use netfilter::IpFamily;
use netfilter::kernel::{Host, IptablesTool, NftTables};
use netfilter::nft::{Operation, Table, Transaction};
use netfilter::testing::{FakeHost, FakeIptables, FakeNftables};
use proxier::backend::Backend;
use proxier::nftables::Nftables;
use proxier::testing::objects::config;

use crate::common::run::Kernel;

/// One fake kernel; clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Fake {
    pub nftables: FakeNftables,
    pub host: FakeHost,
}

impl Fake {
    fn table() -> Table {
        Table { family: IpFamily::V4, name: "kube-proxy".into() }
    }
}

impl Kernel for Fake {
    fn tool(&self) -> Box<dyn IptablesTool> {
        Box::new(FakeIptables::default())
    }

    fn host(&self) -> Box<dyn Host> {
        Box::new(self.host.clone())
    }

    fn mode(&self, _: Box<dyn IptablesTool>) -> Box<dyn Backend> {
        Box::new(
            Nftables::new(IpFamily::V4, config(), Box::new(self.nftables.clone()), self.host()).lookup_threshold(6),
        )
    }

    fn fresh(&self) -> Self {
        Self::default()
    }

    /// Empties a chain, or deletes the table.
    fn damage(&self, nth: usize) -> bool {
        let mut kernel = self.nftables.clone();
        let read = kernel.table(&Self::table()).expect("it can be read");
        let Some(read) = read else { return false };
        let filled: Vec<_> = read.chains.into_iter().filter(|(_, (_, rules))| !rules.is_empty()).collect();
        let mut transaction = Transaction::on(Self::table());
        match filled.get(nth % (filled.len() + 1)) {
            Some((name, _)) => transaction.push(Operation::FlushChain(name.clone())),
            None => transaction.push(Operation::DeleteTable),
        }
        kernel.apply(&transaction, None).expect("it can be damaged");
        true
    }

    fn refuse(&self, text: Option<&str>, _: bool) {
        // They name pods as iptables does.
        let text = text.map(|text| text.trim_start_matches("--to-destination ").trim_end_matches(':'));
        let text = text.map(|text| if text.is_empty() { String::new() } else { format!(" : {text} ") });
        self.nftables.refuse(text.as_deref().map(|text| (text, libc::ENOSPC)));
    }

    fn text(&self) -> String {
        self.nftables.text()
    }
}
