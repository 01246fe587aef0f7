//! Tables of nf_tables, over nfnetlink.
//!
//! In: a family and a table's name. Out: whether it exists; it is gone. Must not know: what is in tables.

use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::netlink::{Netlink, NetlinkError, Request, nfgenmsg, nfnetlink};
use crate::family::IpFamily;

const NFNL_SUBSYS_NFTABLES: u8 = 10;
const NFT_MSG_GETTABLE: u8 = 1;
const NFT_MSG_DELTABLE: u8 = 2;
const NFTA_TABLE_NAME: u16 = 1;

/// Whether a table exists. A kernel without nf_tables has none.
///
/// # Errors
/// If the kernel does not say.
pub fn has_table(family: IpFamily, name: &str) -> io::Result<bool> {
    match Netlink::open(NETLINK_NETFILTER)?.request(&about(NFT_MSG_GETTABLE, family, name)) {
        Ok(()) => Ok(true),
        Err(error) if is_absence(&error) => Ok(false),
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
    let delete = about(NFT_MSG_DELTABLE, family, name);
    match Netlink::open(NETLINK_NETFILTER)?.transaction(NFNL_SUBSYS_NFTABLES, &[delete]) {
        Ok(()) => Ok(true),
        // Somebody was quicker.
        Err(error) if is_absence(&error) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn about(message: u8, family: IpFamily, name: &str) -> Request {
    let mut request = Request::new(nfnetlink(NFNL_SUBSYS_NFTABLES, message), 0, &nfgenmsg(family.nfproto()));
    request.text(NFTA_TABLE_NAME, name);
    request
}

/// No such table, or no nf_tables at all.
fn is_absence(error: &NetlinkError) -> bool {
    matches!(error.errno(), Some(libc::ENOENT | libc::EINVAL | libc::EOPNOTSUPP | libc::EAFNOSUPPORT))
}
