//! The iptables tools of one family.
//!
//! In: transactions and questions. Out: what the tools did or said. Must not know: whose rules they are.

use std::collections::HashMap;
use std::io::{self, BufRead};
use std::path::PathBuf;
use std::process::Command;

use thiserror::Error;

use super::command;
pub use super::command::ToolError;
use super::flavour::{Flavour, FlavourChoice};
use super::legacy::{TableSize, table_size};
use super::nftables::{self, ChainState, NftTables, SystemNftables};
use super::writer_priority::WriterPriority;
use crate::IpFamily;
use crate::iptables::{Chain, Rule, Table};
use crate::{Restore, SavedTable, nft, reference};

/// Seconds to wait for the lock that all iptables programs share.
const LOCK_WAIT: &str = "5";

/// Chains in one transaction of the nf_tables flavour: its time is quadratic in them beyond a few thousand, while
/// each further transaction costs some milliseconds (see the README's figures).
const NFT_BATCH: usize = 500;

/// A transaction that was refused.
#[derive(Debug, Error)]
#[error("{message}")]
pub struct RestoreError {
    /// The lines that the tool named, from 1; empty if it named none.
    pub lines: Vec<usize>,
    /// The tool's words.
    pub message: String,
}

/// What the kernel tells of a table without listing its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TableState {
    /// With the nf_tables flavour: chains that were asked for, in that order; `None` where there is no such chain.
    Chains(Vec<Option<ChainState>>),
    /// With the legacy flavour: the size of the whole table.
    Size(TableSize),
}

impl RestoreError {
    /// The chains whose deletion the tool refused, as far as it names lines.
    #[must_use]
    pub fn refused_deletions(&self, restore: &Restore) -> Vec<Chain> {
        let lines = self.lines.iter().filter_map(|line| restore.line(*line));
        lines.filter_map(|line| Chain::parse(line.strip_prefix("-X ")?)).collect()
    }
}

/// What a mode needs of iptables. Each method is one run of a tool.
pub trait IptablesTool: Send + std::fmt::Debug {
    /// Reads a table.
    ///
    /// # Errors
    /// If the tool fails or prints what cannot be understood.
    fn save(&mut self, table: Table) -> Result<SavedTable, ToolError>;

    /// Applies a transaction; a table changes as a whole or not at all.
    ///
    /// # Errors
    /// If the tool refuses it, with the lines at fault where it names them.
    fn restore(&mut self, restore: &Restore) -> Result<(), RestoreError>;

    /// Whether a built-in chain has a rule, in whatever words.
    ///
    /// # Errors
    /// If the tool cannot be run.
    fn has_rule(&mut self, table: Table, builtin: &str, rule: &Rule) -> Result<bool, ToolError>;

    /// Whether a chain exists.
    ///
    /// # Errors
    /// If the tool cannot be run.
    fn has_chain(&mut self, table: Table, chain: Chain) -> Result<bool, ToolError>;

    /// For each chain that `ours` accepts and a rule of another chain refers to: the first such rule, as iptables-save
    /// prints it. It reads the whole table.
    ///
    /// # Errors
    /// If the tool fails.
    fn references(&mut self, table: Table, ours: &dyn Fn(&Chain) -> bool) -> Result<HashMap<Chain, String>, ToolError>;

    /// A number that each table of a [`IptablesTool::restore`] makes the next one, and every change of somebody else's
    /// another one; `None` where there is no such number.
    fn generation(&mut self) -> Option<u32> {
        None
    }

    /// What the kernel tells of a table in microseconds, however big it is; of nf_tables' of these chains. `None` where it
    /// tells nothing so cheaply.
    ///
    /// # Errors
    /// If it does not tell.
    fn table_state(&mut self, _table: Table, _chains: &[Chain]) -> io::Result<Option<TableState>> {
        Ok(None)
    }

    /// From how many chains on a transaction is better cut in two.
    fn batch(&self) -> usize;

