//! Fake iptables programs with the kernel behind them, for one family. Clones share one state.
//!
//! A transaction is applied from its text. Each table changes atomically at its COMMIT; tables before a refused one stay
//! changed. Jump targets must exist, chains must exist to be filled, and must be empty and unreferenced to be deleted.
//! Loops are not detected.

use std::collections::{BTreeMap, HashMap};
use std::fmt::{self, Write};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::iptables::{Chain, Rule, Table};
use crate::kernel::TableSize;
use crate::kernel::iptables::{IptablesTool, RestoreError, TableState, ToolError};
use crate::kernel::nftables::ChainState;
use crate::{Restore, SavedTable, reference};

const NO_CHAIN: &str = "No chain/target/match by that name.";

/// The built-in chains of a table, in the order of `iptables-save`.
fn builtin(table: Table) -> &'static [&'static str] {
    match table {
        Table::Filter => &["INPUT", "FORWARD", "OUTPUT"],
        Table::Nat => &["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"],
        Table::Mangle => &["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"],
    }
}

/// Targets that are not chains.
const TARGETS: [&str; 8] = ["ACCEPT", "DROP", "RETURN", "REJECT", "MARK", "MASQUERADE", "DNAT", "SNAT"];

/// Chains with the text of their rules: options separated by one space, without `-A CHAIN`.
type Chains = BTreeMap<String, Vec<String>>;

#[derive(Debug)]
struct IptablesState {
    tables: BTreeMap<Table, Chains>,
    refused: Option<(String, bool)>,
    failing: Option<FailingTransactions>,
    batch: usize,
    restores: usize,
    saves: usize,
    /// The generation ID of the nf_tables flavour; `None` for the legacy flavour.
    generation: Option<u32>,
    edits_rules: bool,
}

/// Transactions that fail without a change, whatever their lines.
#[derive(Debug)]
struct FailingTransactions {
    left: usize,
    /// Only transactions that contain this text.
    text: String,
    /// The value of [`RestoreError::refused`].
    refused: bool,
}

/// The iptables programs with a fake kernel behind them.
#[derive(Clone, Debug)]
pub struct FakeIptables(Arc<Mutex<IptablesState>>);

impl Default for FakeIptables {
    fn default() -> Self {
        let empty = |table| {
            let chains = builtin(table).iter().map(|chain| ((*chain).to_owned(), Vec::new()));
            (table, chains.collect())
        };
        let tables = Table::ALL.into_iter().map(empty).collect();
        Self(Arc::new(Mutex::new(IptablesState {
            tables,
            refused: None,
            failing: None,
            batch: usize::MAX,
            restores: 0,
            saves: 0,
            generation: Some(1),
            edits_rules: false,
        })))
    }
}

impl FakeIptables {
    fn state(&self) -> MutexGuard<'_, IptablesState> {
        // A poisoned lock means that the test failed already.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the number of chains above which transactions should be split.
    pub fn set_batch(&self, chains: usize) {
        self.state().batch = chains;
    }

    /// Refuses lines that contain this text; `None` for no line.
    ///
    /// Reports the line itself, or like the legacy flavour the COMMIT that follows.
    pub fn refuse(&self, text: Option<&str>, naming_the_line: bool) {
        self.state().refused = text.map(|text| (text.to_owned(), naming_the_line));
    }

    /// Fails the next `count` transactions that contain `text`, naming no line; `refused` says whether as a refusal.
    pub fn fail(&self, count: usize, text: &str, refused: bool) {
        self.state().failing = Some(FailingTransactions { left: count, text: text.to_owned(), refused });
    }

    /// Changes chains rule by rule, as the writer of nf_tables does.
    pub fn edit_rules(&self) {
        self.state().edits_rules = true;
    }

    /// Behaves like the legacy flavour, without a generation ID.
    pub fn be_legacy(&self) {
        self.state().generation = None;
    }

    /// The number of tables read.
    #[must_use]
    pub fn saves(&self) -> usize {
        self.state().saves
    }

    /// The number of transactions applied or refused.
    #[must_use]
    pub fn restores(&self) -> usize {
        self.state().restores
    }

