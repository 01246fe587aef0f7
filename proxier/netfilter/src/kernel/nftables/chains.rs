//! The chains of any table, by name.
//!
//! In: a table. Out: its chains' names. Must not know: what is in them, or whose they are.

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::encode::*;
use super::{NftError, decode, presence};
use crate::kernel::netlink::{Dump, Netlink, NetlinkError};
use crate::nft::{Name, Table};

/// `struct nfgenmsg`
const HEADER: usize = 4;

/// The names of a table's chains, in order; none if there is no such table. The flag: none can be missing, which it can
/// when nf_tables changes at each try to list them.
///
/// # Errors
/// If they cannot be listed.
pub fn chains(table: &Table) -> Result<(Vec<Name>, bool), NftError> {
    let mut names = Vec::new();
    // The kernel lists the chains of all tables of the family.
    let request = request(table, NFT_MSG_GETCHAIN, 0);
    let dump = Netlink::open(NETLINK_NETFILTER)?.dump(&request, &mut |received| {
        let attributes = received.attributes(HEADER);
        if decode::is_of(attributes, &table.name) {
            names.extend(decode::name(attributes, NFTA_CHAIN_NAME));
        }
        Ok(())
    });
    names.sort_unstable();
    names.dedup();
    Ok((names, end(dump)? == Dump::Complete))
}

/// A table or kernel part that does not exist has nothing to list.
fn end(dump: Result<Dump, NetlinkError>) -> Result<Dump, NftError> {
    match dump {
        Err(error) if error.errno().is_some_and(presence::is_absence) => Ok(Dump::Complete),
        dump => Ok(dump?),
    }
}