    /// Whether MASQUERADE knows `--random-fully`.
    fn random_fully(&self) -> bool;
}

/// The tools of the running system.
#[derive(Debug)]
pub struct SystemIptables {
    family: IpFamily,
    flavour: Option<Flavour>,
    iptables: PathBuf,
    save: PathBuf,
    restore: PathBuf,
    batch: usize,
    random_fully: bool,
    /// Where the tools write, unless they are those of the legacy flavour.
    nf_tables: Option<SystemNftables>,
    priority: WriterPriority,
    /// Whether writing is a step of the leftover cleanup, and not part of a sync.
    is_cleanup: bool,
}

impl SystemIptables {
    /// The tools of a family in the chosen flavour, if they work: `POSTROUTING` of nat can be listed.
    ///
    /// # Errors
    /// If a program is missing, or the kernel has no nat table for the family, or we may not look.
    pub fn find(family: IpFamily, choice: &FlavourChoice) -> Result<Self, ToolError> {
        let tools = Self::programs(family, choice)?;
        command::run(tools.command().args(["-S", "POSTROUTING", "-t", "nat"]), [])?;
        Ok(tools)
    }

    /// Writes as a foreground writer, which background steps yield to.
    #[must_use]
    pub fn as_foreground(self, priority: WriterPriority) -> Self {
        Self { priority, is_cleanup: false, ..self }
    }

    /// Writes as background steps that yield to foreground writers and restart after preemption.
    #[must_use]
    pub fn as_background(self, priority: WriterPriority) -> Self {
        Self { priority, is_cleanup: true, ..self }
    }

    /// Whether the tools of a family in the chosen flavour know `--random-fully`; nothing of the kernel is read.
    #[must_use]
    pub fn knows_random_fully(family: IpFamily, choice: &FlavourChoice) -> bool {
        Self::programs(family, choice).is_ok_and(|tools| tools.random_fully)
    }

    /// Existing tables of a flavour (listing must not create any) and the tools that read them; `None` where no program
    /// of that flavour is in PATH.
    ///
    /// # Errors
    /// If the kernel does not list its tables, or a program in PATH cannot be run.
    pub fn find_existing(family: IpFamily, flavour: Flavour) -> Result<(Vec<Table>, Option<Self>), String> {
        let tables = existing(family, flavour).map_err(|error| error.to_string())?;
        if tables.is_empty() {
            return Ok((tables, None));
        }
        let tools = match FlavourChoice::of(flavour)? {
            Some(choice) => match Self::programs(family, &choice) {
                Ok(tools) => Some(tools),
                Err(error) if error.is_missing() => None,
                Err(error) => return Err(error.to_string()),
            },
            None => None,
        };
        Ok((tables, tools))
    }

    fn programs(family: IpFamily, choice: &FlavourChoice) -> Result<Self, ToolError> {
        let path = |suffix: &str| {
            let program = format!("{}{}{suffix}", family.iptables(), choice.infix);
            which::which(&program)
                .map_err(|error| ToolError::Start { program, source: io::Error::new(io::ErrorKind::NotFound, error) })
        };
        let iptables = path("")?;
        let version = command::run(Command::new(&iptables).arg("--version"), [])?;
        Ok(Self {
            family,
            flavour: choice.flavour,
            save: path("-save")?,
            restore: path("-restore")?,
            batch: if choice.flavour == Some(Flavour::Legacy) { usize::MAX } else { NFT_BATCH },
            random_fully: knows_random_fully(&String::from_utf8_lossy(&version)),
            nf_tables: (choice.flavour == Some(Flavour::Nft)).then(SystemNftables::default),
            priority: WriterPriority::default(),
            is_cleanup: false,
            iptables,
        })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.iptables);
        command.args(["-w", LOCK_WAIT]);
        command
    }
}

