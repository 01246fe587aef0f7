//! The iptables programs of one IP family.

use std::collections::HashMap;
use std::io::{self, BufRead};
use std::path::PathBuf;
use std::process::Command;

use thiserror::Error;

use super::command;
pub use super::command::ToolError;
use super::flavour::{Flavour, FlavourChoice};
use super::legacy::{TableSize, table_size};
use super::nftables::{self, ChainState, NftTables, SystemNftables, TableFlags};
use super::writer_priority::WriterRole;
use crate::IpFamily;
use crate::iptables::{Chain, Rule, Table};
use crate::{Restore, SavedTable, nft, reference};

/// The seconds to wait for the xtables lock.
const LOCK_WAIT: &str = "5";

/// The number of chains in one transaction of the nf_tables flavour.
///
/// The run time of a transaction is quadratic in its chains beyond a few thousand; another transaction costs some
/// milliseconds.
const NFT_BATCH: usize = 500;

/// A transaction that was not applied.
#[derive(Debug, Error)]
#[error("{message}")]
pub struct RestoreError {
    /// Whether its lines were refused. If not, the tool could not do anything: a held lock, a timeout, a signal.
    pub refused: bool,
    /// The lines that the tool reported, numbered from 1; empty if it reported none.
    pub lines: Vec<usize>,
    /// The tool's message.
    pub message: String,
}

/// The state of a table, read without listing its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TableState {
    /// nf_tables flavour: the requested chains in order; `None` for a chain that does not exist.
    Chains(Vec<Option<ChainState>>),
    /// Legacy flavour: the size of the whole table.
    Size(TableSize),
}

impl RestoreError {
    /// The chains whose deletion the tool refused, where it reported lines.
    #[must_use]
    pub fn refused_deletions(&self, restore: &Restore) -> Vec<Chain> {
        let lines = self.lines.iter().filter_map(|line| restore.line(*line));
        lines.filter_map(|line| Chain::parse(line.strip_prefix("-X ")?)).collect()
    }
}

/// The iptables programs as a trait. Each method runs one program.
pub trait IptablesTool: Send + std::fmt::Debug {
    /// Reads a table.
    ///
    /// # Errors
    /// If the tool fails or its output cannot be parsed.
    fn save(&mut self, table: Table) -> Result<SavedTable, ToolError>;

    /// Applies a transaction; each table changes atomically.
    ///
    /// # Errors
    /// If the tool refuses it; the error contains the lines that it reported.
    fn restore(&mut self, restore: &Restore) -> Result<(), RestoreError>;

    /// Whether a built-in chain contains a rule, however it is spelled.
    ///
    /// # Errors
    /// If the tool cannot be run.
    fn has_rule(&mut self, table: Table, builtin: &str, rule: &Rule) -> Result<bool, ToolError>;

    /// Whether a chain exists.
    ///
    /// # Errors
    /// If the tool cannot be run.
    fn has_chain(&mut self, table: Table, chain: Chain) -> Result<bool, ToolError>;

    /// The chains that `ours` accepts and that rules of other chains refer to.
    ///
    /// Returns the first such rule for each, as iptables-save prints it. Reads the whole table.
    ///
    /// # Errors
    /// If the tool fails.
    fn references(&mut self, table: Table, ours: &dyn Fn(&Chain) -> bool) -> Result<HashMap<Chain, String>, ToolError>;

    /// The generation ID of nf_tables; `None` for the legacy flavour.
    ///
    /// Each table of a [`IptablesTool::restore`] increments it by one, as does every change by another program.
    fn generation(&mut self) -> Option<u32> {
        None
    }

    /// The state of a table, read in microseconds whatever its size.
    ///
    /// `None` if the flavour has no such state. `chains` are the chains to query in nf_tables.
    ///
    /// # Errors
    /// If the kernel refuses the query.
    fn table_state(&mut self, _table: Table, _chains: &[Chain]) -> io::Result<Option<TableState>> {
        Ok(None)
    }

    /// The flags of a table in nf_tables; `None` for the legacy flavour, or if there is no such table.
    ///
    /// # Errors
    /// If the kernel refuses the query.
    fn table_flags(&mut self, _table: Table) -> io::Result<Option<TableFlags>> {
        Ok(None)
    }

    /// Whether [`IptablesTool::restore`] changes chains rule by rule ([`Restore::edit`]).
    fn edits_rules(&self) -> bool {
        false
    }

    /// The number of chains above which a transaction should be split.
    fn batch(&self) -> usize;

    /// Whether MASQUERADE supports `--random-fully`.
    fn random_fully(&self) -> bool;
}

