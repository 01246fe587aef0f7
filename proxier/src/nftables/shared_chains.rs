//! The chains that Service ports share, and their names.

use std::fmt;
use std::ops::RangeInclusive;

use netfilter::nft::{Chain, ChainType, Hook, Name};

use super::names::{Policy, SetId, VipOrNodePort};
use crate::model::EndpointHash;

/// The priority of source ranges: just before the standard one of destination NAT.
const BEFORE_DSTNAT: i32 = -110;

/// The size class of an endpoint count: Service ports of one class share a chain.
///
/// A change of the count then seldom changes a verdict, which would make the kernel validate all verdicts of the table.
/// Without session affinity only. A single endpoint has a class of its own, because it needs no draw. A class ends at a
/// third or a half above its least number, so that of all draws most find an endpoint.
#[must_use]
pub fn size_class(count: u32) -> RangeInclusive<u32> {
    let last = |most: &&u32| count <= **most;
    match CLASSES.iter().find(last) {
        Some(most) => CLASSES.iter().rev().find(|less| *less < most).map_or(1, |less| less + 1)..=*most,
        // Each number takes a rule.
        None => (count - 1) / 16 * 16 + 1..=count.checked_next_multiple_of(16).unwrap_or(count),
    }
}

/// The most endpoints of each size class up to 32.
const CLASSES: [u32; 9] = [1, 2, 4, 6, 8, 12, 16, 24, 32];

/// Chains that exist even without references: a rule that starts to use a map makes the kernel validate all its
/// elements.
pub const ALWAYS: [Balance; CLASSES.len()] = {
    let mut all =
        [Balance { place: VipOrNodePort::Address, policy: Policy::Cluster, count: 0, sticky: None, hash: None };
            CLASSES.len()];
    let mut at = 0;
    while at < CLASSES.len() {
        all[at].count = CLASSES[at];
        at += 1;
    }
    all
};

/// How to choose an endpoint; Service ports share the chain for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Balance {
    /// The kind of destination.
    pub place: VipOrNodePort,
    /// The traffic policy.
    pub policy: Policy,
    /// The number of endpoints; without session affinity, the maximum of the size class; with a hash, the number of slots.
    pub count: u32,
    /// Session affinity, if configured.
    pub sticky: Option<Sticky>,
    /// What the choice is hashed from, if it is; else it is random.
    pub hash: Option<EndpointHash>,
}

/// Session affinity of a chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sticky {
    /// An upper bound of endpoint numbers.
    pub numbers: u32,
    /// The affinity timeout.
    pub seconds: u32,
    /// The hash of the Service port.
    pub service: u32,
}

/// What stands between the number of slots and what is hashed, in the name of a chain.
const HASH: &str = "-hash-";

/// A chain that exists while a Service port needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SharedChain {
    /// Sends remembered clients to the endpoint with a number.
    Stick {
        /// The kind of destination.
        place: VipOrNodePort,
        /// The traffic policy.
        policy: Policy,
        /// The number.
        number: u32,
        /// The affinity timeout.
        seconds: u32,
        /// The hash of the Service port.
        service: u32,
    },
    /// Chooses an endpoint.
    Balance(Balance),
    /// Marks for masquerading, then chooses an endpoint.
    External(Balance),
    /// A base chain that checks source ranges before DNAT: without any, new connections are spared the hook.
    SourceRanges(PacketOrigin),
}

/// Where packets come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PacketOrigin {
    /// From a link.
    Link,
    /// From this node.
    Node,
}

impl PacketOrigin {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Link, Self::Node];

    /// The base chain that checks source ranges, which upstream's table has too, and its hook.
    fn source_ranges(self) -> (&'static str, Hook) {
        match self {
            Self::Link => ("filter-prerouting-pre-dnat", Hook::Prerouting),
            Self::Node => ("filter-output-pre-dnat", Hook::Output),
        }
    }
}

impl SharedChain {
    /// The chain without rules.
    #[must_use]
    pub fn to_chain(self) -> Chain {
        match self {
            Self::SourceRanges(origin) => {
                let (name, hook) = origin.source_ranges();
                Chain::base(name, ChainType::Filter, hook, BEFORE_DSTNAT)
            }
            _ => Chain::plain(self.to_name()),
        }
    }

    /// Its name, for rules and elements.
    #[must_use]
    pub fn to_name(self) -> Name {
        self.to_string().into()
    }
}

