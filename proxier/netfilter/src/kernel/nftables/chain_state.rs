//! Reads the state of chains without listing their rules.

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::encode::request;
use super::uapi::*;
use crate::kernel::netlink::{NFGENMSG_LENGTH, Netlink, NetlinkError};
use crate::nft::Table;

/// The identity and use count of a chain, which the kernel returns at constant cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainState {
    /// The handle; a recreated chain has another one.
    pub handle: u64,
    /// The number of its rules plus the rules and elements that jump to it.
    pub uses: u32,
}

/// The states of up to a hundred chains of one table, in order; `None` for a missing chain.
///
/// The requests are one datagram.
pub(super) fn chain_states(
    socket: &mut Option<Netlink>,
    table: &Table,
    chains: &[&str],
) -> Result<Vec<Option<ChainState>>, NetlinkError> {
    let mut states = vec![None; chains.len()];
    let requests: Vec<_> = chains
        .iter()
        .map(|chain| {
            let mut query = request(table, NFT_MSG_GETCHAIN, 0);
            query.text(NFTA_CHAIN_NAME, chain);
            query
        })
        .collect();
    let mut failure = None;
    let mut netlink = match socket.take() {
        Some(socket) => socket,
        None => Netlink::open(NETLINK_NETFILTER)?,
    };
    let mut found = |received: &crate::kernel::netlink::Received<'_>| {
        let attributes = received.attributes(NFGENMSG_LENGTH);
        let name = attributes.text(NFTA_CHAIN_NAME);
        let handle = attributes.be64(NFTA_CHAIN_HANDLE);
        let uses = attributes.be32(NFTA_CHAIN_USE);
        if let (Some(at), Some(handle), Some(uses)) = (chains.iter().position(|c| Some(*c) == name), handle, uses) {
            states[at] = Some(ChainState { handle, uses });
        }
    };
    netlink.query_all(&requests, &mut found, |_, error| {
        if error.errno() != Some(libc::ENOENT) {
            failure = Some(error);
        }
    })?;
    // After an error the socket may hold answers to these requests, so it is closed.
    failure.map_or(Ok(()), Err)?;
    *socket = Some(netlink);
    Ok(states)
}
