//! The chains that Service ports share, and their names.
//!
//! In: how a Service port's packets get to its endpoints. Out: the chain that does it. Must not know: rules, Service ports.

use std::fmt;
use std::ops::RangeInclusive;

use netfilter::nft::Name;

use super::names::{Policy, SetId, VipOrNodePort};

/// How many endpoints make Service ports without session affinity share a chain, this many among them. A change of the
/// number then seldom changes a verdict, for which the kernel would look at all verdicts of the table.
#[must_use]
pub fn size_class(count: u32) -> RangeInclusive<u32> {
    match count {
        0..=4 => 1..=4,
        5..=32 => count.next_power_of_two() / 2 + 1..=count.next_power_of_two(),
        // Each number is a rule.
        _ => (count - 1) / 16 * 16 + 1..=count.checked_next_multiple_of(16).unwrap_or(count),
    }
}

/// Ways of choosing that are there even if nobody needs them: when a rule comes to use a map, the kernel looks at all
/// that is in it.
pub const ALWAYS: [Balance; 4] = {
    const fn up_to(count: u32) -> Balance {
        Balance { place: VipOrNodePort::Address, policy: Policy::Cluster, count, sticky: None }
    }
    [up_to(4), up_to(8), up_to(16), up_to(32)]
};

/// A way of choosing an endpoint, which Service ports share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Balance {
    /// What packets are sent to.
    pub place: VipOrNodePort,
    /// Which endpoints are meant.
    pub policy: Policy,
    /// How many there are; without session affinity, at most.
    pub count: u32,
    /// With session affinity.
    pub sticky: Option<Sticky>,
}

/// Session affinity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sticky {
    /// Numbers of endpoints are below this.
    pub numbers: u32,
    /// How long a client is remembered.
    pub seconds: u32,
    /// The Service port's number.
    pub service: u32,
}

/// A chain that is there as long as a Service port needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SharedChain {
    /// The endpoint with a number, for clients that are remembered.
    Stick {
        /// What packets are sent to.
        place: VipOrNodePort,
        /// Which endpoints are meant.
        policy: Policy,
        /// The number.
        number: u32,
        /// How long a client is remembered.
        seconds: u32,
        /// The Service port's number.
        service: u32,
    },
    /// Chooses an endpoint.
    Balance(Balance),
    /// Marks for masquerading, then chooses.
    External(Balance),
}

impl SharedChain {
    /// Its name, as rules and elements want it.
    #[must_use]
    pub fn to_name(self) -> Name {
        self.to_string().into()
    }
}

impl fmt::Display for Balance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let map = SetId::Endpoints(self.place, self.policy).name();
        write!(f, "{map}-{}", self.count)?;
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
            Self::Stick { place, policy, number, seconds, service } => {
                write!(f, "stick-{}-{number}-{seconds}s-{service:08x}", SetId::Endpoints(*place, *policy).name())
            }
        }
    }
}

/// Which endpoints a chain of Service ports chooses among.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainEndpoints {
    /// The map they are in.
    pub to: SetId,
    /// Their numbers are below this.
    pub numbers: u32,
    /// Some of these may be nobody's, others beyond them not.
    pub gaps: bool,
}

/// Reads off a chain's name which endpoints it chooses among.
#[must_use]
pub fn chain_endpoints(chain: &str) -> Option<ChainEndpoints> {
    let chain = chain.strip_prefix("external-").unwrap_or(chain);
    let (map, of) = VipOrNodePort::ALL
        .into_iter()
        .flat_map(|place| [Policy::Cluster, Policy::Local].map(|p| (place, p)))
        .find_map(|(place, policy)| {
            let to = SetId::Endpoints(place, policy);
            Some((to, chain.strip_prefix(to.name())?.strip_prefix('-')?))
        })?;
    let (numbers, gaps) = match of.split_once("-sticky-") {
        Some((_, sticky)) => (sticky.split_once('-')?.0, true),
        None => (of, false),
    };
    Some(ChainEndpoints { to: map, numbers: numbers.parse().ok()?, gaps })
}

/// Whether a chain has the name of a [`SharedChain`].
#[must_use]
pub fn is_shared_chain(chain: &str) -> bool {
    chain.starts_with("stick-") || chain_endpoints(chain).is_some()
}

#[cfg(test)]
mod tests {
    use super::super::names::{EXTERNAL_LOCAL, REJECT};
    use super::*;

    #[test]
    fn chains_tell_by_their_names_where_they_lead() {
        for place in VipOrNodePort::ALL {
            for policy in [Policy::Cluster, Policy::Local] {
                let plain = Balance { place, policy, count: 48, sticky: None };
                let sticky = Sticky { numbers: 7, seconds: 9, service: 0x1234_5678 };
                let sticky = Balance { count: 5, sticky: Some(sticky), ..plain };
                let to = SetId::Endpoints(place, policy);
                for chain in [SharedChain::Balance, SharedChain::External] {
                    let named = |balance| chain_endpoints(&chain(balance).to_name());
                    assert_eq!(named(plain), Some(ChainEndpoints { to, numbers: 48, gaps: false }));
                    assert_eq!(named(sticky), Some(ChainEndpoints { to, numbers: 7, gaps: true }));
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
