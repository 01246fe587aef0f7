//! Maglev tables: which endpoint serves which hash, the same on every node.
//!
//! After Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer" (NSDI 2016), 3.4. A table has a prime
//! number of slots. Each endpoint has a permutation of them, given by an offset and a skip that are hashes of its address and
//! port; in turns, each endpoint takes the next slot of its permutation that is free. So endpoints have equally many
//! slots, give or take one, and when one of them goes, few slots of the others change hands.
//!
//! Nothing but the set of endpoints decides: nodes with the same endpoints have the same table, whatever happened before.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use netfilter::IpFamily;
use netfilter::nft::HashedClient;
use netfilter::nft::jhash::{jhash, scaled};
use sha2::{Digest, Sha256};

use crate::model::EndpointHash;

/// The slots of a table, a prime.
///
/// With 100 slots or more for each endpoint, a removed endpoint moves less than 2 % of the flows of the others; with 20 or more,
/// each endpoint has its even share within 5 %.
pub const SLOTS: u32 = 16_381;

/// The seed of the hash of clients, the same on all nodes.
pub const SEED: u32 = 0x6d61_676c;

/// A Maglev table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MaglevTable {
    /// The endpoints, sorted.
    endpoints: Vec<SocketAddr>,
    /// The index of each slot's endpoint.
    slots: Vec<u16>,
}

/// The permutation of one endpoint: `offset + n * skip`, modulo the number of slots.
struct Permutation {
    next: u32,
    skip: u32,
}

impl Permutation {
    fn of(endpoint: &SocketAddr, slots: u32) -> Self {
        let address = match endpoint.ip() {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        let hash = Sha256::new().chain_update(address).chain_update(endpoint.port().to_be_bytes()).finalize();
        let number = |at: usize, modulus: u32| {
            let wide = hash[at..at + 8].iter().fold(0, |number: u64, byte| number << 8 | u64::from(*byte));
            u32::try_from(wide % u64::from(modulus)).unwrap_or_default()
        };
        Self { next: number(0, slots), skip: number(8, slots - 1) + 1 }
    }

    /// Takes the next slot of the permutation.
    fn advance(&mut self, slots: u32) -> u32 {
        let slot = self.next;
        self.next = (self.next + self.skip) % slots;
        slot
    }
}

impl MaglevTable {
    /// The table of these endpoints; their order and duplicates do not matter.
    ///
    /// Of more than [`SLOTS`] endpoints, the last ones by address have no slot.
    #[must_use]
    pub fn of(endpoints: impl IntoIterator<Item = SocketAddr>) -> Self {
        Self::with_slots(endpoints, SLOTS)
    }

    fn with_slots(endpoints: impl IntoIterator<Item = SocketAddr>, slots: u32) -> Self {
        let endpoints: BTreeSet<SocketAddr> = endpoints.into_iter().collect();
        let endpoints: Vec<SocketAddr> = endpoints.into_iter().collect();
        let permutations = endpoints.iter().map(|endpoint| Permutation::of(endpoint, slots)).collect();
        Self { slots: fill(permutations, slots), endpoints }
    }

    /// The endpoint of each slot, in the order of the slots.
    pub fn iter(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.slots.iter().map(|index| self.endpoints[usize::from(*index)])
    }

    /// The endpoint that the rules of nftables mode choose for a client; `None` without endpoints.
    #[must_use]
    pub fn endpoint_of(&self, client: SocketAddr, hash: EndpointHash) -> Option<SocketAddr> {
        let of = hashed(IpFamily::of(&client.ip()), hash);
        let slots = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
        let slot = scaled(jhash(&of.bytes(client), SEED), slots, 0);
        self.slots.get(slot as usize).map(|index| self.endpoints[usize::from(*index)])
    }
}

/// Lets each endpoint in turn take its next free slot; returns the index of each slot's endpoint.
fn fill(permutations: Vec<Permutation>, slots: u32) -> Vec<u16> {
    let mut permutations: Vec<(u16, Permutation)> = (0_u16..).zip(permutations).collect();
    let mut table: Vec<Option<u16>> = vec![None; slots as usize];
    let mut free = table.len();
    'turns: while free > 0 && !permutations.is_empty() {
        for (index, permutation) in &mut permutations {
            // As the skip and the number of slots have no common divisor, this meets every slot.
            let slot = loop {
                let slot = permutation.advance(slots) as usize;
                if table[slot].is_none() {
                    break slot;
                }
            };
            table[slot] = Some(*index);
            free -= 1;
            if free == 0 {
                break 'turns;
            }
        }
    }
    table.into_iter().flatten().collect()
}

/// The fields of a packet that the choice is hashed from.
///
/// Not its destination, which differs between nodes and between the addresses of a Service.
#[must_use]
pub fn hashed(family: IpFamily, hash: EndpointHash) -> HashedClient {
    match hash {
        EndpointHash::Client => HashedClient::Address(family),
        EndpointHash::Flow => HashedClient::AddressAndPort(family),
    }
}

#[cfg(test)]
mod tests;
