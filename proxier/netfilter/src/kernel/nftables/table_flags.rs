//! The flags of a table, which decide whether its rules run and who may change them.

use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::decode;
use super::encode::request;
use super::presence::is_absence;
use super::uapi::*;
use crate::IpFamily;
use crate::kernel::netlink::{NFGENMSG_LENGTH, Netlink};
use crate::nft::Table;

/// The flags of a table (`NFT_TABLE_F_*`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableFlags {
    /// `flags dormant`: the kernel runs none of its chains.
    pub is_dormant: bool,
    /// `flags owner`: the port ID of the only netlink socket that may change the table, usually a process ID.
    pub owner: Option<u32>,
}

/// The flags of a table of any program; `None` if there is no such table, as on a kernel without nf_tables.
///
/// # Errors
/// If the kernel does not answer.
pub fn table_flags(family: IpFamily, name: &str) -> io::Result<Option<TableFlags>> {
    let query = request(&Table { family, name: name.into() }, NFT_MSG_GETTABLE, 0);
    let mut found = None;
    let asked = Netlink::open(NETLINK_NETFILTER)?.query(&query, &mut |received| {
        let table = decode::table(received.attributes(NFGENMSG_LENGTH));
        found = Some(TableFlags { is_dormant: table.dormant, owner: table.owner });
        Ok(())
    });
    match asked {
        Ok(()) => Ok(found),
        Err(error) if error.errno().is_some_and(is_absence) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
