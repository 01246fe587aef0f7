//! Counters of rejected packets to localhost node ports.

use std::collections::BTreeMap;

use netfilter::IpFamily;
use netfilter::kernel::nftables::NftReader;
use netfilter::nft::ruleset::{Scope, TableId};

use super::names::{TABLE, localhost_reject};
use crate::model::Protocol;

/// The packets that the rules of localhost node ports have rejected since they were written, by family and protocol.
///
/// Protocols without such a chain, and chains that cannot be read, are left out.
#[must_use]
pub fn rejected_localhost_packets() -> BTreeMap<(IpFamily, Protocol), u64> {
    let mut counted = BTreeMap::new();
    for family in IpFamily::ALL {
        let table = TableId { scope: Scope::Family(family), name: TABLE.into() };
        let mut reader = NftReader::new(family);
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
            let rules = reader.rules(&table, localhost_reject(protocol)).unwrap_or_default();
            if let Some(counters) = rules.first().and_then(|rule| rule.counters) {
                counted.insert((family, protocol), counters.packets);
            }
        }
    }
    counted
}
