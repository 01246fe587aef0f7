//! Packed slices: 5 bytes per IPv4 endpoint, 17 per IPv6 one, where a [`SliceEndpoint`] takes 40.

use std::net::{IpAddr, Ipv4Addr};

use super::endpoint::{NodeHint, Slice, SliceEndpoint, SlicePort, ZoneHints};

const READY: u8 = 1 << 0;
const SERVING: u8 = 1 << 1;
const TERMINATING: u8 = 1 << 2;
const LOCAL: u8 = 1 << 3;
const HINT_HERE: u8 = 1 << 4;
const HINT_ELSEWHERE: u8 = 1 << 5;

/// Addresses with the flags of their endpoints.
#[derive(Clone, Debug)]
enum Addresses {
    V4(Box<[(Ipv4Addr, u8)]>),
    /// IPv6 or mixed addresses.
    V6(Box<[(IpAddr, u8)]>),
}

/// A [`Slice`], packed.
#[derive(Clone, Debug)]
pub struct PackedSlice {
    ports: Box<[SlicePort]>,
    addresses: Addresses,
    /// The zone hints of all endpoints, in order; empty without any.
    zone_hints: Box<[Option<ZoneHints>]>,
}

fn flags(endpoint: &SliceEndpoint) -> u8 {
    let hint = match endpoint.node_hint {
        NodeHint::None => 0,
        NodeHint::Here => HINT_HERE,
        NodeHint::Elsewhere => HINT_ELSEWHERE,
    };
    let conditions = [
        (endpoint.ready, READY),
        (endpoint.serving, SERVING),
        (endpoint.terminating, TERMINATING),
        (endpoint.local, LOCAL),
    ];
    conditions.iter().filter(|(is, _)| *is).fold(hint, |flags, (_, flag)| flags | flag)
}

fn node_hint(flags: u8) -> NodeHint {
    match flags & (HINT_HERE | HINT_ELSEWHERE) {
        HINT_HERE => NodeHint::Here,
        HINT_ELSEWHERE => NodeHint::Elsewhere,
        _ => NodeHint::None,
    }
}

impl PackedSlice {
    /// Packs a slice.
    #[must_use]
    pub fn of(slice: Slice) -> Self {
        let v4 = |endpoint: &SliceEndpoint| match endpoint.ip {
            IpAddr::V4(ip) => Some((ip, flags(endpoint))),
            IpAddr::V6(_) => None,
        };
        let addresses = match slice.endpoints.iter().map(v4).collect() {
            Some(addresses) => Addresses::V4(addresses),
            None => Addresses::V6(slice.endpoints.iter().map(|endpoint| (endpoint.ip, flags(endpoint))).collect()),
        };
        let hinted = slice.endpoints.iter().any(|endpoint| endpoint.zone_hints.is_some());
        let hints = slice.endpoints.into_iter().filter(|_| hinted).map(|endpoint| endpoint.zone_hints);
        Self { addresses, zone_hints: hints.collect(), ports: slice.ports }
    }

    /// Its ports.
    #[must_use]
    pub fn ports(&self) -> &[SlicePort] {
        &self.ports
    }

    fn len(&self) -> usize {
        match &self.addresses {
            Addresses::V4(all) => all.len(),
            Addresses::V6(all) => all.len(),
        }
    }

    /// Its endpoints in order.
    pub fn endpoints(&self) -> impl Iterator<Item = SliceEndpoint> {
        (0..self.len()).map(|at| {
            let (ip, flags) = match &self.addresses {
                Addresses::V4(all) => (IpAddr::V4(all[at].0), all[at].1),
                Addresses::V6(all) => all[at],
            };
            SliceEndpoint {
                ip,
                ready: flags & READY != 0,
                serving: flags & SERVING != 0,
                terminating: flags & TERMINATING != 0,
                local: flags & LOCAL != 0,
                node_hint: node_hint(flags),
                zone_hints: self.zone_hints.get(at).cloned().flatten(),
            }
        })
    }

    /// The slice that was packed.
    #[must_use]
    pub fn unpack(&self) -> Slice {
        Slice { ports: self.ports.clone(), endpoints: self.endpoints().collect() }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use proptest::prelude::*;

    use super::*;
    use crate::model::Protocol;

    fn any_endpoint() -> impl Strategy<Value = SliceEndpoint> {
        let ip = prop_oneof![
            4 => any::<u32>().prop_map(|bits| IpAddr::from(Ipv4Addr::from_bits(bits))),
            1 => any::<u128>().prop_map(|bits| IpAddr::from(Ipv6Addr::from_bits(bits))),
        ];
        let hint = prop_oneof![Just(NodeHint::None), Just(NodeHint::Here), Just(NodeHint::Elsewhere)];
        let zones = prop::option::of(prop::collection::vec("[a-c]", 1..3));
        (ip, any::<[bool; 4]>(), hint, zones).prop_map(
            |(ip, [ready, serving, terminating, local], node_hint, zones)| {
                let zone_hints = zones.map(|zones| zones.into_iter().map(String::into_boxed_str).collect());
                SliceEndpoint { ip, ready, serving, terminating, local, node_hint, zone_hints }
            },
        )
    }

    proptest! {
        #[test]
        fn a_packed_slice_unpacks_to_itself(endpoints in prop::collection::vec(any_endpoint(), 0..6), port: u16) {
            let ports = [SlicePort { name: "http".into(), protocol: Protocol::Tcp, port }];
            let slice = Slice { ports: ports.into(), endpoints: endpoints.into() };
            prop_assert_eq!(PackedSlice::of(slice.clone()).unpack(), slice);
        }
    }
}
