//! Checks for tables and chains of any program, and deletes tables.

use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::encode::request;
use super::uapi::*;
use super::{NftError, NftTables, SystemNftables};
use crate::IpFamily;
use crate::kernel::netlink::{Netlink, Request, nfgenmsg, nfnetlink};
use crate::nft::{Operation, Table, Transaction};

/// Whether a table exists; `false` on a kernel without nf_tables.
///
/// # Errors
/// If the kernel does not answer.
pub fn has_table(family: IpFamily, name: &str) -> io::Result<bool> {
    exists(&request(&Table { family, name: name.into() }, NFT_MSG_GETTABLE, 0))
}

/// Whether any table of any family exists; `false` on a kernel without nf_tables.
///
/// # Errors
/// If the kernel does not answer.
pub fn has_any_table() -> io::Result<bool> {
    let query = Request::new(nfnetlink(NFNL_SUBSYS_NFTABLES, NFT_MSG_GETTABLE), 0, &nfgenmsg(0));
    let mut found = false;
    let listed = Netlink::open(NETLINK_NETFILTER)?.dump_once(&query, &mut |_| {
        found = true;
        Ok(())
    });
    match listed {
        Ok(_) => Ok(found),
        Err(error) if error.errno().is_some_and(is_absence) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Whether a table and a chain in it exist.
///
/// # Errors
/// If the kernel does not answer.
pub fn has_chain(family: IpFamily, table: &str, chain: &str) -> io::Result<bool> {
    let mut query = request(&Table { family, name: table.into() }, NFT_MSG_GETCHAIN, 0);
    query.text(NFTA_CHAIN_NAME, chain);
    exists(&query)
}

fn exists(query: &Request) -> io::Result<bool> {
    match Netlink::open(NETLINK_NETFILTER)?.request(query) {
        Ok(()) => Ok(true),
        Err(error) if error.errno().is_some_and(is_absence) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Deletes a table with its content; returns whether it existed.
///
/// # Errors
/// If the kernel refuses.
pub fn delete_table(family: IpFamily, name: &str) -> io::Result<bool> {
    if !has_table(family, name)? {
        return Ok(false);
    }
    let mut transaction = Transaction::on(Table { family, name: name.into() });
    transaction.push(Operation::DeleteTable);
    match SystemNftables::default().apply(&transaction, None) {
        Ok(_) => Ok(true),
        // Another program deleted it first.
        Err(NftError::Refused(refusals)) if refusals.iter().all(|refusal| is_absence(refusal.errno)) => Ok(false),
        Err(NftError::Netlink(error)) => Err(error),
        Err(error) => Err(error.into()),
    }
}

/// Whether the error means that the table, or nf_tables, does not exist.
pub(super) fn is_absence(errno: i32) -> bool {
    matches!(errno, libc::ENOENT | libc::EINVAL | libc::EOPNOTSUPP | libc::EAFNOSUPPORT)
}
