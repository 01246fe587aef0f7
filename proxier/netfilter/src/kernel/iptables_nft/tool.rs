//! The iptables tool that writes nf_tables itself.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::base::{self, BUILTIN};
use super::batch::Batch;
use super::known::KnownChains;
use super::lines::{Lines, declared};
use super::listing::ChainListing;
use super::read::NftRules;
use super::rule::DecodedRule;
use super::tables::{self, Incompatible, Readable};
use super::transaction::{RulePosition, Shape, Writer};
use crate::iptables::{Chain, Rule, Table};
use crate::kernel::iptables::{IptablesTool, RestoreError, TableState, ToolError};
use crate::kernel::netlink::{Fault, NFGENMSG_LENGTH, Netlink, NetlinkError, Received};
use crate::kernel::nftables::uapi::*;
use crate::kernel::nftables::{self, NftError, NftTables, SystemNftables, TableFlags};
use crate::kernel::writer_priority::WriterRole;
use crate::{IpFamily, Restore, SavedTable, nft};

/// The number of chains in one transaction: a few megabytes.
const BATCH: usize = 2000;
/// The largest batch, where the kernel permits it.
const BYTES_MAX: usize = 64 << 20;
/// The number of attempts while other programs change nf_tables.
const TRIES: u32 = 20;
/// The number of attempts that the kernel refuses if nf_tables changed since it was read.
///
/// Programs that write all the time would make all of them fail. Further attempts change rules by their handles, which
/// the kernel never reuses, and rewrite chains that cannot be read; damage is found by the next check for drift.
const CHECKED_TRIES: u32 = 3;
/// The most refused lines that a message shows.
const SHOWN: usize = 3;

/// iptables of the nf_tables flavour, without the programs: the rules of one family over nfnetlink.
///
/// Works in the network namespace of the thread that uses it first. The rules equal those of iptables-nft, and every version
/// from 1.8.7 on, the oldest tested, reads them.
#[derive(Debug)]
pub struct NativeIptables {
    rules: NftRules,
    nf_tables: SystemNftables,
    socket: Option<Netlink>,
    role: WriterRole,
    /// The largest batch in bytes.
    largest_batch: usize,
    /// The chains that were changed rule by rule.
    known: KnownChains,
    /// The chains of tables that are still to be read.
    listing: ChainListing,
}

/// Why a batch was not applied.
enum Failure {
    /// nf_tables changed since it was read.
    Changed,
    /// Lines that were refused, with the kernel's reason.
    Refused(Vec<RefusedLine>),
    /// As `Refused`, but another program may have deleted a rule that was read.
    Stale(Vec<RefusedLine>),
}

/// A line, if one is at fault, and the reason.
type RefusedLine = (Option<usize>, String);

impl From<NftError> for Failure {
    fn from(error: NftError) -> Self {
        match error {
            NftError::Changed | NftError::Interrupted => Self::Changed,
            error => Self::Refused(vec![(None, error.to_string())]),
        }
    }
}

impl From<NetlinkError> for Failure {
    fn from(error: NetlinkError) -> Self {
        NftError::from(error).into()
    }
}

impl NativeIptables {
    /// The tables of a family.
    ///
    /// # Errors
    /// If the kernel cannot hold such rules, or permission is refused. Nothing is changed. Where another process owns
    /// table nat, the kernel refuses the probe whatever it supports: that is left to the first transaction.
    pub fn find(family: IpFamily) -> Result<Self, ToolError> {
        let mut tool = Self::new(family);
        match tool.probe() {
            Err(_) if tool.is_nat_owned() => Ok(tool),
            probed => {
                probed.map_err(|error| kernel(io::Error::other(base::unsupported(family, &error))))?;
                Ok(tool)
            }
        }
    }

    /// Whether another process owns table nat.
    fn is_nat_owned(&self) -> bool {
        let flags = nftables::table_flags(self.rules.family(), Table::Nat.name());
        flags.is_ok_and(|flags| flags.is_some_and(|flags| flags.owner.is_some()))
    }

