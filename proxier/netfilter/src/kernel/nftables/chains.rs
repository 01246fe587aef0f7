//! Lists the chains of a table by name.

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::encode::*;
use super::uapi::*;
use super::{NftError, decode, presence};
use crate::kernel::netlink::{Dump, NFGENMSG_LENGTH, Netlink, NetlinkError};
use crate::nft::{Name, Table};

/// The sorted names of a table's chains, and whether the list is complete.
///
/// A table that does not exist has no chains. The list may be incomplete if nf_tables changed during each attempt.
///
/// # Errors
/// If the chains cannot be listed.
pub fn chains(table: &Table) -> Result<(Vec<Name>, bool), NftError> {
    let mut names = Vec::new();
    // The kernel lists the chains of all tables of the family.
    let request = request(table, NFT_MSG_GETCHAIN, 0);
    let dump = Netlink::open(NETLINK_NETFILTER)?.dump(&request, &mut |received| {
        let attributes = received.attributes(NFGENMSG_LENGTH);
        if decode::is_of(attributes, &table.name) {
            names.extend(decode::name(attributes, NFTA_CHAIN_NAME));
        }
        Ok(())
    });
    names.sort_unstable();
    names.dedup();
    Ok((names, end(dump)? == Dump::Complete))
}

/// A missing table or a kernel without nf_tables counts as an empty list.
fn end(dump: Result<Dump, NetlinkError>) -> Result<Dump, NftError> {
    match dump {
        Err(error) if error.errno().is_some_and(presence::is_absence) => Ok(Dump::Complete),
        dump => Ok(dump?),
    }
}
