//! What the kernel tells of chains without listing their rules.

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::encode::{NFT_MSG_GETCHAIN, NFTA_CHAIN_HANDLE, NFTA_CHAIN_NAME, request};
use super::expression::text;
use crate::kernel::netlink::{Netlink, NetlinkError};
use crate::nft::Table;

const NFTA_CHAIN_USE: u16 = 6;
/// `struct nfgenmsg`
const HEADER: usize = 4;

/// A chain's identity and how much refers to it or is in it. It costs the kernel the same whatever the chain holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainState {
    /// The kernel's number: a chain that was deleted and made again has another one.
    pub handle: u64,
    /// The number of its rules and of the rules and elements that jump to it.
    pub uses: u32,
}

/// The states of chains of one table, in this order; `None` where there is no such chain. At most a hundred, as they are
/// one datagram.
pub(super) fn chain_states(
    socket: &mut Option<Netlink>,
    table: &Table,
    chains: &[&str],
) -> Result<Vec<Option<ChainState>>, NetlinkError> {
    let mut states = vec![None; chains.len()];
    let questions: Vec<_> = chains
        .iter()
        .map(|chain| {
            let mut question = request(table, NFT_MSG_GETCHAIN, 0);
            question.text(NFTA_CHAIN_NAME, chain);
            question
        })
        .collect();
    let mut failure = None;
    let mut asked = match socket.take() {
        Some(socket) => socket,
        None => Netlink::open(NETLINK_NETFILTER)?,
    };
    let mut found = |received: &crate::kernel::netlink::Received<'_>| {
        let attributes = received.attributes(HEADER);
        let name = attributes.find(NFTA_CHAIN_NAME).and_then(text);
        let handle = attributes.find_array(NFTA_CHAIN_HANDLE).map(u64::from_be_bytes);
        let uses = attributes.find_array(NFTA_CHAIN_USE).map(u32::from_be_bytes);
        if let (Some(at), Some(handle), Some(uses)) = (chains.iter().position(|c| Some(*c) == name), handle, uses) {
            states[at] = Some(ChainState { handle, uses });
        }
    };
    asked.query_all(&questions, &mut found, |_, error| {
        if error.errno() != Some(libc::ENOENT) {
            failure = Some(error);
        }
    })?;
    // After a failure the socket may hold answers to questions of before.
    failure.map_or(Ok(()), Err)?;
    *socket = Some(asked);
    Ok(states)
}