    /// As [`NativeIptables::find`], without checking the kernel.
    #[must_use]
    pub fn new(family: IpFamily) -> Self {
        Self {
            rules: NftRules::new(family),
            nf_tables: SystemNftables::default(),
            socket: None,
            role: WriterRole::default(),
            largest_batch: BYTES_MAX,
            known: KnownChains::default(),
            listing: ChainListing::default(),
        }
    }

    /// Splits larger batches, as where the kernel does not permit them: without `CAP_NET_ADMIN` in the initial user
    /// namespace, a socket sends at most twice `net.core.wmem_max`.
    #[must_use]
    pub fn with_largest_batch(self, bytes: usize) -> Self {
        Self { largest_batch: bytes, ..self }
    }

    /// Writes in this role. Batches are short, so that background ones are not preempted.
    #[must_use]
    pub fn as_writer(self, role: WriterRole) -> Self {
        Self { role, ..self }
    }

    /// Lets the kernel validate a chain of table nat with a rule, without creating it.
    fn probe(&mut self) -> Result<(), String> {
        let batch = Batch::new(None).map_err(|error| error.to_string())?;
        let mut writer = Writer { rules: &mut self.rules, name: Table::Nat.name(), batch, shape: Shape::Atomic };
        let built = writer
            .table(0)
            .and_then(|()| writer.builtin(Table::Nat, (base::PROBE, "POSTROUTING"), 0))
            .and_then(|()| writer.add_rule(base::PROBE, &base::probe_rule().to_string(), RulePosition::End, 0));
        let batch = writer.batch;
        built.map_err(|error| error.to_string())?;
        match self.send(batch, false) {
            Ok(_) => Ok(()),
            Err(Failure::Changed) => Err("nf_tables changed".to_owned()),
            Err(Failure::Refused(reasons) | Failure::Stale(reasons)) => {
                Err(reasons.into_iter().map(|(_, why)| why).next().unwrap_or_default())
            }
        }
    }

    fn socket(&mut self) -> Result<&mut Netlink, NetlinkError> {
        match self.socket.take() {
            Some(socket) => Ok(self.socket.insert(socket)),
            None => Ok(self.socket.insert(Netlink::open(NETLINK_NETFILTER)?)),
        }
    }

    /// The largest batch for `bytes`, after growing the socket's buffer if permitted.
    fn room(&mut self, bytes: usize) -> Result<usize, NetlinkError> {
        let largest = self.largest_batch;
        Ok(self.socket()?.room(bytes.min(largest))?.min(largest))
    }