impl fmt::Display for Balance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let map = SetId::Endpoints(self.place, self.policy).name();
        write!(f, "{map}-{}", self.count)?;
        if let Some(hash) = self.hash {
            write!(f, "{HASH}{hash}")?;
        }
        self.sticky.map_or(Ok(()), |Sticky { numbers, seconds, service }| {
            write!(f, "-sticky-{numbers}-{seconds}s-{service:08x}")
        })
    }
}

impl fmt::Display for SharedChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Balance(balance) => write!(f, "{balance}"),
            Self::External(balance) => write!(f, "external-{balance}"),
            Self::SourceRanges(origin) => f.write_str(origin.source_ranges().0),
            Self::Stick { place, policy, number, seconds, service } => {
                write!(f, "stick-{}-{number}-{seconds}s-{service:08x}", SetId::Endpoints(*place, *policy).name())
            }
        }
    }
}

/// The endpoints that a shared chain chooses among.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainEndpoints {
    /// The endpoint map.
    pub to: SetId,
    /// An upper bound of their numbers; 0 if the map has no numbers.
    pub numbers: u32,
    /// Whether lower numbers may be unused.
    pub gaps: bool,
}

/// Parses a chain's name for the endpoints that it chooses among.
#[must_use]
pub fn chain_endpoints(chain: &str) -> Option<ChainEndpoints> {
    let chain = chain.strip_prefix("external-").unwrap_or(chain);
    let (place, policy, of) = VipOrNodePort::ALL
        .into_iter()
        .flat_map(|place| [Policy::Cluster, Policy::Local].map(|p| (place, p)))
        .find_map(|(place, policy)| {
            let to = SetId::Endpoints(place, policy);
            Some((place, policy, chain.strip_prefix(to.name())?.strip_prefix('-')?))
        })?;
    if of == "1" {
        return Some(ChainEndpoints { to: SetId::OnlyEndpoint(place, policy), numbers: 0, gaps: false });
    }
    let (numbers, gaps) = match (of.split_once("-sticky-"), of.split_once(HASH)) {
        (Some((_, sticky)), _) => (sticky.split_once('-')?.0, true),
        (None, Some((slots, _))) => (slots, false),
        (None, None) => (of, false),
    };
    Some(ChainEndpoints { to: SetId::Endpoints(place, policy), numbers: numbers.parse().ok()?, gaps })
}

/// Whether a chain has the name of a [`SharedChain`].
#[must_use]
pub fn is_shared_chain(chain: &str) -> bool {
    let checks = PacketOrigin::ALL.map(|origin| origin.source_ranges().0);
    chain.starts_with("stick-") || checks.contains(&chain) || chain_endpoints(chain).is_some()
}

#[cfg(test)]
mod tests {
    use super::super::names::{EXTERNAL_LOCAL, REJECT};
    use super::*;

    #[test]
    fn chain_names_when_parsed_yield_their_endpoints() {
        for place in VipOrNodePort::ALL {
            for policy in [Policy::Cluster, Policy::Local] {
                let plain = Balance { place, policy, count: 48, sticky: None, hash: None };
                let hashed = Balance { count: 16381, hash: Some(EndpointHash::Flow), ..plain };
                let sticky = Sticky { numbers: 7, seconds: 9, service: 0x1234_5678 };
                let sticky = Balance { count: 5, sticky: Some(sticky), ..plain };
                let to = SetId::Endpoints(place, policy);
                for chain in [SharedChain::Balance, SharedChain::External] {
                    let named = |balance| chain_endpoints(&chain(balance).to_name());
                    assert_eq!(named(plain), Some(ChainEndpoints { to, numbers: 48, gaps: false }));
                    assert_eq!(named(hashed), Some(ChainEndpoints { to, numbers: 16381, gaps: false }));
                    assert_eq!(named(sticky), Some(ChainEndpoints { to, numbers: 7, gaps: true }));
                    let only = SetId::OnlyEndpoint(place, policy);
                    let single = named(Balance { count: 1, ..plain });
                    assert_eq!(single, Some(ChainEndpoints { to: only, numbers: 0, gaps: false }));
                }
            }
        }
        for other in
            [REJECT, EXTERNAL_LOCAL, "endpoints", "endpoints-", "endpoints-x", "endpoints-3-sticky-2", "mine-3"]
        {
            assert_eq!(chain_endpoints(other), None, "{other}");
        }
    }
}