/// The iptables programs of the running system.
#[derive(Debug)]
pub struct SystemIptables {
    family: IpFamily,
    flavour: Option<Flavour>,
    iptables: PathBuf,
    save: PathBuf,
    restore: PathBuf,
    batch: usize,
    random_fully: bool,
    /// nf_tables, which the tools write to; `None` for the legacy flavour.
    nf_tables: Option<SystemNftables>,
    role: WriterRole,
}

impl SystemIptables {
    /// The programs of a family in the detected flavour.
    ///
    /// Checks that they work by listing `POSTROUTING` of nat.
    ///
    /// # Errors
    /// If a program is missing, the kernel has no nat table for the family, or permission is refused.
    pub fn find(family: IpFamily, choice: &FlavourChoice) -> Result<Self, ToolError> {
        let tools = Self::programs(family, choice)?;
        command::run(tools.command().args(["-S", "POSTROUTING", "-t", "nat"]), [])?;
        Ok(tools)
    }

    /// Writes in this role. A background writer's commands restart after preemption.
    #[must_use]
    pub fn as_writer(self, role: WriterRole) -> Self {
        Self { role, ..self }
    }

    /// Whether the programs of a family support `--random-fully`. Does not access the kernel.
    #[must_use]
    pub fn knows_random_fully(family: IpFamily, choice: &FlavourChoice) -> bool {
        Self::programs(family, choice).is_ok_and(|tools| tools.random_fully)
    }

    /// The legacy programs of a family; `None` if they are not in PATH.
    ///
    /// # Errors
    /// If a program in PATH cannot be run.
    pub fn find_legacy(family: IpFamily) -> Result<Option<Self>, String> {
        let Some(choice) = FlavourChoice::of(Flavour::Legacy)? else { return Ok(None) };
        match Self::programs(family, &choice) {
            Ok(tools) => Ok(Some(tools)),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error.to_string()),
        }
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
            role: WriterRole::default(),
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
        let result = self.role.write(|preemption| match preemption {
            None => Some(command::run(&mut command, restore.parts())),
            Some(preemption) => match command::run_preemptible(&mut command, preemption, restore.parts()) {
                Err(ToolError::Preempted { .. }) => None,
                result => Some(result),
            },
        });
        result.map(drop).map_err(|error| {
            let message = error.to_string();
            let lines = if let ToolError::Failed { stderr, .. } = &error { refused_lines(stderr) } else { Vec::new() };
            RestoreError { refused: is_refusal(&error, &lines), lines, message }
        })
    }

    fn has_rule(&mut self, table: Table, builtin: &str, rule: &Rule) -> Result<bool, ToolError> {
        let mut command = self.command();
        command.args(["-t", table.name(), "-C", builtin]).args(arguments(&rule.to_string()));
        let _turn = self.role.turn();
        answer(command::run(&mut command, []))
    }

    fn has_chain(&mut self, table: Table, chain: Chain) -> Result<bool, ToolError> {
        let _turn = self.role.turn();
        answer(command::run(self.command().args(["-t", table.name(), "-S", chain.as_str()]), []))
    }

    fn references(&mut self, table: Table, ours: &dyn Fn(&Chain) -> bool) -> Result<HashMap<Chain, String>, ToolError> {
        command::stream(Command::new(&self.save).args(["-t", table.name()]), |output| references(output, ours))
    }

    fn generation(&mut self) -> Option<u32> {
        // Without a generation ID, callers check everything.
        self.nf_tables.as_mut()?.generation().ok()
    }

    fn table_state(&mut self, table: Table, chains: &[Chain]) -> io::Result<Option<TableState>> {
        if let Some(kernel) = &mut self.nf_tables {
            let names: Vec<&str> = chains.iter().map(Chain::as_str).collect();
            let table = nft::Table { family: self.family, name: table.name().into() };
            let states = kernel.chain_states(&table, &names)?;
            return Ok(Some(TableState::Chains(states)));
        }
        let size = self.flavour.map(|_| table_size(self.family, table)).transpose()?;
        Ok(size.map(TableState::Size))
    }

    fn table_flags(&mut self, table: Table) -> io::Result<Option<TableFlags>> {
        match self.nf_tables {
            Some(_) => nftables::table_flags(self.family, table.name()),
            None => Ok(None),
        }
    }

    fn batch(&self) -> usize {
        self.batch
    }

    fn random_fully(&self) -> bool {
        self.random_fully
    }
}

/// Whether the legacy flavour has tables in the kernel.
///
/// # Errors
/// If the kernel's list cannot be read, as without root.
pub fn has_legacy_tables(family: IpFamily) -> io::Result<bool> {
    legacy_tables(family).map(|names| !names.trim().is_empty())
}