    /// Sends a batch; without `end`, the kernel only validates it.
    ///
    /// Returns the handles of new rules that the kernel answered with, by request.
    fn send(&mut self, mut batch: Batch, end: bool) -> Result<HashMap<usize, u64>, Failure> {
        let last = batch.requests.count() - 1;
        if end {
            batch.end()?;
        }
        let requests = std::mem::take(&mut batch.requests);
        let mut handles = HashMap::new();
        let mut each = |request, received: &Received<'_>| {
            let handle = received.attributes(NFGENMSG_LENGTH).be64(NFTA_RULE_HANDLE);
            handles.extend(handle.map(|handle| (request, handle)));
        };
        let faults = self.socket()?.batch(requests, last, &mut each).inspect_err(|_| self.socket = None)?;
        if faults.iter().any(|fault| fault.index == 0 && fault.error.errno() == Some(libc::ERESTART)) {
            return Err(Failure::Changed);
        }
        // Without the table, or the right to change it, everything is refused: no line is at fault.
        let general = |fault: &Fault| batch.creates_table(fault.index) || fault.error.errno() == Some(libc::EPERM);
        let whole = faults.iter().any(general);
        let is_unchecked = batch.uses_handles && batch.generation.is_none();
        let is_stale = is_unchecked && faults.iter().any(|fault| fault.error.errno() == Some(libc::ENOENT));
        let line = |index| if whole { batch.first_line() } else { batch.line(index) };
        let refused: Vec<_> = faults.into_iter().map(|fault| (line(fault.index), fault.error.to_string())).collect();
        match refused.is_empty() {
            true => Ok(handles),
            false if is_stale => Err(Failure::Stale(refused)),
            false => Err(Failure::Refused(refused)),
        }
    }

    /// Sends a batch, and records the chains that it edits.
    fn send_edits(&mut self, mut batch: Batch, table: Table) -> Result<(), Failure> {
        let edits = std::mem::take(&mut batch.edits);
        let handles = self.send(batch, true)?;
        self.known.record(table, edits, &handles);
        Ok(())
    }

    /// Sends a batch in parts that the socket takes.
    fn send_in_parts(&mut self, mut batch: Batch) -> Result<(), Failure> {
        let room = self.room(batch.size())?;
        loop {
            let rest = batch.split_off(room).map_err(|bytes| NftError::TooBig { bytes, room })?;
            self.send(batch, true)?;
            let Some(rest) = rest else { return Ok(()) };
            batch = rest;
        }
    }

    /// The batch for the lines of one table.
    fn build(&mut self, lines: &Lines<'_>, generation: Option<u32>, shape: Shape) -> Result<Batch, Failure> {
        let missing = self.missing_builtin(lines)?;
        let (batch, name) = (Batch::new(generation)?, lines.table.name());
        let mut writer = Writer { rules: &mut self.rules, name, batch, shape };
        for chain in lines.texts[0].lines().filter_map(declared) {
            self.known.forget(lines.table, chain);
        }
        let unexpected = writer.write(lines, &missing, &mut self.known)?;
        let mut batch = writer.batch;
        if let Some(why) = unexpected {
            return Err(Failure::Refused(vec![(None, why)]));
        }
        match std::mem::take(&mut batch.refused) {
            refused if refused.is_empty() => Ok(batch),
            refused => Err(Failure::Refused(refused.into_iter().map(|(line, why)| (Some(line), why)).collect())),
        }
    }

    /// Applies the lines of one table, in one batch if the socket takes it.
    fn apply(&mut self, lines: &Lines<'_>, is_checked: bool) -> Result<(), Failure> {
        self.rules.sets.forget();
        let generation = if is_checked && lines.depend() { Some(self.nf_tables.generation()?) } else { None };
        let batch = self.build(lines, generation, Shape::Atomic)?;
        if batch.size() <= self.room(batch.size())? {
            return self.send_edits(batch, lines.table);
        }
        drop(batch);
        let generation = if is_checked { Some(self.nf_tables.generation()?) } else { None };
        let batch = self.build(lines, generation, Shape::Parts)?;
        self.send_in_parts(batch)
    }

    /// The built-in chains that rules are inserted into and that do not exist.
    fn missing_builtin(&mut self, lines: &Lines<'_>) -> Result<Vec<&'static str>, NftError> {
        let inserts = |name: &&str| {
            let head = format!("-I {name} ");
            lines.texts[1].lines().any(|line| line.starts_with(&head))
        };
        let wanted: Vec<&'static str> = BUILTIN.into_iter().filter(inserts).collect();
        if wanted.is_empty() {
            return Ok(wanted);
        }
        let table = nft::Table { family: self.rules.family(), name: lines.table.name().into() };
        let states = self.nf_tables.chain_states(&table, &wanted)?;
        Ok(wanted.into_iter().zip(states).filter(|(_, state)| state.is_none()).map(|(name, _)| name).collect())
    }

    fn restore_now(&mut self, restore: &Restore) -> Result<(), RestoreError> {
        self.listing.forget();
        let mut first = 1;
        for (table, texts) in restore.texts() {
            let lines = Lines { table, texts, first, edited: restore.edited(table) };
            let mut tries = 0;
            while let Err(failure) = self.apply(&lines, tries < CHECKED_TRIES) {
                tries += 1;
                match failure {
                    Failure::Changed | Failure::Stale(_) if tries < TRIES => {}
                    Failure::Changed => {
                        let message = format!("{}: {}", table.name(), NftError::Interrupted);
                        return Err(RestoreError { refused: false, lines: Vec::new(), message });
                    }
                    Failure::Refused(refused) | Failure::Stale(refused) => {
                        return Err(refusal(restore, table, refused));
                    }
                }
            }
            first += lines.count();
        }
        Ok(())
    }
}

