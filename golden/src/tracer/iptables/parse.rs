//! In: the text `iptables-save` prints or `iptables-restore --noflush` reads. Out: a `Ruleset`, or the line that is wrong.
//! Must not know what a rule's arguments mean (`args` does), nor how rules are walked.

use std::collections::BTreeMap;
use std::fmt;

use super::rules::{Chain, Family, Policy, Rule, Ruleset, Table, Target};
use super::{args, words};

/// A line that iptables, or this tracer, does not take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// Its number, counted from 1.
    pub line: usize,
    /// The line itself.
    pub text: String,
    /// What is wrong with it.
    pub problem: String,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}: {}", self.line, self.problem, self.text)
    }
}

impl std::error::Error for ParseError {}

fn builtin_chains(table: &str) -> Option<&'static [&'static str]> {
    match table {
        "filter" | "security" => Some(&["INPUT", "FORWARD", "OUTPUT"]),
        "nat" => Some(&["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"]),
        "mangle" => Some(&["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"]),
        "raw" => Some(&["PREROUTING", "OUTPUT"]),
        _ => None,
    }
}

/// Whether packets are walked through this hook; a rule in any other would be silently ignored, so it is refused.
fn is_walked(table: &str, chain: &str) -> bool {
    table == "filter" || table == "nat" && chain != "INPUT"
}

impl Ruleset {
    /// Reads the text into an empty kernel.
    ///
    /// # Errors
    /// Names the first line that has a match, target or option the tracer does not know, or that iptables would refuse.
    pub fn parse(family: Family, text: &str) -> Result<Self, ParseError> {
        let mut ruleset = Self { family, tables: BTreeMap::new() };
        ruleset.apply(text)?;
        Ok(ruleset)
    }

    /// Reads the text on top of what is there, as `iptables-restore --noflush` does: a declared chain starts empty, a
    /// chain that is not named stays as it is.
    ///
    /// # Errors
    /// As `parse`.
    pub fn apply(&mut self, text: &str) -> Result<(), ParseError> {
        let mut reader = Reader { family: self.family, table: None };
        for (index, raw) in text.lines().enumerate() {
            let line = raw.trim();
            let problem = |problem| ParseError { line: index + 1, text: line.to_owned(), problem };
            reader.line(&mut self.tables, index + 1, line).map_err(problem)?;
        }
        if let Some(table) = reader.table {
            let problem = format!("table {table} has no COMMIT");
            return Err(ParseError { line: text.lines().count(), text: String::new(), problem });
        }
        self.check_jumps()
    }

    fn check_jumps(&self) -> Result<(), ParseError> {
        for table in self.tables.values() {
            for rule in table.values().flat_map(|chain| &chain.rules) {
                let Some(Target::Jump(to)) = &rule.target else { continue };
                if table.get(to).is_none_or(|chain| chain.policy.is_some()) {
                    let problem = format!("no chain and no known target {to}");
                    return Err(ParseError { line: rule.line, text: rule.text.clone(), problem });
                }
            }
        }
        Ok(())
    }
}

struct Reader {
    family: Family,
    table: Option<String>,
}

impl Reader {
    fn line(&mut self, tables: &mut BTreeMap<String, Table>, number: usize, line: &str) -> Result<(), String> {
        if line.is_empty() || line.starts_with('#') {
            return Ok(());
        }
        if let Some(name) = line.strip_prefix('*') {
            return self.begin(tables, name);
        }
        let name = self.table.clone().ok_or("a line outside of any table")?;
        let table = tables.get_mut(&name).ok_or("a line outside of any table")?;
        if line == "COMMIT" {
            self.table = None;
            return Ok(());
        }
        if let Some(declaration) = line.strip_prefix(':') {
            return declare(table, declaration);
        }
        self.command(&name, table, number, line)
    }

    fn begin(&mut self, tables: &mut BTreeMap<String, Table>, name: &str) -> Result<(), String> {
        if let Some(open) = &self.table {
            return Err(format!("table {open} has no COMMIT"));
        }
        let builtin = builtin_chains(name).ok_or_else(|| format!("unknown table {name}"))?;
        let table = tables.entry(name.to_owned()).or_default();
        for chain in builtin {
            table.entry((*chain).to_owned()).or_insert_with(|| Chain { policy: Some(Policy::Accept), rules: vec![] });
        }
        self.table = Some(name.to_owned());
        Ok(())
    }

    fn command(&self, table: &str, chains: &mut Table, number: usize, line: &str) -> Result<(), String> {
        let mut words = words::words(line)?;
        if words.len() < 2 {
            return Err("unknown line".to_owned());
        }
        let (verb, name) = (words.remove(0), words.remove(0));
        let chain = chains.get_mut(&name).ok_or_else(|| format!("no chain {name}"))?;
        if verb == "-X" && words.is_empty() {
            if chain.policy.is_some() || !chain.rules.is_empty() {
                return Err(format!("chain {name} is built in or not empty"));
            }
            chains.remove(&name);
            return Ok(());
        }
        if verb == "-F" && words.is_empty() {
            chain.rules.clear();
            return Ok(());
        }
        let mut position = chain.rules.len();
        if verb == "-I" {
            let given = words.first().and_then(|word| word.parse::<usize>().ok());
            position = given.map_or(0, |n| n.saturating_sub(1));
            words.drain(..usize::from(given.is_some()));
        } else if verb != "-A" {
            return Err(format!("unknown command {verb}"));
        }
        if chain.policy.is_some() && !is_walked(table, &name) {
            return Err(format!("the tracer does not walk {table} {name}"));
        }
        let (conditions, target) = args::rule(self.family, words)?;
        if position > chain.rules.len() {
            return Err(format!("chain {name} has no position {}", position + 1));
        }
        chain.rules.insert(position, Rule { line: number, text: line.to_owned(), conditions, target });
        Ok(())
    }
}

/// `:NAME POLICY [packets:bytes]`. A user's chain starts empty; of a built-in one only the policy changes.
fn declare(table: &mut Table, declaration: &str) -> Result<(), String> {
    let mut words = declaration.split_whitespace();
    let (Some(name), Some(policy)) = (words.next(), words.next()) else {
        return Err("a chain's declaration needs a name and a policy".to_owned());
    };
    let builtin = table.get(name).is_some_and(|chain| chain.policy.is_some());
    let policy = match policy {
        "-" if builtin => return Ok(()),
        "-" => None,
        "ACCEPT" if builtin => Some(Policy::Accept),
        "DROP" if builtin => Some(Policy::Drop),
        other => return Err(format!("policy {other} of chain {name}")),
    };
    let chain = table.entry(name.to_owned()).or_default();
    chain.policy = policy;
    if !builtin {
        chain.rules.clear();
    }
    Ok(())
}
