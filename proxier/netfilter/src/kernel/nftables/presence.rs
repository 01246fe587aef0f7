//! Whole tables, of any program.
//!
//! In: a family and a table's name. Out: whether it exists, or a chain of it; it is gone. Must not know: what is in tables.

use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::encode::{NFT_MSG_GETCHAIN, NFT_MSG_GETTABLE, NFTA_CHAIN_NAME, request};
use super::{NftError, NftTables, SystemNftables};
use crate::IpFamily;
use crate::kernel::netlink::{Netlink, Request};
use crate::nft::{Operation, Table, Transaction};

/// Whether a table exists. A kernel without nf_tables has none.
///
/// # Errors
/// If the kernel does not say.
pub fn has_table(family: IpFamily, name: &str) -> io::Result<bool> {
    is_there(&request(&Table { family, name: name.into() }, NFT_MSG_GETTABLE, 0))
}

/// Whether a table with that chain exists.
///
/// # Errors
/// If the kernel does not say.
pub fn has_chain(family: IpFamily, table: &str, chain: &str) -> io::Result<bool> {
    let mut question = request(&Table { family, name: table.into() }, NFT_MSG_GETCHAIN, 0);
    question.text(NFTA_CHAIN_NAME, chain);
    is_there(&question)
}

fn is_there(question: &Request) -> io::Result<bool> {
    match Netlink::open(NETLINK_NETFILTER)?.request(question) {
        Ok(()) => Ok(true),
        Err(error) if error.errno().is_some_and(is_absence) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Deletes a table with all that is in it; whether there was one.
///
/// # Errors
/// If the kernel does not do it.
pub fn delete_table(family: IpFamily, name: &str) -> io::Result<bool> {
    if !has_table(family, name)? {
        return Ok(false);
    }
    let mut transaction = Transaction::on(Table { family, name: name.into() });
    transaction.push(Operation::DeleteTable);
    match SystemNftables::default().apply(&transaction, None) {
        Ok(_) => Ok(true),
        // Somebody was quicker.
        Err(NftError::Refused(refusals)) if refusals.iter().all(|refusal| is_absence(refusal.errno)) => Ok(false),
        Err(NftError::Netlink(error)) => Err(error),
        Err(error) => Err(io::Error::other(error)),
    }
}

/// No such table, or no nf_tables at all.
pub(super) fn is_absence(errno: i32) -> bool {
    matches!(errno, libc::ENOENT | libc::EINVAL | libc::EOPNOTSUPP | libc::EAFNOSUPPORT)
}