/// The error of a refused transaction, which names the lines and what the kernel said of the first.
fn refusal(restore: &Restore, table: Table, refused: Vec<RefusedLine>) -> RestoreError {
    let mut message = format!("the kernel refused a change of table {}", table.name());
    let mut lines: Vec<usize> = refused.iter().filter_map(|(line, _)| *line).collect();
    lines.sort_unstable();
    lines.dedup();
    for (line, why) in refused.iter().take(SHOWN) {
        let text = line.and_then(|line| Some(format!("line {line}: {}: ", restore.line(line)?))).unwrap_or_default();
        // Writing to a String cannot fail.
        let _ = write!(message, "; {text}{why}");
    }
    if refused.len() > SHOWN {
        let _ = write!(message, "; and {} more", refused.len() - SHOWN);
    }
    // Without a line, the batch could not be sent, or a chain was not as expected.
    RestoreError { refused: !lines.is_empty(), lines, message }
}

/// The error of reading the kernel.
fn kernel(source: io::Error) -> ToolError {
    ToolError::Output { program: "nf_tables".to_owned(), source }
}

fn readable<T>(table: Table, read: Result<Readable<T>, NftError>) -> Result<T, ToolError> {
    match read {
        Ok(Ok(read)) => Ok(read),
        Ok(Err(Incompatible(why))) => {
            let text = format!("table {} is incompatible with iptables, use nft: {why}", table.name());
            Err(kernel(io::Error::other(text)))
        }
        Err(error) => Err(kernel(error.into())),
    }
}

impl IptablesTool for NativeIptables {
    fn save(&mut self, table: Table) -> Result<SavedTable, ToolError> {
        let generation = self.nf_tables.generation().ok();
        readable(table, tables::save(&mut self.rules, &mut self.listing, (table, generation)))
    }

    fn restore(&mut self, restore: &Restore) -> Result<(), RestoreError> {
        self.role.clone().write(|_| Some(self.restore_now(restore)))
    }

    fn has_rule(&mut self, table: Table, builtin: &str, rule: &Rule) -> Result<bool, ToolError> {
        let wanted = rule.to_string();
        let rules = readable(table, self.rules.chain(table.name(), builtin).map(Ok))?;
        let is = |rule: &DecodedRule| matches!(rule, DecodedRule::Known(known) if known.to_string() == wanted);
        Ok(rules.iter().any(|read| is(&read.rule)))
    }

    fn has_chain(&mut self, table: Table, chain: Chain) -> Result<bool, ToolError> {
        let place = nft::Table { family: self.rules.family(), name: table.name().into() };
        let states = self.nf_tables.chain_states(&place, &[chain.as_str()]);
        let states = states.map_err(|error| kernel(error.into()))?;
        Ok(states.iter().all(Option::is_some))
    }

    fn references(&mut self, table: Table, ours: &dyn Fn(&Chain) -> bool) -> Result<HashMap<Chain, String>, ToolError> {
        readable(table, tables::references(&mut self.rules, table, ours).map(Ok))
    }

    fn generation(&mut self) -> Option<u32> {
        self.nf_tables.generation().ok()
    }

    fn table_state(&mut self, table: Table, chains: &[Chain]) -> io::Result<Option<TableState>> {
        let names: Vec<&str> = chains.iter().map(Chain::as_str).collect();
        let table = nft::Table { family: self.rules.family(), name: table.name().into() };
        let states = self.nf_tables.chain_states(&table, &names)?;
        Ok(Some(TableState::Chains(states)))
    }

    fn table_flags(&mut self, table: Table) -> io::Result<Option<TableFlags>> {
        nftables::table_flags(self.rules.family(), table.name())
    }

    fn edits_rules(&self) -> bool {
        true
    }

    fn batch(&self) -> usize {
        BATCH
    }

    fn random_fully(&self) -> bool {
        // MASQUERADE has had it since Linux 3.13, as long as nf_tables exists.
        true
    }
}