impl IptablesTool for SystemIptables {
    fn save(&mut self, table: Table) -> Result<SavedTable, ToolError> {
        command::stream(Command::new(&self.save).args(["-t", table.name()]), SavedTable::read)
    }

    fn restore(&mut self, restore: &Restore) -> Result<(), RestoreError> {
        let mut command = Command::new(&self.restore);
        command.args(["-w", LOCK_WAIT, "--noflush", "--counters"]);
        let result = if self.is_cleanup {
            self.priority.run_background(|preemption| {
                match command::run_preemptible(&mut command, preemption, restore.parts()) {
                    Err(ToolError::Preempted { .. }) => None,
                    result => Some(result),
                }
            })
        } else {
            let _turn = self.priority.write();
            command::run(&mut command, restore.parts())
        };
        result.map(drop).map_err(|error| {
            let message = error.to_string();
            let lines = if let ToolError::Failed { stderr, .. } = &error { refused_lines(stderr) } else { Vec::new() };
            RestoreError { lines, message }
        })
    }

    fn has_rule(&mut self, table: Table, builtin: &str, rule: &Rule) -> Result<bool, ToolError> {
        let mut command = self.command();
        command.args(["-t", table.name(), "-C", builtin]).args(arguments(&rule.to_string()));
        let _turn = (!self.is_cleanup).then(|| self.priority.write());
        answer(command::run(&mut command, []))
    }

    fn has_chain(&mut self, table: Table, chain: Chain) -> Result<bool, ToolError> {
        let _turn = (!self.is_cleanup).then(|| self.priority.write());
        answer(command::run(self.command().args(["-t", table.name(), "-S", chain.as_str()]), []))
    }

    fn references(&mut self, table: Table, ours: &dyn Fn(&Chain) -> bool) -> Result<HashMap<Chain, String>, ToolError> {
        command::stream(Command::new(&self.save).args(["-t", table.name()]), |output| references(output, ours))
    }

    fn generation(&mut self) -> Option<u32> {
        // Who is not told looks at everything.
        self.nf_tables.as_mut()?.generation().ok()
    }

    fn table_state(&mut self, table: Table, chains: &[Chain]) -> io::Result<Option<TableState>> {
        if let Some(kernel) = &mut self.nf_tables {
            let names: Vec<&str> = chains.iter().map(Chain::as_str).collect();
            let table = nft::Table { family: self.family, name: table.name().into() };
            let states = kernel.chain_states(&table, &names).map_err(io::Error::other)?;
            return Ok(Some(TableState::Chains(states)));
        }
        let size = self.flavour.map(|_| table_size(self.family, table)).transpose()?;
        Ok(size.map(TableState::Size))
    }

    fn batch(&self) -> usize {
        self.batch
    }

    fn random_fully(&self) -> bool {
        self.random_fully
    }
}

/// The names of the legacy tables that exist, one per line; empty without the kernel module.
///
/// # Errors
/// If they cannot be read, which says nothing about whether there are any.
pub(super) fn legacy_tables(family: IpFamily) -> io::Result<String> {
    match std::fs::read_to_string(family.legacy_table_names()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        read => read,
    }
}

fn existing(family: IpFamily, flavour: Flavour) -> io::Result<Vec<Table>> {
    match flavour {
        Flavour::Legacy => {
            let names = legacy_tables(family)?;
            Ok(named(&names))
        }
        Flavour::Nft => {
            let mut tables = Vec::new();
            for table in Table::ALL {
                if nftables::has_table(family, table.name())? {
                    tables.push(table);
                }
            }
            Ok(tables)
        }
    }
}

/// Which of our tables a list of names has, one in a line.
pub(super) fn named(names: &str) -> Vec<Table> {
    Table::ALL.into_iter().filter(|table| names.lines().any(|name| name == table.name())).collect()
}