    /// Applies a transaction as `iptables-restore --noflush` does.
    ///
    /// # Errors
    /// The rejected line. Tables committed before it are changed, the others are not.
    pub fn apply(&self, text: &str) -> Result<(), RestoreError> {
        let mut state = self.state();
        state.restores += 1;
        if let Some(failing) = state.failing.as_mut().filter(|failing| failing.left > 0 && text.contains(&failing.text))
        {
            failing.left -= 1;
            let message = "iptables-restore: failed by the test".to_owned();
            return Err(RestoreError { refused: failing.refused, lines: Vec::new(), message });
        }
        let mut open: Option<(Table, Chains)> = None;
        let mut unnamed = false;
        for (index, line) in text.lines().enumerate() {
            let refused = state.refused.as_ref().filter(|(text, _)| line.contains(text.as_str()));
            let result = match refused {
                Some((_, true)) => Err("refused by the test".to_owned()),
                Some((_, false)) => {
                    unnamed = true;
                    Ok(())
                }
                None => state.line(&mut open, line, unnamed),
            };
            result.map_err(|reason| {
                let message = format!("iptables-restore: line {} failed: {reason}", index + 1);
                RestoreError { refused: true, lines: vec![index + 1], message }
            })?;
        }
        match open {
            None => Ok(()),
            Some(_) => {
                Err(RestoreError { refused: true, lines: Vec::new(), message: "COMMIT expected at the end".to_owned() })
            }
        }
    }

    /// The chains of a table with their rules, without `-A CHAIN`.
    #[must_use]
    pub fn chains(&self, table: Table) -> BTreeMap<String, Vec<String>> {
        self.state().tables[&table].clone()
    }

    /// Flushes and deletes all chains of a table, as `iptables -F` and `-X` do.
    pub fn flush(&self, table: Table) {
        let mut state = self.state();
        state.touch();
        if let Some(chains) = state.tables.get_mut(&table) {
            chains.retain(|chain, _| builtin(table).contains(&chain.as_str()));
            chains.values_mut().for_each(Vec::clear);
        }
    }

    /// The table as `iptables-save -t` prints it.
    #[must_use]
    pub fn save_text(&self, table: Table) -> String {
        let state = self.state();
        let chains = &state.tables[&table];
        let own = chains.keys().map(String::as_str).filter(|chain| !builtin(table).contains(chain));
        let names: Vec<&str> = builtin(table).iter().copied().chain(own).collect();
        let mut text = format!("*{}\n", table.name());
        for name in &names {
            let policy = if builtin(table).contains(name) { "ACCEPT" } else { "-" };
            let _ = writeln!(text, ":{name} {policy} [0:0]");
        }
        for (name, rule) in names.iter().flat_map(|name| chains[*name].iter().map(move |rule| (name, rule))) {
            let _ = writeln!(text, "-A {name} {rule}");
        }
        text + "COMMIT\n"
    }
}

/// All tables as `iptables-save` prints them.
impl fmt::Display for FakeIptables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Table::ALL.into_iter().try_for_each(|table| f.write_str(&self.save_text(table)))
    }
}

impl IptablesState {
    /// Records a change by another program.
    fn touch(&mut self) {
        self.generation = self.generation.map(|generation| generation.wrapping_add(1));
    }

    /// Applies one line. `open` is the table being changed; `spoiled` makes its COMMIT fail.
    fn line(&mut self, open: &mut Option<(Table, Chains)>, line: &str, spoiled: bool) -> Result<(), String> {
        if let Some(name) = line.strip_prefix('*') {
            let table = Table::ALL.into_iter().find(|table| table.name() == name);
            let table = table.ok_or_else(|| format!("no table {name}"))?;
            *open = Some((table, self.tables[&table].clone()));
            return Ok(());
        }
        if line.is_empty() || line.starts_with('#') {
            return Ok(());
        }
        if line == "COMMIT" {
            let (table, chains) = open.take().ok_or("COMMIT without a table")?;
            if spoiled {
                return Err("refused by the test".to_owned());
            }
            self.tables.insert(table, chains);
            self.touch();
            return Ok(());
        }
        let (table, chains) = open.as_mut().ok_or("no table yet")?;
        command(*table, chains, line)
    }
}

