//! The real kernel behind the real tools, in a network namespace of its own.
//!
//! The tools work in that namespace from any thread. Needs root and both flavours of iptables.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::process::Command;
use std::sync::Arc;

use netfilter::IpFamily;
use netfilter::iptables::{Chain, Rule, Table};
use netfilter::kernel::iptables::TableState;
use netfilter::kernel::{
    Flavour, FlavourChoice, IptablesTool, NativeIptables, RestoreError, SystemIptables, ToolError,
};
use netfilter::{Restore, SavedTable};
use nix::sched::{CloneFlags, setns, unshare};

/// Stands for nf_tables without the programs.
pub const NATIVE: &str = "-native";

/// Both, with what stands between `iptables` and `-save`; and nf_tables without the programs.
pub const FLAVOURS: [(Flavour, &str); 3] =
    [(Flavour::Nft, "-nft"), (Flavour::Legacy, "-legacy"), (Flavour::Nft, NATIVE)];

/// A namespace and a flavour; clones are the same one.
#[derive(Clone, Debug)]
pub struct Real {
    namespace: Arc<File>,
    pub flavour: Flavour,
    pub infix: &'static str,
}

impl Real {
    /// A namespace without rules.
    pub fn new((flavour, infix): (Flavour, &'static str)) -> Self {
        let make = move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace: run the tests as root");
            File::open("/proc/thread-self/ns/net").expect("one's own namespace")
        };
        let namespace = std::thread::spawn(make).join().expect("a namespace");
        Self { namespace: Arc::new(namespace), flavour, infix }
    }

    /// Moves this thread there. What it starts is there too.
    pub fn enter(&self) {
        setns(&*self.namespace, CloneFlags::CLONE_NEWNET).expect("the namespace can be joined");
    }

    /// A program of this flavour: `-save`, `-restore`.
    pub fn program(&self, suffix: &str) -> Command {
        self.enter();
        let infix = if self.infix == NATIVE { "-nft" } else { self.infix };
        Command::new(format!("iptables{infix}{suffix}"))
    }

    /// Tools that work there.
    pub fn tools(&self) -> Box<dyn IptablesTool> {
        self.enter();
        if self.infix == NATIVE {
            return self.native(|tools| tools);
        }
        let choice =
            FlavourChoice { flavour: Some(self.flavour), infix: self.infix, reason: String::new(), unread: Vec::new() };
        let tools = SystemIptables::find(IpFamily::V4, &choice).expect("iptables works here");
        Box::new(There { tools: Box::new(tools), kernel: self.clone(), edits_rules: true })
    }

    /// iptables without the programs, which rewrites whole chains as they do.
    pub fn rewriting(&self) -> Box<dyn IptablesTool> {
        self.enter();
        let tools = NativeIptables::find(IpFamily::V4).expect("nf_tables works here");
        Box::new(There { tools: Box::new(tools), kernel: self.clone(), edits_rules: false })
    }

    /// The same namespace, written by the programs.
    pub fn by_programs(&self) -> Self {
        let (flavour, infix) = FLAVOURS[0];
        Self { namespace: self.namespace.clone(), flavour, infix }
    }

    /// iptables without the programs, as `adjust` makes it.
    pub fn native(&self, adjust: impl FnOnce(NativeIptables) -> NativeIptables) -> Box<dyn IptablesTool> {
        self.enter();
        let tools = adjust(NativeIptables::find(IpFamily::V4).expect("nf_tables works here"));
        Box::new(There { tools: Box::new(tools), kernel: self.clone(), edits_rules: true })
    }

    /// All tables, chain by chain in the order of their names, without counters.
    pub fn saved(&self) -> String {
        let mut text = String::new();
        for table in Table::ALL {
            let output = self.program("-save").args(["-t", table.name()]).output().expect("it can be run");
            assert!(output.status.success(), "{output:?}");
            let saved = String::from_utf8(output.stdout).expect("text");
            let mut lines: Vec<(String, String)> = saved.lines().filter_map(chain_of).collect();
            lines.sort_by(|a, b| a.0.cmp(&b.0));
            text += &format!("*{}\n", table.name());
            lines.iter().for_each(|(_, line)| text += &format!("{line}\n"));
        }
        text
    }
}

/// A line that is about a chain, without counters, after its chain.
fn chain_of(line: &str) -> Option<(String, String)> {
    if let Some(chain) = line.strip_prefix(':') {
        let name = chain.split(' ').next()?;
        return Some((name.to_owned(), format!(":{name}")));
    }
    let chain = line.strip_prefix("-A ")?.split(' ').next()?;
    Some((chain.to_owned(), line.split_whitespace().collect::<Vec<_>>().join(" ")))
}

#[derive(Debug)]
struct There {
    tools: Box<dyn IptablesTool>,
    kernel: Real,
    edits_rules: bool,
}

impl IptablesTool for There {
    fn save(&mut self, table: Table) -> Result<SavedTable, ToolError> {
        self.kernel.enter();
        self.tools.save(table)
    }

    fn restore(&mut self, restore: &Restore) -> Result<(), RestoreError> {
        self.kernel.enter();
        self.tools.restore(restore)
    }

    fn has_rule(&mut self, table: Table, builtin: &str, rule: &Rule) -> Result<bool, ToolError> {
        self.kernel.enter();
        self.tools.has_rule(table, builtin, rule)
    }

    fn references(&mut self, table: Table, ours: &dyn Fn(&Chain) -> bool) -> Result<HashMap<Chain, String>, ToolError> {
        self.kernel.enter();
        self.tools.references(table, ours)
    }

    fn has_chain(&mut self, table: Table, chain: Chain) -> Result<bool, ToolError> {
        self.kernel.enter();
        self.tools.has_chain(table, chain)
    }

    fn generation(&mut self) -> Option<u32> {
        self.kernel.enter();
        self.tools.generation()
    }

    fn table_state(&mut self, table: Table, chains: &[Chain]) -> io::Result<Option<TableState>> {
        self.kernel.enter();
        self.tools.table_state(table, chains)
    }

    fn edits_rules(&self) -> bool {
        self.edits_rules && self.tools.edits_rules()
    }

    fn batch(&self) -> usize {
        self.tools.batch()
    }

    fn random_fully(&self) -> bool {
        self.tools.random_fully()
    }
}
