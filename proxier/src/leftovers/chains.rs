//! Deletes many nf_tables chains over netlink, in steps of some milliseconds.
//!
//! iptables-nft-restore reads all chains of a table for any change and takes quadratic time in the chains of a
//! transaction: deleting 77,000 chains exceeds its deadline. The kernel itself flushes or deletes a chain in constant
//! time. All chains are flushed first, so that none refers to another; chains that cannot be deleted then are referred
//! to by foreign rules. Finding these by listing rules would take the kernel quadratic time.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use netfilter::kernel::WriterPriority;
use netfilter::kernel::nftables::{NftError, NftTables, Refusal, SystemNftables, chains};
use netfilter::nft::{Name, Operation, Table, Transaction};

/// Target duration of a step: a sync waits at most that long.
const STEP: Duration = Duration::from_millis(40);

/// Chains in the first step; later steps adapt to the duration of the one before.
///
/// Each commit makes the kernel validate every chain of every table (`nf_tables_commit`), 20 ms for 77,000 chains, so
/// small steps take quadratic time in total.
const FIRST_STEP: usize = 1000;
const STEP_SIZES: (usize, usize) = (1000, 10_000);

/// Flushes and deletes the chains of a table that `stale` accepts.
///
/// Returns the chains that something else refers to; they stay, emptied.
///
/// # Errors
/// If the table cannot be read, or the kernel refuses a deletion for another reason.
pub(super) fn delete(
    table: &Table,
    priority: &WriterPriority,
    stale: &dyn Fn(&str) -> bool,
) -> Result<BTreeSet<Name>, NftError> {
    let (mut names, complete) = chains(table)?;
    names.retain(|name| stale(name));
    let mut deleter = Deleter { table, priority, kernel: SystemNftables::default(), size: FIRST_STEP };
    deleter.apply(&names, Operation::FlushChain)?;
    let in_use = deleter.apply(&names, Operation::DeleteChain)?;
    if complete || !in_use.is_empty() { Ok(in_use) } else { Err(NftError::Interrupted) }
}

struct Deleter<'a> {
    table: &'a Table,
    priority: &'a WriterPriority,
    kernel: SystemNftables,
    size: usize,
}

impl Deleter<'_> {
    /// Applies the operation to each chain, in steps; returns the chains that are referred to.
    fn apply(&mut self, chains: &[Name], operation: fn(Name) -> Operation) -> Result<BTreeSet<Name>, NftError> {
        let (mut rest, mut in_use) = (chains, BTreeSet::new());
        let priority = self.priority;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(self.size.min(rest.len()));
            let (refused, took) = priority.run_background(|_| {
                let begun = Instant::now();
                Some((self.step(now.to_vec(), operation), begun.elapsed()))
            });
            in_use.extend(refused?);
            let per_step = STEP.as_micros() * now.len() as u128 / took.as_micros().max(1);
            let (least, most) = STEP_SIZES;
            self.size = usize::try_from(per_step).unwrap_or(most).clamp(least, most.min(self.size * 2));
            rest = later;
        }
        Ok(in_use)
    }

    /// Applies one batch, retrying without the chains that are referred to or gone already.
    fn step(&mut self, mut chains: Vec<Name>, operation: fn(Name) -> Operation) -> Result<Vec<Name>, NftError> {
        let mut in_use = Vec::new();
        while !chains.is_empty() {
            let mut transaction = Transaction::on(self.table.clone());
            chains.iter().cloned().map(operation).for_each(|operation| transaction.push(operation));
            let refusals = match self.kernel.apply(&transaction, None) {
                Err(NftError::Refused(refusals)) if refusals.iter().all(is_about_a_chain) => refusals,
                result => return result.map(|_| in_use),
            };
            for Refusal { operation, errno, .. } in refusals.iter().rev() {
                let Some(index) = operation.filter(|index| *index < chains.len()) else { continue };
                let chain = chains.remove(index);
                if *errno != libc::ENOENT {
                    in_use.push(chain);
                }
            }
        }
        Ok(in_use)
    }
}

/// Whether a refusal means that the chain does not exist or is referred to.
fn is_about_a_chain(refusal: &Refusal) -> bool {
    refusal.operation.is_some() && matches!(refusal.errno, libc::ENOENT | libc::EBUSY | libc::EMLINK)
}
