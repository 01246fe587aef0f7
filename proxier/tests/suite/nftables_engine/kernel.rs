//! The real kernel in a network namespace: an nf_tables engine for any thread, and nft's output.

use std::fs::File;
use std::process::{Command, Stdio};
use std::sync::Arc;

use netfilter::IpFamily;
use netfilter::kernel::nftables::{ChainState, NftError, ReadTable};
use netfilter::kernel::{NftTables, SystemNftables};
use netfilter::nft::{Bytes, Element, Name, Set, Table, Transaction};
use nix::sched::{CloneFlags, setns, unshare};

/// A namespace; clones are the same one.
#[derive(Clone, Debug)]
pub struct Real(Arc<File>);

impl Real {
    /// A namespace without tables.
    pub fn new() -> Self {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace: run the tests as root");
            File::open("/proc/thread-self/ns/net").expect("one's own namespace")
        };
        Self(Arc::new(std::thread::spawn(make).join().expect("a namespace")))
    }

    /// Moves this thread there. What it starts is there too.
    pub fn enter(&self) {
        setns(&*self.0, CloneFlags::CLONE_NEWNET).expect("the namespace can be joined");
    }

    /// An engine that works there.
    pub fn engine(&self) -> Box<dyn NftTables> {
        Box::new(There { engine: SystemNftables::default(), real: self.clone() })
    }

    /// What nft prints.
    pub fn nft(&self, arguments: &str) -> String {
        self.enter();
        let output = Command::new("nft").args(arguments.split(' ')).output().expect("nft can be run");
        assert!(output.status.success(), "nft {arguments}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }

    /// Has nft read a text.
    pub fn nft_reads(&self, text: &str) {
        self.enter();
        let mut child = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.as_mut().expect("nft can be run").take_all(text);
        assert!(child.0, "nft does not read this: {}\n{text}", std::mem::take(&mut child.1));
    }
}

trait TakeAll {
    fn take_all(&mut self, text: &str) -> (bool, String);
}

impl TakeAll for std::process::Child {
    fn take_all(&mut self, text: &str) -> (bool, String) {
        use std::io::{Read, Write};
        let mut input = self.stdin.take().expect("piped");
        input.write_all(text.as_bytes()).expect("nft reads");
        drop(input);
        let mut errors = String::new();
        self.stderr.take().expect("piped").read_to_string(&mut errors).expect("text");
        (self.wait().expect("it ends").success(), errors)
    }
}

#[derive(Debug)]
struct There {
    engine: SystemNftables,
    real: Real,
}

impl NftTables for There {
    fn generation(&mut self) -> Result<u32, NftError> {
        self.real.enter();
        self.engine.generation()
    }

    fn chain_states(&mut self, table: &Table, chains: &[&str]) -> Result<Vec<Option<ChainState>>, NftError> {
        self.real.enter();
        self.engine.chain_states(table, chains)
    }

    fn tables(&mut self, family: IpFamily) -> Result<Vec<Name>, NftError> {
        self.real.enter();
        self.engine.tables(family)
    }

    fn table(&mut self, table: &Table) -> Result<Option<ReadTable>, NftError> {
        self.real.enter();
        self.engine.table(table)
    }

    fn elements(&mut self, table: &Table, set: &Set, each: &mut dyn FnMut(Element)) -> Result<(), NftError> {
        self.real.enter();
        self.engine.elements(table, set, each)
    }

    fn lookup(
        &mut self,
        table: &Table,
        set: &Set,
        lists: &mut dyn Iterator<Item = Vec<Bytes>>,
        each: &mut dyn FnMut(Element),
    ) -> Result<(), NftError> {
        self.real.enter();
        self.engine.lookup(table, set, lists, each)
    }

    fn apply(&mut self, transaction: &Transaction, generation: Option<u32>) -> Result<u32, NftError> {
        self.real.enter();
        self.engine.apply(transaction, generation)
    }

    fn check(&mut self, transaction: &Transaction) -> Result<(), NftError> {
        self.real.enter();
        self.engine.check(transaction)
    }
}
