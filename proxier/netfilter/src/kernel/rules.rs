//! The rules that the kernel holds, anybody's, with what they counted.
//!
//! In: a flavour and a family. Out: the tools' text, line by line: big tables have tens of megabytes.
//! Must not know: what the lines mean. Nothing is changed: no table comes into being by being looked at.

use std::io::BufRead;
use std::path::PathBuf;
use std::process::Command;

use super::command;
use super::flavour::Flavour;
use super::iptables::{ToolError, legacy_tables};
use crate::IpFamily;

/// Reads the rules of a family in one flavour.
#[derive(Debug)]
pub struct RuleReader {
    family: IpFamily,
    flavour: Flavour,
    iptables: PathBuf,
    save: PathBuf,
}

impl RuleReader {
    /// The tools of a flavour, whether or not it is the one in use.
    ///
    /// # Errors
    /// If a tool is missing.
    pub fn find(family: IpFamily, flavour: Flavour) -> Result<Self, ToolError> {
        let path = |suffix: &str| {
            let program = format!("{}{}{suffix}", family.iptables(), flavour.infix());
            which::which(&program).map_err(|e| ToolError::Start { program, source: std::io::Error::other(e) })
        };
        Ok(Self { family, flavour, iptables: path("")?, save: path("-save")? })
    }

    /// The family.
    #[must_use]
    pub fn family(&self) -> IpFamily {
        self.family
    }

    /// All tables that exist, or one of them, as `iptables-save -c` prints them.
    ///
    /// # Errors
    /// If the tool fails.
    pub fn save(&self, table: Option<&str>, line: &mut dyn FnMut(&str)) -> Result<(), ToolError> {
        if self.flavour == Flavour::Legacy {
            // Asking the legacy tool for a table would make it.
            let existing = legacy_tables(self.family)
                .map_err(|source| ToolError::Output { program: self.family.legacy_table_names().to_owned(), source })?;
            if existing.lines().all(|name| table.is_some_and(|table| table != name)) {
                return Ok(());
            }
        }
        let mut tool = Command::new(&self.save);
        tool.arg("-c").args(table.iter().flat_map(|table| ["-t", table]));
        command::stream(&mut tool, |mut output| {
            let mut bytes = Vec::new();
            while output.read_until(b'\n', &mut bytes)? != 0 {
                line(&String::from_utf8_lossy(&bytes));
                bytes.clear();
            }
            Ok(())
        })
    }

    /// One table, as `iptables -v -S` prints it. The save tool of the nf_tables flavour reads all tables to print one.
    ///
    /// # Errors
    /// If the tool fails.
    pub fn table(&self, table: &str) -> Result<String, ToolError> {
        let output = command::run(Command::new(&self.iptables).args(["-t", table, "-v", "-S"]), [])?;
        Ok(String::from_utf8_lossy(&output).into_owned())
    }

    /// One chain, as `iptables -v -S` prints it; `None` if there is no such chain.
    ///
    /// # Errors
    /// If the tool cannot be run.
    pub fn chain(&self, table: &str, chain: &str) -> Result<Option<String>, ToolError> {
        let mut tool = Command::new(&self.iptables);
        match command::run(tool.args(["-t", table, "-v", "-S", chain]), []) {
            Ok(output) => Ok(Some(String::from_utf8_lossy(&output).into_owned())),
            Err(ToolError::Failed { status, .. }) if status.code() == Some(1) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
