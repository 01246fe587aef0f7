//! Lists the user-defined chains of all tables at once.
//!
//! The kernel lists the chains of all tables of a family, and begins at the first chain again for each 32 KiB: 0.25 s
//! for 110,000 chains. So one listing serves all tables that are read in the same generation.

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::read::{TRIES, ended};
use crate::IpFamily;
use crate::iptables::{Chain, Table};
use crate::kernel::netlink::{Attributes, Dump, NFGENMSG_LENGTH, Netlink, Request, nfgenmsg, nfnetlink};
use crate::kernel::nftables::NftError;
use crate::kernel::nftables::uapi::*;

/// The user-defined chains by table.
type ChainsByTable = [Option<Vec<Chain>>; Table::ALL.len()];

/// The chains of the tables that were not read since the last listing.
#[derive(Debug, Default)]
pub(super) struct ChainListing {
    /// The generation that nf_tables had before the listing.
    generation: Option<u32>,
    unread: ChainsByTable,
}

/// The chains of a table as listed, and whether none came or went meanwhile.
pub(super) struct ListedChains {
    pub chains: Vec<Chain>,
    pub is_whole: bool,
}

impl ChainListing {
    /// The user-defined chains of a table. A table that does not exist has none.
    ///
    /// Lists them unless nf_tables is still at the `generation` of the last listing, which gives each table once.
    pub fn take(&mut self, family: IpFamily, table: Table, generation: Option<u32>) -> Result<ListedChains, NftError> {
        if generation.is_some()
            && generation == self.generation
            && let Some(chains) = self.unread[table as usize].take()
        {
            return Ok(ListedChains { chains, is_whole: true });
        }
        self.forget();
        let (mut listed, end) = list(family)?;
        let chains = listed[table as usize].take().unwrap_or_default();
        let is_whole = end == Dump::Complete;
        if is_whole && generation.is_some() {
            *self = Self { generation, unread: listed };
        }
        Ok(ListedChains { chains, is_whole })
    }

    /// Forgets the listing, which takes 3 MB for 110,000 chains.
    pub fn forget(&mut self) {
        *self = Self::default();
    }
}

/// Lists the chains of a family. If nf_tables changes during each attempt, chains may be missing.
fn list(family: IpFamily) -> Result<(ChainsByTable, Dump), NftError> {
    let kind = nfnetlink(NFNL_SUBSYS_NFTABLES, NFT_MSG_GETCHAIN);
    let request = Request::new(kind, 0, &nfgenmsg(family.nfproto()));
    let mut listed = empty();
    for _ in 0..TRIES {
        listed = empty();
        // A socket of its own for each attempt: after an interrupted dump, the kernel may still be dumping.
        let end = Netlink::open(NETLINK_NETFILTER)?.dump_once(&request, &mut |received| {
            collect(received.attributes(NFGENMSG_LENGTH), &mut listed);
            Ok(())
        });
        if ended(end)? == Dump::Complete {
            return Ok((listed, Dump::Complete));
        }
    }
    Ok((listed, Dump::Interrupted))
}

fn empty() -> ChainsByTable {
    Table::ALL.map(|_| Some(Vec::new()))
}

fn collect(chain: Attributes<'_>, listed: &mut ChainsByTable) {
    let of = chain.text(NFTA_CHAIN_TABLE);
    let Some(table) = Table::ALL.into_iter().find(|table| Some(table.name()) == of) else { return };
    if chain.find(NFTA_CHAIN_HOOK).is_none()
        && let Some(chains) = &mut listed[table as usize]
    {
        chains.extend(chain.text(NFTA_CHAIN_NAME).and_then(Chain::parse));
    }
}
