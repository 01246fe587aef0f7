//! Removes all state of this mode: the table `kube-proxy` of a family.

use netfilter::IpFamily;
use netfilter::kernel::nftables::{NftError, NftTables};
use netfilter::nft::{Operation, Transaction};

use super::names;

/// Deletes the table if it exists; returns whether it did.
///
/// # Errors
/// If the kernel refuses.
pub fn cleanup(kernel: &mut dyn NftTables, family: IpFamily) -> Result<bool, NftError> {
    let table = names::table(family);
    if !kernel.tables(family)?.contains(&table.name) {
        return Ok(false);
    }
    let mut transaction = Transaction::on(table);
    transaction.push(Operation::DeleteTable);
    kernel.apply(&transaction, None)?;
    Ok(true)
}