/// iptables says no with status 1; others are troubles.
fn answer(result: Result<Vec<u8>, ToolError>) -> Result<bool, ToolError> {
    match result {
        Ok(_) => Ok(true),
        Err(ToolError::Failed { status, .. }) if status.code() == Some(1) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The first rule of another chain for each of our chains that a saved table's rules refer to.
pub(super) fn references(
    mut output: impl BufRead,
    ours: &dyn Fn(&Chain) -> bool,
) -> io::Result<HashMap<Chain, String>> {
    let (mut found, mut bytes) = (HashMap::new(), Vec::new());
    while output.read_until(b'\n', &mut bytes)? != 0 {
        let line = String::from_utf8_lossy(&bytes);
        if let Some((from, to)) = reference(line.trim_end())
            && ours(&to)
            && !Chain::parse(from).is_some_and(|from| ours(&from))
        {
            found.entry(to).or_insert_with(|| line.trim_end().to_owned());
        }
        bytes.clear();
    }
    Ok(found)
}

/// Splits a rule's text into arguments: blanks separate, except in double quotes.
pub(super) fn arguments(rule: &str) -> Vec<String> {
    let mut arguments = Vec::new();
    for (index, part) in rule.split('"').enumerate() {
        if index % 2 == 1 {
            arguments.push(part.to_owned());
        } else {
            arguments.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    arguments
}

/// The lines that iptables-restore blames: `Error occurred at line: 7`, `line 7: RULE_APPEND failed`,
/// `iptables-restore: line 7 failed`.
pub(super) fn refused_lines(stderr: &str) -> Vec<usize> {
    let mut lines = Vec::new();
    for (at, word) in stderr.match_indices("line") {
        let rest = stderr[at + word.len()..].trim_start_matches([':', ' ']);
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        lines.extend(digits.parse::<usize>());
    }
    lines.sort_unstable();
    lines.dedup();
    lines
}

/// `--random-fully` came with 1.6.2.
pub(super) fn knows_random_fully(version: &str) -> bool {
    let Some(start) = version.find(" v") else { return false };
    let number = version[start + 2..].split_whitespace().next().unwrap_or_default();
    let parts: Vec<u32> = number.split('.').map_while(|part| part.parse().ok()).collect();
    parts >= vec![1, 6, 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_lines_are_found_in_every_wording() {
        let nft = "iptables-restore v1.8.9 (nf_tables): \nline 8: RULE_APPEND failed (No such file or directory): rule";
        assert_eq!(refused_lines(nft), [8]);
        let usage = "recent: bad value\nError occurred at line: 12\nTry `iptables-restore -h'";
        assert_eq!(refused_lines(usage), [12]);
        assert_eq!(refused_lines("iptables-restore: line 31 failed"), [31]);
        assert_eq!(refused_lines("Another app is currently holding the xtables lock"), [] as [usize; 0]);
    }

    #[test]
    fn versions_tell_what_masquerade_knows() {
        assert!(knows_random_fully("iptables v1.8.9 (nf_tables)"));
        assert!(knows_random_fully("iptables v1.10.0"));
        assert!(!knows_random_fully("iptables v1.6.1") && !knows_random_fully("what?"));
    }

    #[test]
    fn comments_are_one_argument() {
        let rule = r#" -m comment --comment "kubernetes service portals" -j KUBE-SERVICES"#;
        let words = ["-m", "comment", "--comment", "kubernetes service portals", "-j", "KUBE-SERVICES"];
        assert_eq!(arguments(rule), words);
    }

    proptest::proptest! {
        #[test]
        fn whatever_a_tool_says_is_borne(said in r#"(line|Error occurred at|:| |[0-9]{1,30}|v1\.|["\PC]){0,12}"#) {
            let lines = refused_lines(&said);
            proptest::prop_assert!(lines.is_sorted() && lines.len() <= said.matches("line").count());
            knows_random_fully(&said);
            proptest::prop_assert!(arguments(&said).concat().len() <= said.len());
        }
    }
}