/// The names of the existing legacy tables, one per line; empty without the kernel module.
///
/// # Errors
/// If they cannot be read, which says nothing about whether tables exist.
pub(super) fn legacy_tables(family: IpFamily) -> io::Result<String> {
    match std::fs::read_to_string(family.legacy_table_names()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        read => read,
    }
}

/// The existing tables of a flavour. Creates none, as a listing by the programs would.
///
/// # Errors
/// If they cannot be read, which says nothing about whether tables exist.
pub fn existing_tables(family: IpFamily, flavour: Flavour) -> io::Result<Vec<Table>> {
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

/// The tables named in a list, one name per line.
pub(super) fn named(names: &str) -> Vec<Table> {
    Table::ALL.into_iter().filter(|table| names.lines().any(|name| name == table.name())).collect()
}

/// iptables exits with status 1 for "no"; other statuses are errors.
fn answer(result: Result<Vec<u8>, ToolError>) -> Result<bool, ToolError> {
    match result {
        Ok(_) => Ok(true),
        Err(ToolError::Failed { status, .. }) if status.code() == Some(1) => Ok(false),
        Err(error) => Err(error),
    }
}

/// For each of our chains that a saved table's rules refer to: the first rule of another chain.
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

/// Splits a rule into arguments at spaces outside double quotes.
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

/// Whether iptables-restore failed because of the lines it was given.
///
/// It exits with 1 or 2 for lines that it does not understand or that the kernel refuses (legacy), with 4 for lines that
/// the kernel refuses (nf_tables), and also with 4 when it does not get the xtables lock or netlink fails.
fn is_refusal(error: &ToolError, lines: &[usize]) -> bool {
    match error {
        ToolError::Failed { status, .. } => match status.code() {
            Some(4) => !lines.is_empty(),
            code => code.is_some(),
        },
        _ => false,
    }
}

/// The lines that iptables-restore reports: `Error occurred at line: 7`, `line 7: RULE_APPEND failed`,
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

/// Whether the version supports `--random-fully` (1.6.2 and later).
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
    fn refused_lines_are_parsed_from_every_message_format() {
        let nft = "iptables-restore v1.8.9 (nf_tables): \nline 8: RULE_APPEND failed (No such file or directory): rule";
        assert_eq!(refused_lines(nft), [8]);
        let usage = "recent: bad value\nError occurred at line: 12\nTry `iptables-restore -h'";
        assert_eq!(refused_lines(usage), [12]);
        assert_eq!(refused_lines("iptables-restore: line 31 failed"), [31]);
        assert_eq!(refused_lines("Another app is currently holding the xtables lock"), [] as [usize; 0]);
    }

    #[test]
    fn a_held_lock_a_signal_and_a_timeout_are_no_refusals() {
        let failed = |status: i32, stderr: &str| {
            let status = std::os::unix::process::ExitStatusExt::from_raw(status);
            let error = ToolError::Failed { program: "iptables-restore".to_owned(), status, stderr: stderr.to_owned() };
            is_refusal(&error, &refused_lines(stderr))
        };
        assert!(failed(1 << 8, "iptables-restore: line 31 failed"));
        assert!(failed(
            2 << 8,
            "iptables-restore v1.8.9 (legacy): Couldn't load match `foo':No such file or directory"
        ));
        assert!(failed(4 << 8, "line 8: RULE_APPEND failed (No such file or directory): rule in chain A"));
        assert!(!failed(4 << 8, "Another app is currently holding the xtables lock; still 4s 0us time ahead"));
        assert!(!failed(9, ""), "killed");
        let timeout = ToolError::Timeout { program: String::new(), timeout: std::time::Duration::from_secs(1) };
        assert!(!is_refusal(&timeout, &[]));
    }

    #[test]
    fn random_fully_depends_on_the_version() {
        assert!(knows_random_fully("iptables v1.8.9 (nf_tables)"));
        assert!(knows_random_fully("iptables v1.10.0"));
        assert!(!knows_random_fully("iptables v1.6.1") && !knows_random_fully("what?"));
    }

    #[test]
    fn quoted_comment_is_one_argument() {
        let rule = r#" -m comment --comment "kubernetes service portals" -j KUBE-SERVICES"#;
        let words = ["-m", "comment", "--comment", "kubernetes service portals", "-j", "KUBE-SERVICES"];
        assert_eq!(arguments(rule), words);
    }

    proptest::proptest! {
        #[test]
        fn any_tool_output_is_parsed_without_panic(said in r#"(line|Error occurred at|:| |[0-9]{1,30}|v1\.|["\PC]){0,12}"#) {
            let lines = refused_lines(&said);
            proptest::prop_assert!(lines.is_sorted() && lines.len() <= said.matches("line").count());
            knows_random_fully(&said);
            proptest::prop_assert!(arguments(&said).concat().len() <= said.len());
        }
    }
}
