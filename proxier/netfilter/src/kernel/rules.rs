//! Reads the iptables rules of any program, with their counters.
//!
//! The text is streamed by line, because large tables have tens of megabytes. Nothing is changed; in particular,
//! reading does not create legacy tables.

use std::io::BufRead;
use std::path::PathBuf;
use std::process::Command;

use super::command;
use super::flavour::Flavour;
use super::iptables::{ToolError, legacy_tables};
use crate::IpFamily;
use crate::iptables::has_open_quote;

/// A reader of the rules of one family and flavour.
#[derive(Debug)]
pub struct RuleReader {
    family: IpFamily,
    flavour: Flavour,
    iptables: PathBuf,
    save: PathBuf,
}

impl RuleReader {
    /// A reader that uses the programs of a flavour, whether or not the host uses it.
    ///
    /// # Errors
    /// If a program is missing.
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

    /// Passes one table or all existing ones to `line`, as printed by `iptables-save -c`.
    ///
    /// # Errors
    /// If the program fails.
    pub fn save(&self, table: Option<&str>, line: &mut dyn FnMut(&str)) -> Result<(), ToolError> {
        if self.flavour == Flavour::Legacy {
            // The legacy program would create a missing table.
            let existing = legacy_tables(self.family)
                .map_err(|source| ToolError::Output { program: self.family.legacy_table_names().to_owned(), source })?;
            if existing.lines().all(|name| table.is_some_and(|table| table != name)) {
                return Ok(());
            }
        }
        let mut tool = Command::new(&self.save);
        tool.arg("-c").args(table.iter().flat_map(|table| ["-t", table]));
        command::stream(&mut tool, |mut output| {
            let (mut bytes, mut begun) = (Vec::new(), String::new());
            while output.read_until(b'\n', &mut bytes)? != 0 {
                begun.push_str(&String::from_utf8_lossy(&bytes));
                bytes.clear();
                if goes_on(&begun) {
                    begun = begun.trim_end_matches('\n').to_owned() + " ";
                } else {
                    line(&begun);
                    begun.clear();
                }
            }
            if !begun.is_empty() {
                line(&begun);
            }
            Ok(())
        })
    }

    /// One table, as printed by `iptables -v -S`.
    ///
    /// The save program of the nf_tables flavour reads all tables to print one.
    ///
    /// # Errors
    /// If the program fails.
    pub fn table(&self, table: &str) -> Result<String, ToolError> {
        let output = command::run(Command::new(&self.iptables).args(["-t", table, "-v", "-S"]), [])?;
        Ok(joined(&String::from_utf8_lossy(&output)))
    }

    /// One chain, as printed by `iptables -v -S`; `None` if the chain does not exist.
    ///
    /// # Errors
    /// If the program cannot be run.
    pub fn chain(&self, table: &str, chain: &str) -> Result<Option<String>, ToolError> {
        let mut tool = Command::new(&self.iptables);
        match command::run(tool.args(["-t", table, "-v", "-S", chain]), []) {
            Ok(output) => Ok(Some(joined(&String::from_utf8_lossy(&output)))),
            Err(ToolError::Failed { status, .. }) if status.code() == Some(1) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Whether a rule goes on behind the line break: a comment may have one between its quotes.
fn goes_on(text: &str) -> bool {
    text.starts_with(['-', '[']) && has_open_quote(text)
}

/// The lines, with a space for each line break in quotes.
fn joined(text: &str) -> String {
    let mut all = String::with_capacity(text.len());
    let mut begun = String::new();
    for line in text.lines() {
        begun.push_str(line);
        let end = if goes_on(&begun) { ' ' } else { '\n' };
        begun.push(end);
        if end == '\n' {
            all.push_str(&std::mem::take(&mut begun));
        }
    }
    all + &begun
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_break_in_quotes_does_not_end_a_rule() {
        let text = "-N A\n-A A -m comment --comment \"one \\\" two\n-A A -j DROP\" -j ACCEPT\n# \"\n-A A -j DROP\n";
        let lines = joined(text);
        let second = "-A A -m comment --comment \"one \\\" two -A A -j DROP\" -j ACCEPT";
        assert_eq!(lines.lines().collect::<Vec<_>>(), ["-N A", second, "# \"", "-A A -j DROP"]);
    }
}
