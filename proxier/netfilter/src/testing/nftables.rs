//! Fake nf_tables, which return the kernel's errors. Clones share one state.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::IpFamily;
use crate::kernel::nftables::{ChainState, NftError, NftTables, ReadRule, ReadSet, ReadTable, Refusal};
use crate::nft::{Bytes, Chain, Element, Expression, Name, Operation, Rule, Set, Table, Transaction, Value, Verdict};

/// A chain with its rules and their handles.
#[derive(Clone, Debug)]
struct FakeChain {
    chain: Chain,
    rules: Vec<(u64, Rule)>,
}

#[derive(Clone, Debug, Default)]
struct FakeTable {
    comment: Option<Name>,
    owner: Option<u32>,
    chains: BTreeMap<Name, FakeChain>,
    sets: BTreeMap<Name, (Arc<Set>, BTreeMap<Bytes, Element>)>,
    counters: BTreeMap<Name, ()>,
}

#[derive(Debug, Default)]
struct NftablesState {
    tables: BTreeMap<(IpFamily, Name), FakeTable>,
    generation: u32,
    handles: u64,
    refused: Option<(String, i32)>,
    transactions: Vec<Transaction>,
    reads: u32,
    /// The number of transactions before one finds that another program changed nf_tables.
    overtaken: Option<u32>,
}

/// Fake nf_tables, initially without tables.
#[derive(Clone, Debug, Default)]
pub struct FakeNftables(Arc<Mutex<NftablesState>>);

impl FakeNftables {
    fn state(&self) -> MutexGuard<'_, NftablesState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses operations or elements whose text contains this, with an error number; `None` refuses nothing.
    pub fn refuse(&self, text: Option<(&str, i32)>) {
        self.state().refused = text.map(|(text, errno)| (text.to_owned(), errno));
    }

    /// Makes every table owned by the process with this port ID.
    pub fn own(&self, owner: u32) {
        self.state().tables.values_mut().for_each(|table| table.owner = Some(owner));
    }

    /// Simulates one change by another program during the transaction after the next `after` ones.
    pub fn overtake(&self, after: u32) {
        self.state().overtaken = Some(after);
    }

    /// The number of tables read.
    #[must_use]
    pub fn reads(&self) -> u32 {
        self.state().reads
    }

    /// The transactions since the last call, including refused ones.
    pub fn take_transactions(&self) -> Vec<Transaction> {
        std::mem::take(&mut self.state().transactions)
    }

    /// All tables, as `nft list ruleset` prints them.
    #[must_use]
    pub fn text(&self) -> String {
        let state = self.state();
        state
            .tables
            .iter()
            .map(|((family, name), table)| ListedServer { family: *family, name, table }.to_string())
            .collect()
    }
}

struct ListedServer<'a> {
    family: IpFamily,
    name: &'a Name,
    table: &'a FakeTable,
}

impl fmt::Display for ListedServer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table {} {} {{", self.family.nft(), self.name)?;
        self.table.comment.iter().try_for_each(|comment| writeln!(f, "\tcomment \"{comment}\""))?;
        self.table.counters.keys().try_for_each(|name| writeln!(f, "\tcounter {name} {{\n\t}}"))?;
        for (set, elements) in self.table.sets.values() {
            write!(f, "\t{} {} {{\n{set}", set.keyword(), set.name)?;
            if !elements.is_empty() {
                let elements: Vec<String> = elements.values().map(|element| element.of(set).to_string()).collect();
                writeln!(f, "\t\telements = {{ {} }}", elements.join(",\n\t\t\t     "))?;
            }
            writeln!(f, "\t}}")?;
        }
        for (name, FakeChain { chain, rules }) in &self.table.chains {
            writeln!(f, "\tchain {name} {{")?;
            chain.comment.iter().try_for_each(|comment| writeln!(f, "\t\tcomment \"{comment}\""))?;
            chain.base.iter().try_for_each(|base| writeln!(f, "\t\t{base}"))?;
            rules.iter().try_for_each(|(_, rule)| writeln!(f, "\t\t{rule}"))?;
            writeln!(f, "\t}}")?;
        }
        writeln!(f, "}}")
    }
}