fn command(table: Table, chains: &mut Chains, line: &str) -> Result<(), String> {
    if let Some(declaration) = line.strip_prefix(':') {
        let name = declaration.split(' ').next().unwrap_or_default();
        if !builtin(table).contains(&name) {
            Chain::parse(name).ok_or_else(|| format!("{name:?} is not a chain name"))?;
            chains.insert(name.to_owned(), Vec::new());
        }
        return Ok(());
    }
    let mut words = line.splitn(3, ' ');
    let (verb, name) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let rule = words.next().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
    if verb == "-X" {
        return delete(table, chains, name);
    }
    if let Some(target) = target(&rule).filter(|target| !TARGETS.contains(target))
        && (!chains.contains_key(target) || builtin(table).contains(&target))
    {
        return Err(format!("Chain '{target}' does not exist"));
    }
    let rules = chains.get_mut(name).ok_or(NO_CHAIN)?;
    match verb {
        "-A" => rules.push(rule),
        "-I" | "-D" if position(&rule).is_some() => {
            let (at, rule) = position(&rule).ok_or("no position")?;
            match verb {
                "-I" if at <= rules.len() => rules.insert(at, rule.to_owned()),
                "-D" if at < rules.len() => _ = rules.remove(at),
                _ => return Err("Index of rule is too big.".to_owned()),
            }
        }
        "-I" => rules.insert(0, rule),
        "-D" => {
            let at = rules.iter().position(|present| *present == rule);
            rules.remove(at.ok_or("Bad rule (does a matching rule exist in that chain?).")?);
        }
        _ => return Err(format!("unknown command {verb:?}")),
    }
    Ok(())
}

fn delete(table: Table, chains: &mut Chains, name: &str) -> Result<(), String> {
    let rules = chains.get(name).filter(|_| !builtin(table).contains(&name)).ok_or(NO_CHAIN)?;
    let referenced = || chains.values().flatten().any(|rule| target(rule) == Some(name));
    if !rules.is_empty() || referenced() {
        return Err(format!("CHAIN_DEL failed (Device or resource busy): chain {name}"));
    }
    chains.remove(name);
    Ok(())
}

/// The index of a rule that a line has the number of, and the rest of the line.
fn position(rule: &str) -> Option<(usize, &str)> {
    let (number, rest) = rule.split_once(' ').unwrap_or((rule, ""));
    Some((number.parse::<usize>().ok()?.checked_sub(1)?, rest))
}

/// The word after `-j`, outside of comments.
fn target(rule: &str) -> Option<&str> {
    let after = rule.rfind(" -j ").map(|at| &rule[at + 4..]).or_else(|| rule.strip_prefix("-j "))?;
    after.split(' ').next().filter(|_| !after.contains('"'))
}

impl IptablesTool for FakeIptables {
    fn save(&mut self, table: Table) -> Result<SavedTable, ToolError> {
        self.state().saves += 1;
        let text = self.save_text(table);
        SavedTable::read(text.as_bytes()).map_err(|source| ToolError::Output { program: "fake".to_owned(), source })
    }

    fn restore(&mut self, restore: &Restore) -> Result<(), RestoreError> {
        for table in Table::ALL {
            for edited in restore.edited(table) {
                let rules = self.chains(table).remove(edited.chain.as_str()).unwrap_or_default();
                let mut content = crate::SavedChain::default();
                rules.iter().for_each(|rule| content.add(rule));
                if content != edited.before {
                    let message = format!("chain {} of table {} was changed", edited.chain, table.name());
                    return Err(RestoreError { refused: false, lines: Vec::new(), message });
                }
            }
        }
        self.apply(&restore.to_string())
    }

    fn has_rule(&mut self, table: Table, builtin: &str, rule: &Rule) -> Result<bool, ToolError> {
        let text = rule.to_string();
        let words = || text.split_whitespace();
        let state = self.state();
        let rules = state.tables[&table].get(builtin).into_iter().flatten();
        Ok(rules.into_iter().any(|present| present.split(' ').eq(words())))
    }

    fn has_chain(&mut self, table: Table, chain: Chain) -> Result<bool, ToolError> {
        Ok(self.state().tables[&table].contains_key(chain.as_str()))
    }

    fn references(&mut self, table: Table, ours: &dyn Fn(&Chain) -> bool) -> Result<HashMap<Chain, String>, ToolError> {
        let text = self.save_text(table);
        let known = text.lines().filter_map(|line| Some((reference(line)?, line)));
        let foreign = known.filter(|((from, to), _)| ours(to) && !Chain::parse(from).is_some_and(|from| ours(&from)));
        let mut found = HashMap::new();
        foreign.for_each(|((_, to), line)| _ = found.entry(to).or_insert_with(|| line.to_owned()));
        Ok(found)
    }

    fn generation(&mut self) -> Option<u32> {
        self.state().generation
    }

    fn table_state(&mut self, table: Table, chains: &[Chain]) -> io::Result<Option<TableState>> {
        let state = self.state();
        let present = &state.tables[&table];
        let u32 = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        if state.generation.is_none() {
            // The kernel counts two entries for each chain and one for the end.
            let entries = u32(present.values().flatten().count() + 2 * present.len() + 1);
            return Ok(Some(TableState::Size(TableSize { entries, bytes: entries.saturating_mul(152) })));
        }
        let state_of = |chain: &Chain| {
            let rules = present.get(chain.as_str())?;
            let jumps = present.values().flatten().filter(|rule| target(rule) == Some(chain.as_str()));
            Some(ChainState { handle: 1, uses: u32(rules.len() + jumps.count()) })
        };
        Ok(Some(TableState::Chains(chains.iter().map(state_of).collect())))
    }

    fn edits_rules(&self) -> bool {
        self.state().edits_rules
    }

    fn batch(&self) -> usize {
        self.state().batch
    }

    fn random_fully(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(fake: &FakeIptables, text: &str) -> (Vec<usize>, String) {
        let before = fake.to_string();
        let error = fake.apply(text).expect_err(text);
        assert_eq!(fake.to_string(), before, "a refused table is untouched");
        (error.lines, error.message)
    }

    #[test]
    fn applied_transaction_reads_back() {
        let fake = FakeIptables::default();
        let text = "*nat\n:A - [0:0]\n:B - [0:0]\n-A A -s 10.0.0.1/32 -m comment --comment \"x -j y\" -j B\n\
                    -I OUTPUT  -j A\nCOMMIT\n*filter\n:C - [0:0]\nCOMMIT\n";
        fake.apply(text).expect("valid");
        let saved = fake.save_text(Table::Nat);
        assert!(saved.contains(":A - [0:0]\n:B - [0:0]\n-A OUTPUT -j A\n-A A -s 10.0.0.1/32"), "{saved}");
        let table = fake.clone().save(Table::Nat).expect("readable");
        assert_eq!((table.chains.len(), table.builtin), (2, vec!["-A OUTPUT -j A".to_owned()]));
        assert!(fake.clone().has_chain(Table::Filter, Chain::new("C")).expect("an answer"));
        fake.apply("*nat\n:A - [0:0]\nCOMMIT\n").expect("valid");
        assert!(fake.chains(Table::Nat)["A"].is_empty(), "declared again is emptied");
        assert_eq!(fake.chains(Table::Nat)["OUTPUT"], ["-j A"], "and the rest stays");
    }

    #[test]
    fn refused_transaction_reports_its_line() {
        let fake = FakeIptables::default();
        for (lines, line) in [
            (":A - [0:0]\n-A A -j MISSING", 3),
            ("-A B -j ACCEPT", 2),
            ("-X B", 2),
            (":B - [0:0]\n-A B -j ACCEPT\n-X B", 4),
            (":A - [0:0]\n:B - [0:0]\n-A A -j B\n-X B", 5),
            (":A - [0:0]\n-D A -j ACCEPT", 3),
            (":A - [0:0]\n-A A -j B\n:B - [0:0]", 3),
            ("-X OUTPUT", 2),
        ] {
            assert_eq!(refused(&fake, &format!("*nat\n{lines}\nCOMMIT\n")).0, [line], "{lines}");
        }
        assert!(refused(&fake, "*nat\n:A - [0:0]\n").1.contains("COMMIT expected"));
    }

    #[test]
    fn tables_commit_separately() {
        let fake = FakeIptables::default();
        let error = fake.apply("*filter\n:F - [0:0]\nCOMMIT\n*nat\n:N - [0:0]\n-X NO\nCOMMIT\n").expect_err("refused");
        assert_eq!(error.lines, [6]);
        assert!(fake.chains(Table::Filter).contains_key("F") && !fake.chains(Table::Nat).contains_key("N"));
    }

    #[test]
    fn configured_lines_are_refused() {
        let fake = FakeIptables::default();
        let text = "*nat\n:A - [0:0]\n-A A -d 10.0.0.9/32 -j DROP\nCOMMIT\n";
        fake.refuse(Some("10.0.0.9"), true);
        assert_eq!(refused(&fake, text).0, [3]);
        fake.refuse(Some("10.0.0.9"), false);
        assert_eq!(refused(&fake, text).0, [4]);
        fake.refuse(None, false);
        fake.apply(text).expect("nothing is refused any more");
        fake.flush(Table::Nat);
        assert_eq!(fake.chains(Table::Nat).len(), 4, "only the kernel's own chains are left");
        assert_eq!(fake.restores(), 3);
    }
}