impl FakeTable {
    /// Checks that the objects a rule refers to exist and fit.
    fn fits(&self, rule: &Rule) -> Result<(), i32> {
        for expression in rule.expressions() {
            match &expression {
                Expression::Lookup { set, to, verdict, .. } => {
                    let (set, _) = self.sets.get(set).ok_or(libc::ENOENT)?;
                    let as_map = to.is_some() || *verdict;
                    if as_map && (set.value.is_none() || set.is_verdict_map() != *verdict) {
                        return Err(libc::EINVAL);
                    }
                }
                Expression::Dynset { set, .. } => {
                    let (set, _) = self.sets.get(set).ok_or(libc::ENOENT)?;
                    if !set.dynamic {
                        return Err(libc::EOPNOTSUPP);
                    }
                }
                Expression::Verdict(verdict) => self.has_used_endpoints(verdict)?,
                Expression::NamedCounter(name) => self.counters.get(name).copied().ok_or(libc::ENOENT)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn has_used_endpoints(&self, verdict: &Verdict) -> Result<(), i32> {
        match verdict.chain().map(|chain| self.chains.get(chain)) {
            Some(None) => Err(libc::ENOENT),
            // The kernel refuses a jump to a base chain.
            Some(Some(chain)) if chain.chain.base.is_some() => Err(libc::EOPNOTSUPP),
            _ => Ok(()),
        }
    }

    fn expressions(&self) -> impl Iterator<Item = Expression> {
        self.chains.values().flat_map(|chain| chain.rules.iter()).flat_map(|(_, rule)| rule.expressions())
    }

    fn is_referenced(&self, chain: &Name) -> bool {
        let by_rule = |e: Expression| matches!(e, Expression::Verdict(verdict) if verdict.chain() == Some(chain));
        let by_element = |element: &Element| matches!(&element.value, Some(Value::Verdict(verdict)) if verdict.chain() == Some(chain));
        self.expressions().any(by_rule) || self.sets.values().any(|(_, elements)| elements.values().any(by_element))
    }

    fn uses_set(&self, name: &Name) -> bool {
        self.expressions().any(|expression| match expression {
            Expression::Lookup { set, .. } | Expression::Dynset { set, .. } => set == *name,
            _ => false,
        })
    }

    fn add_element(&mut self, set: &Name, element: &Element) -> Result<(), i32> {
        let (definition, elements) = self.sets.get(set).ok_or(libc::ENOENT)?;
        let fits =
            |fields: &[_], bytes: &[u8]| if bytes.len() == Set::length(fields) { Ok(()) } else { Err(libc::EINVAL) };
        fits(&definition.key, &element.key)?;
        match (&definition.value, &element.value) {
            (None, None) => {}
            (Some(fields), Some(Value::Data(bytes))) if !fields.is_empty() => fits(fields, bytes)?,
            (Some(fields), Some(Value::Verdict(verdict))) if fields.is_empty() => self.has_used_endpoints(verdict)?,
            _ => return Err(libc::EINVAL),
        }
        if elements.get(&element.key).is_some_and(|known| known.value != element.value) {
            return Err(libc::EEXIST);
        }
        let (_, elements) = self.sets.get_mut(set).ok_or(libc::ENOENT)?;
        elements.entry(element.key.clone()).or_insert_with(|| element.clone());
        Ok(())
    }

    fn apply(&mut self, operation: &Operation, handles: &mut u64) -> Result<(), i32> {
        match operation {
            Operation::AddTable { .. } | Operation::DeleteTable => {}
            Operation::AddChain(chain) => match self.chains.get(&chain.name) {
                Some(known) if known.chain.base != chain.base => return Err(libc::EEXIST),
                Some(_) => {}
                None => {
                    let new = FakeChain { chain: chain.clone(), rules: Vec::new() };
                    self.chains.insert(chain.name.clone(), new);
                }
            },
            Operation::DeleteChain(name) => {
                // The rules go first, and what they refer to is free for the rest of a batch that is refused.
                self.chains.get_mut(name).ok_or(libc::ENOENT)?.rules.clear();
                if self.is_referenced(name) {
                    return Err(libc::EBUSY);
                }
                self.chains.remove(name);
            }
            Operation::FlushChain(name) => self.chains.get_mut(name).ok_or(libc::ENOENT)?.rules.clear(),
            Operation::AddRule { chain, rule } => {
                self.chains.get(chain).ok_or(libc::ENOENT)?;
                self.fits(rule)?;
                *handles += 1;
                let chain = self.chains.get_mut(chain).ok_or(libc::ENOENT)?;
                chain.rules.push((*handles, rule.clone()));
            }
            Operation::AddSet(set) => match self.sets.get(&set.name) {
                Some((known, _)) if ReadSet::of(known) != ReadSet::of(set) => return Err(libc::EEXIST),
                Some(_) => {}
                None => _ = self.sets.insert(set.name.clone(), (set.clone(), BTreeMap::new())),
            },
            Operation::DeleteSet(set) => {
                self.sets.get(&set.name).ok_or(libc::ENOENT)?;
                if self.uses_set(&set.name) {
                    return Err(libc::EBUSY);
                }
                self.sets.remove(&set.name);
            }
            Operation::FlushSet(set) => self.sets.get_mut(&set.name).ok_or(libc::ENOENT)?.1.clear(),
            Operation::AddElements(set, elements) => {
                elements.iter().try_for_each(|element| self.add_element(&set.name, element))?;
            }
            Operation::DeleteElements(set, elements) => {
                let (_, present) = self.sets.get_mut(&set.name).ok_or(libc::ENOENT)?;
                elements.iter().try_for_each(|e| present.remove(&e.key).map(drop).ok_or(libc::ENOENT))?;
            }
            Operation::AddCounter(name) => _ = self.counters.insert(name.clone(), ()),
            Operation::DeleteCounter(name) => {
                self.counters.get(name).ok_or(libc::ENOENT)?;
                if self.expressions().any(|e| e == Expression::NamedCounter(name.clone())) {
                    return Err(libc::EBUSY);
                }
                self.counters.remove(name);
            }
        }
        Ok(())
    }
}

impl NftablesState {
    /// Applies operations atomically, or returns all errors.
    fn part(&mut self, table: &Table, start: usize, operations: &[Operation], keep: bool) -> Result<(), NftError> {
        let key = (table.family, table.name.clone());
        let mut now = self.tables.get(&key).cloned();
        let mut handles = self.handles;
        let mut refusals = Vec::new();
        for (index, operation) in operations.iter().enumerate() {
            let result = match (operation, self.forbidden(table, operation), &mut now) {
                (_, Some((object, errno)), _) => Err((object, errno)),
                (Operation::AddTable { comment }, None, None) => {
                    now = Some(FakeTable { comment: comment.clone(), ..FakeTable::default() });
                    Ok(())
                }
                (_, None, None) => Err((operation.of(table).to_string(), libc::ENOENT)),
                (Operation::DeleteTable, None, Some(_)) => {
                    now = None;
                    Ok(())
                }
                (_, None, Some(now)) => {
                    now.apply(operation, &mut handles).map_err(|errno| (operation.of(table).to_string(), errno))
                }
            };
            if let Err((object, errno)) = result {
                refusals.push(Refusal { operation: Some(start + index), object, errno, words: String::new() });
            }
        }
        if !refusals.is_empty() {
            return Err(NftError::Refused(refusals));
        }
        if keep {
            self.generation += 1;
            self.handles = handles;
            match now {
                Some(now) => _ = self.tables.insert(key, now),
                None => _ = self.tables.remove(&key),
            }
        }
        Ok(())
    }

    fn forbidden(&self, table: &Table, operation: &Operation) -> Option<(String, i32)> {
        let (text, errno) = self.refused.as_ref()?;
        let object = match operation {
            Operation::AddElements(set, elements) => {
                let one = |e: &Element| Operation::AddElements(set.clone(), vec![e.clone()]).of(table).to_string();
                elements.iter().map(one).find(|object| object.contains(text))?
            }
            _ => Some(operation.of(table).to_string()).filter(|object| object.contains(text))?,
        };
        Some((object, *errno))
    }
}

impl NftTables for FakeNftables {
    fn chain_states(&mut self, table: &Table, chains: &[&str]) -> Result<Vec<Option<ChainState>>, NftError> {
        let state = self.state();
        let table = state.tables.get(&(table.family, table.name.clone()));
        let of = |chain: &&str| {
            let chain = table?.chains.get(&Name::from(*chain))?;
            Some(ChainState { handle: 1, uses: u32::try_from(chain.rules.len()).unwrap_or(u32::MAX) })
        };
        Ok(chains.iter().map(of).collect())
    }

    fn generation(&mut self) -> Result<u32, NftError> {
        Ok(self.state().generation)
    }

    fn tables(&mut self, family: IpFamily) -> Result<Vec<Name>, NftError> {
        Ok(self.state().tables.keys().filter(|(of, _)| *of == family).map(|(_, name)| name.clone()).collect())
    }

    fn table(&mut self, table: &Table) -> Result<Option<ReadTable>, NftError> {
        let mut state = self.state();
        state.reads += 1;
        let Some(found) = state.tables.get(&(table.family, table.name.clone())) else { return Ok(None) };
        let read = |(handle, rule): &(u64, Rule)| ReadRule {
            handle: *handle,
            expressions: rule.expressions(),
            comment: rule.comment.clone(),
        };
        Ok(Some(ReadTable {
            comment: found.comment.clone(),
            dormant: false,
            owner: found.owner,
            others: found.counters.len(),
            chains: found
                .chains
                .iter()
                .map(|(name, FakeChain { chain, rules })| {
                    (name.clone(), (chain.clone(), rules.iter().map(read).collect()))
                })
                .collect(),
            sets: found.sets.iter().map(|(name, (set, _))| (name.clone(), ReadSet::of(set))).collect(),
            counts: found.sets.iter().map(|(name, (_, elements))| (name.clone(), elements.len())).collect(),
        }))
    }

    fn elements(&mut self, table: &Table, set: &Set, each: &mut dyn FnMut(Element)) -> Result<(), NftError> {
        let state = self.state();
        let found = state.tables.get(&(table.family, table.name.clone())).and_then(|table| table.sets.get(&set.name));
        let (_, elements) = found.ok_or_else(|| NftError::Netlink(std::io::Error::from_raw_os_error(libc::ENOENT)))?;
        elements.values().cloned().for_each(each);
        Ok(())
    }

    fn lookup(
        &mut self,
        table: &Table,
        set: &Set,
        lists: &mut dyn Iterator<Item = Vec<Bytes>>,
        each: &mut dyn FnMut(Element),
    ) -> Result<(), NftError> {
        let mut present = BTreeMap::new();
        self.elements(table, set, &mut |element| _ = present.insert(element.key.clone(), element))?;
        lists
            .flat_map(|list| list.into_iter().map_while(|key| present.get(&key).cloned()).collect::<Vec<_>>())
            .for_each(each);
        Ok(())
    }

    fn apply(&mut self, transaction: &Transaction, generation: Option<u32>) -> Result<u32, NftError> {
        let mut state = self.state();
        match &mut state.overtaken {
            Some(0) => {
                state.overtaken = None;
                state.generation += 1;
            }
            Some(left) => *left -= 1,
            None => {}
        }
        state.transactions.push(transaction.clone());
        if generation.is_some_and(|generation| generation != state.generation) {
            return Err(NftError::Changed);
        }
        // The kernel side also sends all parts as one batch where possible.
        state.part(&transaction.table, 0, transaction.operations(), true).map(|()| 1)
    }

    fn check(&mut self, transaction: &Transaction) -> Result<(), NftError> {
        self.state().part(&transaction.table, 0, transaction.operations(), false)
    }
}
